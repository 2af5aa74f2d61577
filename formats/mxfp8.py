"""``mxfp8``: eight-bit floats with a power of two per 32 columns. Stock ComfyUI loads it; Blackwell
multiplies it.

weight float8_e4m3fn [N, K]; weight_scale float8_e8m0fnu in cuBLAS' order (`blockscaled`). Not rotated.
"""

from dataclasses import dataclass
from typing import ClassVar

from .blockscaled import BlockScaled
from .names import SCALE, WEIGHT
from .tensors import Shape, StoredTensor


@dataclass(frozen=True, kw_only=True)
class MXFP8(BlockScaled):
    """w = value x 2^(scale - 127)."""

    name: ClassVar[str] = "mxfp8"
    option: ClassVar[str] = "mxfp8"
    layout: ClassVar[str] = "TensorCoreMXFP8Layout"
    weight_dtype: ClassVar[str] = "F8_E4M3"
    scale_dtype: ClassVar[str] = "F8_E8M0"
    block: ClassVar[int] = 32
    rows_by: ClassVar[int] = 32

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the weight and its scales."""
        scale = StoredTensor(SCALE, self.scale_dtype, self.scale_shape(shape))
        return StoredTensor(WEIGHT, self.weight_dtype, shape), scale

    def speed(self) -> float:
        """Return what two cores did before the search took half the time, measured on one thread."""
        return 4.4e7

    def instead(self) -> str:
        """Return FP8 with one scale, which takes any shape."""
        return "fp8"
