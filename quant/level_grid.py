"""Grids whose levels are not evenly spaced: FP8, FP4, codebooks."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch

from .feedback import feed_back
from .grid import Block, Grid


class LevelGrid(Grid):
    """Base of grids that number their levels upwards, so that a code's neighbours are its level's.

    A subclass defines `nearest`, `round` and `values`; codes run from `lowest` to `levels`.
    """

    @property
    def lowest(self) -> int:
        """Return the smallest code."""
        return -self.levels

    def nearest(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to `work` that codes can stand for, float32; shapes fit each other."""
        raise NotImplementedError(f"{type(self).__name__} must define nearest(work, scale)")

    def clamp_(self, codes: torch.Tensor) -> torch.Tensor:
        """Saturate codes, in place; return them."""
        return codes.clamp_(self.lowest, self.levels)

    def residual_(self, work: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Subtract what the codes [n, B] stand for from `work` [n, B], in place; return it."""
        return work.sub_(self.values(codes, scale))

    def ldlq_block_(
        self, codes: torch.Tensor, work: torch.Tensor, target: torch.Tensor, block: Block
    ) -> None:
        """Quantize a block of columns that share a scale; see `Grid.ldlq_block_`."""
        scale = self.column_view(block.scale, block.rows, int(block.columns[0]))
        flat = scale.flatten()
        stored = feed_back(target, block.square, lambda first, part, cost: lambda x: self.nearest(x, flat))
        codes.copy_(self.round(stored, scale))
        work.sub_(stored)

    def descend_block_(self, codes: torch.Tensor, gradient: torch.Tensor, block: Block) -> torch.Tensor:
        """Move the codes of a block to their best levels, column by column; see `Grid.descend_block_`."""
        n, b = codes.shape
        scale = self.block_scale(block).expand(n, b).t().contiguous()
        before, columns = codes.t().float(), gradient.t().contiguous()
        after, changes = before.contiguous().clone(), torch.zeros_like(columns)
        upper, curvature = block.square.t().contiguous(), block.square.diagonal()
        for j in range(b):
            if j:
                columns[j].addmv_(changes[:j].t(), upper[j, :j], alpha=-1.0)
            after[j] = self.shifted(after[j], columns[j], curvature[j], scale[j])
            changes[j] = self.change(before[j], after[j] - before[j], scale[j])
        codes.copy_(after.t())
        return changes.t()

    def change(self, codes: torch.Tensor, moves: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return how much values change when their codes move by `moves`; all shapes fit each other."""
        return self.values(self.clamp_(codes + moves), scale) - self.values(codes, scale)

    def unit(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the mean squared step between neighbouring codes in each row of `work` [n, K], [n, 1]."""
        codes = self.round(work, scale)
        step = self.values(self.clamp_(codes + 1), scale) - self.values(self.clamp_(codes - 1), scale)
        return (step / 2).square_().mean(1, keepdim=True)

    def shifted(
        self, codes: torch.Tensor, gradient: torch.Tensor, curvature: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Return the codes nearest to the codes' values plus gradient / curvature."""
        return self.round(self.values(codes, scale) + gradient / curvature, scale)


@dataclass(frozen=True)
class FloatGrid(LevelGrid):
    """The finite values of an eight-bit float dtype times a scale.

    A code is the value's bits without the sign, negative where the value is: e4m3 has -126 to 126.
    """

    levels: int = field(init=False, default=0)
    dtype: torch.dtype = torch.float8_e4m3fn

    def __post_init__(self) -> None:
        """Count the levels."""
        object.__setattr__(self, "levels", int(torch.isfinite(_decoded(self.dtype)[128:]).sum()) - 1)

    @property
    def top(self) -> float:
        """Return the largest finite value of the dtype."""
        return torch.finfo(self.dtype).max

    def _stored(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the bits, as int8, of the values nearest to `work`."""
        scaled = (work * scale.reciprocal()).clamp_(-self.top, self.top)
        return scaled.to(self.dtype).view(torch.int8)

    def nearest(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return `work` rounded half to even, saturated."""
        return self.values(from_bits(self._stored(work, scale)), scale)

    def round(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes [n, K] nearest to `work`, half to even, saturated."""
        return from_bits(self._stored(work, scale)).float()

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the floats that codes stand for."""
        table = _decoded(self.dtype).to(codes.device)
        return table.index_select(0, (codes.to(torch.int32) + 128).flatten()).view(codes.shape).mul_(scale)


@lru_cache(maxsize=8)
def _decoded(dtype: torch.dtype) -> torch.Tensor:
    """Return the values of codes -128 to 127, float32 [256]; do not write to it."""
    with torch.inference_mode(False):
        codes = torch.arange(-128, 128, device="cpu").clamp_(-127, 127).to(torch.int8)
        return to_bits(codes).view(dtype).float()


def from_bits(bits: torch.Tensor) -> torch.Tensor:
    """Return the codes of eight-bit floats given as int8: the bits without the sign, negative with it."""
    return torch.where(bits < 0, -128 - bits, bits)


def to_bits(codes: torch.Tensor) -> torch.Tensor:
    """Return the eight-bit floats, as int8, of int8 codes -127 to 127."""
    return torch.where(codes < 0, -128 - codes, codes)
