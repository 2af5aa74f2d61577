"""``int8_blockwise``: INT8 with one scale per square block. Stock ComfyUI refuses it; the node pack reads it.

weight int8 [N, K]; weight_scale float32 [ceil(N / b), ceil(K / b)]; ``group_size`` is b.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Format
from .config import shown
from .errors import CheckpointError
from .int8 import DEFAULT_BLOCK, LARGEST_BLOCK, Int8, edge_of, given_edge
from .names import PRE_QUANT_SCALE, SCALE, WEIGHT
from .tensors import Shape, StoredTensor, Tensors


@dataclass(frozen=True, kw_only=True)
class Int8Blockwise(Int8):
    """One scale per block of block_size x block_size weights; never rotated."""

    name: ClassVar[str] = "int8_blockwise"
    option: ClassVar[str] = "int8"
    layout: ClassVar[str] = "BlockWiseINT8Layout"
    granularities: ClassVar[tuple[str, ...]] = ("block",)
    extras: ClassVar[tuple[str, ...]] = (PRE_QUANT_SCALE,)

    block_size: int = DEFAULT_BLOCK

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the weight and the scales of its blocks."""
        return StoredTensor(WEIGHT, "I8", shape), StoredTensor(SCALE, "F32", blocks(shape, self.block_size))

    def keys(self) -> dict[str, Any]:
        """Return the edge of a block."""
        return {"group_size": self.block_size}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> Format:
        """Read the edge from ``group_size``, or ``block_size`` as some tools write.

        It is 128 where neither is there, or is null; anything but a power of two is refused.
        """
        given = given_edge(settings)
        edge = edge_of(settings)
        if not edge:
            raise CheckpointError(
                f"{where}: {cls.name} needs a 'group_size' that is a power of two up to {LARGEST_BLOCK}, "
                f"not {shown(given)}"
            )
        return cls(block_size=edge, **cls.common(settings, tensors))

    def check(self, tensors: Tensors, where: str) -> None:
        """Raise CheckpointError for scales that are not those of blocks of this edge."""
        want, found = blocks(self.shape(tensors[WEIGHT].shape), self.block_size), tensors[SCALE].shape
        if found != want:
            raise CheckpointError(
                f"{where}: weight_scale is {list(found)}, blocks of {self.block_size} need {list(want)}"
            )
        super().check(tensors, where)

    @property
    def row_step(self) -> int:
        """Return the edge of a block."""
        return self.block_size

    def rows(self, first: int, count: int, tensors: Tensors) -> dict[str, tuple[int, int] | None]:
        """Take the rows of the weight and the blocks that hold them."""
        parts = super().rows(first, count, tensors)
        parts[SCALE] = (first // self.block_size, -(-(first + count) // self.block_size))
        return parts

    def words(self) -> dict[str, Any]:
        """Return the granularity and the edge of a block."""
        return {"scaling_mode": self.granularities[0], "block_size": self.block_size}

    def speed(self) -> float:
        """Return what was measured with blocks of 128."""
        return 3.3e8

    def describe(self) -> str:
        """Return ``block 128`` or the like."""
        return f"block {self.block_size}"

    def tag(self) -> str:
        """Return ``int8_block128`` or the like."""
        return f"int8_block{self.block_size}"


def blocks(shape: Shape, edge: int) -> Shape:
    """Count the blocks of a weight [N, K] along each axis."""
    n, k = shape
    return -(-n // edge), -(-k // edge)
