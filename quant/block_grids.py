"""Grids of ``mxfp8`` and ``nvfp4``: small floats with a scale per block of columns, chosen when LDLQ reaches
it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..kernels import mxfp8, nvfp4
from ..kernels.blocks import in_lanes, side_by_side
from ..kernels.e4m3 import e4m3_values
from .group_grid import GroupGrid
from .level_grid import FloatGrid


@dataclass(frozen=True)
class PowerGrid(GroupGrid, FloatGrid):
    """e4m3 values times a power of two per block, one of two (`kernels.mxfp8.choose_powers`)."""

    columns: int = mxfp8.BLOCK

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales that lose least on rows [n, K], [n, K / columns]."""
        size = side_by_side(work, self.columns).abs_()
        weights = _spread(cost, self.columns, work.shape[0])
        found = mxfp8.choose_powers(
            size, in_lanes if weights is None else lambda e: in_lanes(e.mul_(weights))
        )
        return found.view(work.shape[0], -1)

    def settle(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the powers of two from `scale` up; NaN and Inf pass through."""
        return mxfp8.next_power(scale)

    def choose(self, work: torch.Tensor, cost: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales of blocks; see `GroupGrid.choose`."""
        return mxfp8.choose_powers(work.abs(), lambda e: in_lanes(e.mul_(cost.unsqueeze(1))))


def _spread(cost: torch.Tensor | None, columns: int, rows: int) -> torch.Tensor | None:
    """Return the costs of columns [K] as blocks of `rows` rows side by side, [columns, rows K / columns]."""
    return None if cost is None else cost.view(-1, columns).t().repeat(1, rows)


@dataclass(frozen=True)
class FourBitFloatGrid(GroupGrid):
    """e2m1 values times an e4m3 scale per block times one scale in all: w = value x s x t, with t + i s kept.

    Codes -7 to 7 number the values -6, -4, -3, -2, -1.5, ... 6. How scales are chosen: `kernels.nvfp4`.
    """

    wants_peak: ClassVar[bool] = True

    levels: int = 7
    columns: int = nvfp4.BLOCK

    @property
    def top(self) -> float:
        """Return the largest value."""
        return nvfp4.TOP

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales that lose least on rows [n, K], complex [n, K / columns].

        peak: the largest magnitude in the whole weight, []; None for that of these rows.
        """
        size = side_by_side(work, self.columns).abs_()
        whole = nvfp4.scale_in_all(size.amax() if peak is None else peak)
        weights = _spread(cost, self.columns, work.shape[0])
        found = nvfp4.choose_blocks(
            size, whole, in_lanes if weights is None else lambda e: in_lanes(e.mul_(weights))
        )
        return _both(whole, found).view(work.shape[0], -1)

    def scale_in_all(self, peak: torch.Tensor) -> torch.Tensor:
        """Return the scale in all of a weight with that largest magnitude; see `Grid.scale_in_all`."""
        return nvfp4.scale_in_all(peak)

    def scale_from(self, peaks: torch.Tensor) -> torch.Tensor:
        """Return scales that reach the peaks [n, K / columns], complex."""
        whole = nvfp4.scale_in_all(peaks.amax())
        return _both(whole, nvfp4.reaching(peaks, whole))

    def choose(self, work: torch.Tensor, cost: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales of blocks, with the scale in all of `scale`; see `GroupGrid.choose`."""
        found = nvfp4.choose_blocks(work.abs(), scale.real, lambda e: e.mul_(cost.unsqueeze(1)).sum(0))
        return _both(scale.real, found)

    def nearest(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to `work`; shapes fit each other."""
        product = scale.real * scale.imag
        scaled = work * product.reciprocal()
        return nvfp4.round_e2m1_(scaled.abs()).copysign_(scaled).mul_(product)

    def round(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes nearest to `work`; shapes fit each other."""
        scaled = work * (scale.real * scale.imag).reciprocal()
        return nvfp4.e2m1_codes(nvfp4.round_e2m1_(scaled.abs())).float().copysign_(scaled)

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the floats that codes stand for; shapes fit each other."""
        levels = [-6.0, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
        table, index = torch.tensor(levels, device=codes.device), (codes + 7).to(torch.int32)
        level = table.index_select(0, index.flatten()).view(codes.shape)
        return level * (scale.real * scale.imag)


def _both(whole: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Return the scale in all and those of blocks, given by their e4m3 bits, as one complex number a block.

    Where the scale in all is NaN or Inf, so is all of it: that shows what was in the weight.
    """
    blocks = e4m3_values(bits)
    blocks = torch.where(torch.isfinite(whole), blocks, float("nan"))
    return torch.complex(whole.expand(blocks.shape).contiguous(), blocks)
