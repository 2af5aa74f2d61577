"""What ``mxfp8`` and ``nvfp4`` share: a scale per block of columns, stored in the order that cuBLAS reads.

The scales [N, K / b] are cut into tiles of 128 rows x 4 columns, padded with zeros; a tile's 512 bytes lie
one after the other, row r at byte 16 (r % 32) + 4 (r // 32). So 128 rows cannot be taken apart. Weights of
other tools may be padded as well; only whole tiles of rows and blocks are written, and padded ones are read
as they are.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from .base import Format
from .names import SCALE
from .tensors import Shape, Tensors

ROWS = 128
"""Rows of a tile of scales."""


@dataclass(frozen=True, kw_only=True)
class BlockScaled(Format):
    """A subclass names its block: columns per scale, and what N must be a multiple of."""

    block: ClassVar[int]
    rows_by: ClassVar[int]
    scale_dtype: ClassVar[str]
    activations: ClassVar[str] = "float"
    stock_since: ClassVar[str] = "0.33"

    def scale_shape(self, shape: Shape) -> Shape:
        """Return the stored shape of the scales of a weight [N, K]."""
        n, k = shape
        return -(-n // ROWS) * ROWS, -(-(k // self.block) // 4) * 4

    def check_dtypes(self, tensors: Tensors, where: str) -> None:
        """Read the scales as bytes too, as some tools store them."""
        scale = tensors[SCALE]
        as_float = replace(scale, dtype=self.scale_dtype) if scale.dtype == "U8" else scale
        super().check_dtypes({**tensors, SCALE: as_float}, where)

    @property
    def row_step(self) -> int:
        """Return the rows of a tile."""
        return ROWS

    def rows(self, first: int, count: int, tensors: Tensors) -> dict[str, tuple[int, int] | None]:
        """Take the rows of the weight and the tiles that hold their scales."""
        parts = super().rows(first, count, tensors)
        return {**parts, SCALE: (first, -(-(first + count) // ROWS) * ROWS)}

    def why_not(self, shape: Shape) -> str:
        """Return why: rows and columns come in multiples."""
        for what, count, step in (("rows", shape[0], self.rows_by), ("columns", shape[1], self.block)):
            if count % step:
                return f"{count} {what} are no multiple of {step}"
        return ""

    def asked_as(self) -> str:
        """Return the name, which is the option too."""
        return self.name
