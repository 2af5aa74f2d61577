"""``int8_tensorwise``: INT8 with one scale per row or one in all, optionally rotated. ComfyUI's own format.

weight int8 [N, K]; weight_scale float32 [N, 1] or [1, 1]; w = q x scale, then un-rotated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .base import Format
from .convrot import rotation_config, rotation_of
from .errors import CheckpointError
from .int8 import Int8
from .names import SCALE, WEIGHT
from .tensors import Shape, StoredTensor, Tensors


@dataclass(frozen=True, kw_only=True)
class Int8Tensorwise(Int8):
    """One scale per "row", or one for the whole "tensor"."""

    name: ClassVar[str] = "int8_tensorwise"
    option: ClassVar[str] = "int8"
    layout: ClassVar[str] = "TensorWiseINT8Layout"
    stock_since: ClassVar[str] = "0.29"
    granularities: ClassVar[tuple[str, ...]] = ("row", "tensor")
    rotates: ClassVar[bool] = True
    unlabelled: ClassVar[bool] = True
    smoothed_as: ClassVar[str] = "int8_smooth"
    banks: ClassVar[bool] = True

    granularity: Literal["row", "tensor"] = "row"

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the weight and its scale.

        One scale in all is (1, 1): with () ComfyUI would requantize a layer per tensor after a LoRA, with
        (1, 1) it does so per row, which is better.
        """
        rows = shape[0] if self.granularity == "row" else 1
        return StoredTensor(WEIGHT, "I8", shape), StoredTensor(SCALE, "F32", (rows, 1))

    def keys(self) -> dict[str, Any]:
        """Return the rotation's keys."""
        return rotation_config(self.rotation)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> Format:
        """Tell rows from the whole tensor by the number of scales; (N,) and (1, N) are read as rows.

        CheckpointError for another number of scales, or a rotation that does not exist or divide K.
        """
        scale, (n, k) = tensors[SCALE], tensors[WEIGHT].shape
        if scale.numel != 1 and not scale.per_row(n):
            raise CheckpointError(
                f"{where}: weight_scale is {list(scale.shape)}, expected one entry or [{n}, 1]"
            )
        made = cls(
            granularity="tensor" if scale.numel == 1 else "row",
            rotation=rotation_of(settings, k, where),
            **cls.common(settings, tensors),
        )
        return made.having(made.extra)

    def check(self, tensors: Tensors, where: str) -> None:
        """Check the extra tensors; `from_settings` has told the scale by its shape."""
        super().check({**tensors, SCALE: self.tensors(self.shape(tensors[WEIGHT].shape))[1]}, where)

    def describe(self) -> str:
        """Return ``row + convrot 256`` or the like."""
        kind = f"{self.granularity} + convrot {self.rotation}" if self.rotation else self.granularity
        return kind + self.bank_words()

    def why_no_bank(self) -> str:
        """Return why: ComfyUI takes each expert's own scales."""
        one = self.experts and self.granularity == "tensor"
        return "a bank of experts has a scale per row" if one else super().why_no_bank()

    def tag(self) -> str:
        """Return ``int8_row`` or ``int8_tensor``."""
        return f"int8_{self.granularity}"

    def words(self) -> dict[str, Any]:
        """Return the granularity."""
        return {"scaling_mode": self.granularity}

    def speed(self) -> float:
        """Return what was measured with and without rotation."""
        rates = {"row": (2.9e8, 2.0e8), "tensor": (3.1e8, 1.8e8)}
        return rates[self.granularity][bool(self.rotation)]

    def rows(self, first: int, count: int, tensors: Tensors) -> dict[str, tuple[int, int] | None]:
        """Take the rows of the weight and, where there is one per row, the scales."""
        parts = super().rows(first, count, tensors)
        parts[SCALE] = None if tensors[SCALE].numel == 1 else (first, first + count)
        return parts
