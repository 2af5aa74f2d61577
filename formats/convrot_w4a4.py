"""``convrot_w4a4``: weights of 4 bits with one scale per row, rotated. Stock ComfyUI loads it.

weight int8 [N, K / 2]: two's complement codes -7 to 7, the even column in the low half of a byte;
weight_scale float32 [N]; w = code x scale, then un-rotated. ``linear_dtype`` says what activations are
rounded to where the card leaves a choice: "int8" is written, for with "int4" (the default of the format)
they are the limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .base import Format
from .config import shown
from .convrot import DEFAULT_GROUP, required_rotation
from .errors import CheckpointError
from .names import SCALE, WEIGHT
from .tensors import Shape, StoredTensor, Tensors

_STEP = 64
"""K is a multiple of it: what ComfyUI's kernels take at a time."""


@dataclass(frozen=True, kw_only=True)
class ConvRotW4A4(Format):
    """linear_dtype: "int8" or "int4"."""

    name: ClassVar[str] = "convrot_w4a4"
    option: ClassVar[str] = "int4"
    layout: ClassVar[str] = "TensorCoreConvRotW4A4Layout"
    stock_since: ClassVar[str] = "0.33"
    rotates: ClassVar[bool] = True
    always_rotated: ClassVar[bool] = True
    warn_db: ClassVar[float] = 12.0
    descent_passes: ClassVar[int] = 4
    banks: ClassVar[bool] = True
    rotates_banks: ClassVar[bool] = True

    rotation: int = DEFAULT_GROUP
    linear_dtype: str = "int8"

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the packed weight and a scale per row."""
        n, k = shape
        return StoredTensor(WEIGHT, "I8", (n, k // 2)), StoredTensor(SCALE, "F32", (n,))

    def keys(self) -> dict[str, Any]:
        """Return the rotation, and the dtype of activations where it is not the default one."""
        wide = {} if self.linear_dtype == "int4" else {"linear_dtype": self.linear_dtype}
        return {"convrot_groupsize": self.rotation, **wide}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> Format:
        """Read the rotation and what activations are rounded to; CheckpointError for another word."""
        columns, kind = 2 * tensors[WEIGHT].shape[1], settings.get("linear_dtype", "int4")
        if kind not in ("int4", "int8"):
            raise CheckpointError(f"{where}: linear_dtype must be int4 or int8, not {shown(kind)}")
        if columns % _STEP:
            raise CheckpointError(f"{where}: {cls.name} has columns by {_STEP}, not {columns}")
        rotation = required_rotation(settings, columns, where)
        return cls(rotation=rotation, linear_dtype=kind, **cls.common(settings, tensors))

    def check(self, tensors: Tensors, where: str) -> None:
        """Read a scale [N, 1] too."""
        scale, n = tensors[SCALE], tensors[WEIGHT].shape[0]
        flat = replace(scale, shape=(n,)) if scale.per_row(n) else scale
        super().check({**tensors, SCALE: flat}, where)

    def shape(self, stored: tuple[int, ...]) -> Shape:
        """Return [N, K] of a packed weight."""
        return stored[0], 2 * stored[1]

    def rows(self, first: int, count: int, tensors: Tensors) -> dict[str, tuple[int, int] | None]:
        """Take the rows of the weight and their scales, also the only one."""
        parts = super().rows(first, count, tensors)
        return {**parts, SCALE: (first, first + count)}

    def why_not(self, shape: Shape) -> str:
        """Return why: K must be a multiple of 64."""
        if shape[1] % _STEP:
            return f"{shape[1]} columns are no multiple of {_STEP}"
        return "" if self.rotation else "it is always rotated"

    def instead(self) -> str:
        """Return W4A8, which takes multiples of 16."""
        return "w4a8"

    def asked_as(self) -> str:
        """Return int4."""
        return self.option

    def speed(self) -> float:
        """Return what was measured."""
        return 5.4e7

    def describe(self) -> str:
        """Return ``int4 row + convrot 256`` or the like."""
        return f"int4 row + convrot {self.rotation}{self.bank_words()}"
