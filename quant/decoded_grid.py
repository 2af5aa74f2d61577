"""The grid of ``asym_w4a8_int8``: levels that a group scale decodes to int8, which a row scale makes floats.

What a code stands for and how scales are chosen: `kernels.decoded`. A scale is one complex number a group:
s_channel + i s_rel, so that both are cut and moved as one.
"""

from dataclasses import dataclass

import torch

from ..kernels import decoded
from ..kernels.blocks import side_by_side
from ..kernels.decoded import STEPS, half_steps, nearest_codes, nearest_integers
from ..kernels.e4m3 import e4m3_bits, e4m3_values
from .feedback import Nearest
from .group_grid import GroupGrid

_LDLQ_MOVES = {4: (0, 1, -1), 6: (1, 0, 2, -1, 3)}
"""As `kernels.decoded.MOVES`, for LDLQ, which has the time."""


@dataclass(frozen=True)
class DecodedGrid(GroupGrid):
    """bits: 4, with the levels of `kernels.decoded.CODEBOOK`, or 6, with -31 to 31; columns: of a group."""

    levels: int = 7
    columns: int = 16
    bits: int = 4

    def __post_init__(self) -> None:
        """Count the levels: codes are -8 to 7, or -31 to 31."""
        object.__setattr__(self, "levels", 7 if self.bits == 4 else 31)

    @property
    def lowest(self) -> int:
        """Return the smallest code."""
        return decoded.lowest(self.bits)

    @property
    def top(self) -> float:
        """Return the largest level."""
        return decoded.TOP[self.bits]

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales that lose least on rows [n, K], complex [n, K / columns]; NaN where there is one.

        LDLQ chooses the groups' anew, by their cost, and keeps the rows', so `cost` is not looked at here.
        """
        n = work.shape[0]
        blocks = side_by_side(work, self.columns)
        peaks = torch.maximum(blocks.amax(0), blocks.amin(0).neg_()).view(n, -1)
        row = decoded.row_scale(peaks, self.bits).expand_as(peaks).contiguous()
        if not torch.isfinite(row).all():
            return torch.complex(row, torch.ones_like(row))
        moves = decoded.MOVES[self.bits]
        found = decoded.choose_groups(blocks, row.view(-1), peaks.view(-1), self.bits, moves)
        return torch.complex(row, e4m3_values(found).view(n, -1))

    def scale_from(self, peaks: torch.Tensor) -> torch.Tensor:
        """Return scales that reach the peaks [n, K / columns], complex."""
        row = decoded.row_scale(peaks, self.bits).expand_as(peaks).contiguous()
        return torch.complex(row, e4m3_values(decoded.reaching(peaks, row, self.bits)))

    def choose(self, work: torch.Tensor, cost: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales of groups with the row scales of `scale`; see `GroupGrid.choose`."""
        peaks = torch.maximum(work.amax(0), work.amin(0).neg_())
        row, moves = scale.real.contiguous(), _LDLQ_MOVES[self.bits]
        found = decoded.choose_groups(work, row, peaks, self.bits, moves, lambda e: e.t().contiguous() @ cost)
        return torch.complex(row, e4m3_values(found))

    def _index(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return where the tables hold `work`, int32; shapes fit each other."""
        return half_steps(work * scale.real.reciprocal()) + _first_step(scale)

    def round(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes nearest to `work`; shapes fit each other."""
        index = self._index(work, scale)
        codes = nearest_codes(self.bits, work.device).index_select(0, index.flatten())
        return codes.view(index.shape).float()

    def nearest(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to `work`; shapes fit each other."""
        index = self._index(work, scale)
        table = nearest_integers(self.bits, work.device)
        return table.index_select(0, index.flatten()).view(index.shape).mul_(scale.real)

    def rounder(self, scale: torch.Tensor) -> Nearest:
        """Return `nearest` for columns, with all that rows share computed once."""
        row = scale.real.contiguous()
        inverse, base = row.reciprocal(), _first_step(scale)
        table = nearest_integers(self.bits, scale.device)

        def nearest(column: torch.Tensor) -> torch.Tensor:
            return table.index_select(0, half_steps(column * inverse).add_(base)).mul_(row)

        return nearest

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the floats that codes stand for; shapes fit each other."""
        table = decoded.levels(self.bits, codes.device)
        index = (codes - self.lowest).to(torch.int32)
        level = table.index_select(0, index.flatten()).view(codes.shape)
        return (level * scale.imag).round_().clamp_(-127, 127).mul_(scale.real)


def _first_step(scale: torch.Tensor) -> torch.Tensor:
    """Return where the tables' half steps of each group's scale begin, int32."""
    return (e4m3_bits(scale.imag) * STEPS).to(torch.int32)
