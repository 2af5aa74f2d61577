"""Grids with a scale for each group of a few columns, which LDLQ chooses when it reaches the group."""

from typing import ClassVar

import torch

from .feedback import Nearest, feed_back
from .grid import Block
from .level_grid import LevelGrid

SPAN = 128
"""Columns that LDLQ takes at once: whole groups, whose errors meet in one product."""


class GroupGrid(LevelGrid):
    """Base of grids of one scale per row and `columns` columns, with more than rounding to choose it by.

    A subclass defines `choose`, and what `LevelGrid` asks for.
    """

    fits: ClassVar[bool] = True

    @property
    def span(self) -> int:
        """Return the columns of as many groups as `SPAN` holds."""
        return max(SPAN // self.columns, 1) * self.columns

    def choose(self, work: torch.Tensor, cost: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales [n] with which groups `work` [columns, n] lose least.

        cost: what a squared error costs in each column, [columns]. scale: [n], as far as it is settled for
        the whole row or weight.
        """
        raise NotImplementedError(f"{type(self).__name__} must define choose(work, cost, scale)")

    def rounder(self, scale: torch.Tensor) -> Nearest:
        """Return how weights [n] of one column are rounded with their groups' scales [n]."""
        return lambda column: self.nearest(column, scale)

    def ldlq_block_(
        self, codes: torch.Tensor, work: torch.Tensor, target: torch.Tensor, block: Block
    ) -> None:
        """Quantize a block of whole groups, each with a scale chosen when its first column is reached.

        The weights then hold the errors of all earlier columns, and the cost of an error is 1 / U_jj^2: what
        LDLQ's objective makes of it. See `Grid.ldlq_block_`.
        """
        groups = (block.columns[:: self.columns] // self.columns).to(work.device)
        scale = block.scale[block.rows][:, groups]

        def begin(first: int, part: torch.Tensor, cost: torch.Tensor) -> Nearest:
            at = first // self.columns
            scale[:, at] = self.choose(part, cost, scale[:, at])
            return self.rounder(scale[:, at])

        stored = feed_back(target, block.square, begin, self.columns)
        block.scale[block.rows.start : block.rows.stop, groups] = scale
        codes.copy_(self.round(stored, scale.repeat_interleave(self.columns, 1)[:, : codes.shape[1]]))
        work.sub_(stored)
