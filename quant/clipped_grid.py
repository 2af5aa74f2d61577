"""Few integer levels, a scale per row: the scale that loses least clips the largest weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .grid import Grid

_COARSE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_FINE = (0.05, 0.025, 0.0125)
"""Shares of the scale from the peak: first these, then steps to either side of the best."""


@dataclass(frozen=True)
class ClippedGrid(Grid):
    """The integers -levels to levels times a scale per row that is searched.

    At 4 bits and K = 1024 the best scale of Gaussian rows is some 0.7 of the peak's; it is worth 1.5 dB.
    """

    fits: ClassVar[bool] = True

    levels: int = 7

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales [n, 1] of least summed squared error, weighed by `cost` [K] where it is given."""
        start = self.scale_from(self.peaks(work))
        if not torch.isfinite(start).all():
            return start
        share, best = torch.ones_like(start), self._lost(work, start, cost)
        for wanted in _COARSE:
            share, best = self._better(work, start, cost, share, best, torch.full_like(start, wanted))
        for step in _FINE:
            centre = share
            for side in (step, -step):
                share, best = self._better(work, start, cost, share, best, centre + side)
        return start * share

    def _better(
        self,
        work: torch.Tensor,
        peak: torch.Tensor,
        cost: torch.Tensor | None,
        share: torch.Tensor,
        best: torch.Tensor,
        tried: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (share, loss) per row, of `tried` where that loses less."""
        lost = self._lost(work, peak * tried, cost)
        less = lost < best
        return torch.where(less, tried, share), torch.where(less, lost, best)

    def _lost(self, work: torch.Tensor, scale: torch.Tensor, cost: torch.Tensor | None) -> torch.Tensor:
        """Return the summed squared error of each row, [n, 1]."""
        error = self.round(work, scale).mul_(scale).sub_(work).square_()
        return error.sum(1, keepdim=True) if cost is None else error @ cost.unsqueeze(1)
