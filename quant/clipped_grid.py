"""Few integer levels, a scale per row: the scale that loses least clips the largest weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..kernels import int4
from .grid import Grid


@dataclass(frozen=True)
class ClippedGrid(Grid):
    """The integers -levels to levels times a scale per row that is searched.

    At 4 bits and K = 1024 the best scale of Gaussian rows is some 0.7 of the peak's; it is worth 1.5 dB.
    """

    fits: ClassVar[bool] = True
    refits: ClassVar[bool] = True

    levels: int = int4.LEVELS

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales [n, 1] of least summed squared error, weighed by `cost` [K] where it is given."""
        return int4.clipped_scale(work, self.levels, cost)
