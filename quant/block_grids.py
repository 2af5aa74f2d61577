"""Grids of ``mxfp8`` and ``nvfp4``: small floats with a scale per block of columns, chosen when LDLQ reaches
it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .decoded_grid import e4m3_bits, e4m3_values
from .group_grid import GroupGrid
from .level_grid import FloatGrid

_LEAST = 2.0**-126
"""The smallest power of two that float32 holds without losing bits."""


@dataclass(frozen=True)
class PowerGrid(GroupGrid, FloatGrid):
    """e4m3 values times a power of two per block.

    The power that reaches the peak, or half of it: the peak is then clipped, and all others lie twice as
    dense.
    """

    columns: int = 32

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales that lose least on rows [n, K], [n, K / columns]."""
        blocks = work.view(work.shape[0], -1, self.columns)
        weights = None if cost is None else cost.view(-1, self.columns)
        return self._choose(blocks, weights)

    def settle(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the powers of two from `scale` up; NaN and Inf pass through."""
        powers = torch.exp2(torch.ceil(torch.log2(scale.clamp_min(_LEAST))))
        return torch.where(torch.isfinite(scale), powers, scale)

    def choose(self, work: torch.Tensor, cost: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales of blocks; see `GroupGrid.choose`."""
        return self._choose(work, cost)

    def _choose(self, work: torch.Tensor, cost: torch.Tensor | None) -> torch.Tensor:
        peaks = torch.maximum(work.amax(-1), work.amin(-1).neg_())
        whole = self.settle(peaks / self.top)
        half = (whole / 2).clamp_min(_LEAST)
        lost = [lost_by(self.nearest(work, s.unsqueeze(-1)), work, cost) for s in (whole, half)]
        return torch.where(lost[1] < lost[0], half, whole)


def lost_by(values: torch.Tensor, work: torch.Tensor, cost: torch.Tensor | None) -> torch.Tensor:
    """Return the squared error over the last axis, weighted by `cost`; `values` is overwritten."""
    error = values.sub_(work).square_()
    return error.sum(-1) if cost is None else (error * cost).sum(-1)


@dataclass(frozen=True)
class FourBitFloatGrid(GroupGrid):
    """e2m1 values times an e4m3 scale per block times one scale in all: w = value x s x t, with t + i s kept.

    Codes -7 to 7 number the values -6, -4, -3, -2, -1.5, ... 6.
    """

    wants_peak: ClassVar[bool] = True

    levels: int = 7
    columns: int = 16

    @property
    def top(self) -> float:
        """Return the largest value."""
        return 6.0

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales that lose least on rows [n, K], complex [n, K / columns].

        peak: the largest magnitude in the whole weight, []; None for that of these rows.
        """
        blocks = work.view(work.shape[0], -1, self.columns)
        peaks = torch.maximum(blocks.amax(-1), blocks.amin(-1).neg_())
        whole = ((peaks.amax() if peak is None else peak) / (448.0 * self.top)).clamp_min(1e-30)
        start = torch.complex(whole, torch.ones_like(whole)).expand(peaks.shape)
        if not torch.isfinite(whole + peaks.sum()):
            return start * float("nan")
        weights = None if cost is None else cost.view(-1, self.columns)
        return self._choose(blocks, weights, start, peaks)

    def scale_from(self, peaks: torch.Tensor) -> torch.Tensor:
        """Return scales that reach the peaks [n, K / columns], complex."""
        whole = (peaks.amax() / (448.0 * self.top)).clamp_min(1e-30).expand(peaks.shape)
        return torch.complex(whole.contiguous(), e4m3_values(peaks)[self._reaching(peaks, whole).long()])

    def choose(self, work: torch.Tensor, cost: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales of blocks, with the scale in all of `scale`; see `GroupGrid.choose`."""
        peaks = torch.maximum(work.amax(-1), work.amin(-1).neg_())
        return self._choose(work, cost, scale, peaks)

    def _reaching(self, peaks: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return e4m3_bits((peaks / (whole * self.top)).clamp_(2.0**-9, 448.0))

    def _choose(
        self, work: torch.Tensor, cost: torch.Tensor | None, scale: torch.Tensor, peaks: torch.Tensor
    ) -> torch.Tensor:
        """Try scales near the one whose 6 is the peak, and near the one whose 4 is."""
        whole = scale.real
        start = self._reaching(peaks, whole)
        best, found = None, start
        for move in (0, 1, -1, 4, 5):
            tried = (start + move).clamp_(1, 126)
            values = self._snap(work, (e4m3_values(work)[tried.long()] * whole).unsqueeze(-1))
            lost = lost_by(values, work, cost)
            if best is None:
                best, found = lost, tried
            else:
                better = lost < best
                best, found = torch.where(better, lost, best), torch.where(better, tried, found)
        return torch.complex(whole.expand(found.shape).contiguous(), e4m3_values(work)[found.long()])

    def _snap(self, work: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to `work` times their scales `product`."""
        scaled = work * product.reciprocal()
        size = scaled.abs().clamp_(max=6.0)
        half = torch.where(size < 2, (size * 2).round_() / 2, size.round())
        return torch.where(size < 4, half, (size / 2).round_() * 2).copysign_(scaled).mul_(product)

    def nearest(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to `work`; shapes fit each other."""
        return self._snap(work, scale.real * scale.imag)

    def round(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes nearest to `work`; shapes fit each other."""
        ones = torch.ones_like(work)
        value = self._snap(work * (scale.real * scale.imag).reciprocal(), ones)
        size = value.abs()
        code = torch.where(size <= 2, size * 2, torch.where(size <= 4, size + 2, ones * 7))
        return code.copysign_(value)

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the floats that codes stand for; shapes fit each other."""
        levels = [-6.0, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
        table, index = torch.tensor(levels, device=codes.device), (codes + 7).to(torch.int32)
        level = table.index_select(0, index.flatten()).view(codes.shape)
        return level * (scale.real * scale.imag)
