"""``nvfp4``: four-bit floats with an e4m3 scale per 16 columns and one in all. Stock ComfyUI loads it.

weight uint8 [N, K / 2]: two e2m1 values a byte, the even column in the high half; weight_scale float8_e4m3fn
in cuBLAS' order (`blockscaled`); weight_scale_2 float32 []. w = value x weight_scale x weight_scale_2. Not
rotated.
"""

from dataclasses import dataclass
from typing import ClassVar

from .blockscaled import BlockScaled
from .names import SCALE, WEIGHT
from .tensors import Shape, StoredTensor

SCALE_2 = "weight_scale_2"


@dataclass(frozen=True, kw_only=True)
class NVFP4(BlockScaled):
    """Values 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with their signs."""

    name: ClassVar[str] = "nvfp4"
    option: ClassVar[str] = "nvfp4"
    layout: ClassVar[str] = "TensorCoreNVFP4Layout"
    weight_dtype: ClassVar[str] = "U8"
    scale_dtype: ClassVar[str] = "F8_E4M3"
    suffixes: ClassVar[tuple[str, ...]] = (SCALE, SCALE_2)
    block: ClassVar[int] = 16
    rows_by: ClassVar[int] = 16
    warn_db: ClassVar[float] = 14.0

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the packed weight and both its scales."""
        n, k = shape
        return (
            StoredTensor(WEIGHT, "U8", (n, k // 2)),
            StoredTensor(SCALE, self.scale_dtype, self.scale_shape(shape)),
            StoredTensor(SCALE_2, "F32", ()),
        )

    def shape(self, stored: tuple[int, ...]) -> Shape:
        """Return [N, K] of a packed weight."""
        return stored[0], 2 * stored[1]

    def speed(self) -> float:
        """Return what two cores did before the search took a sixth of the time, measured on one thread."""
        return 4.2e7

    def instead(self) -> str:
        """Return eight bits with the same kind of scales."""
        return "mxfp8"
