"""A grid: what an algorithm rounds a weight to. Algorithms take one, and know no format."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..kernels import descend_, ldlq_
from ..kernels.ldlq import MAX_COLUMNS
from ..kernels.scales import QMAX, absmax_rows, scale_from_absmax


@dataclass(frozen=True)
class Block:
    """Where LDLQ or coordinate descent stands: some rows and columns of a weight.

    square: float32 [B, B], the block on the diagonal of U for LDLQ, of H for coordinate descent. scale: of
    all rows, in `Grid.scale_shape`. rows: those at work. columns: int64 [B] on the CPU, where the block's
    columns stand in the weight.
    """

    square: torch.Tensor
    scale: torch.Tensor
    rows: slice
    columns: torch.Tensor


@dataclass(frozen=True)
class Grid:
    """The integers -levels to levels times a scale; a scale serves `rows` x `columns` weights (0: all).

    levels: the largest code. rotation: ConvRot group of the space that the codes live in, 0 for none.
    Codes are integers, as int8 or float32. The scales of a weight [N, K] are float32 in `scale_shape`;
    methods that work on float32 rows [n, K] take the scale of those rows as `view` returns it, where they
    do not say otherwise, and return float32. A grid of another kind overrides what it does otherwise.
    """

    fits: ClassVar[bool] = False
    """Whether `fit` looks for better scales than those from the peaks, so that nobody else needs to."""

    refits: ClassVar[bool] = False
    """Whether a row has one scale, which coordinate descent may set anew for the codes that it found."""

    wants_peak: ClassVar[bool] = False
    """Whether `fit` of some rows takes the largest magnitude of the whole weight."""

    levels: int = QMAX
    rows: int = 1
    columns: int = 0
    rotation: int = 0

    @property
    def top(self) -> float:
        """Return the largest value that a scale of one stands for: `levels`, unless a subclass differs."""
        return self.levels

    @property
    def span(self) -> int:
        """Return how many columns LDLQ takes at once at most: those of whole scales, here of one."""
        return min(MAX_COLUMNS, self.columns) if self.columns else MAX_COLUMNS

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of the scales of a weight [N, K]: [ceil(N / rows), ceil(K / columns)]."""
        n, k = shape
        return -(-n // (self.rows or n)), -(-k // (self.columns or k))

    def peaks(self, work: torch.Tensor) -> torch.Tensor:
        """Return max |w| of what shares a scale, in rows `work` [n, K] that begin at a multiple of `rows`.

        Shaped as the scales of a weight [n, K]; NaN where there is one.
        """
        if self.columns or self.rows > 1:
            return self._blocks(work.abs()).amax((1, 3))
        peak = absmax_rows(work)
        return peak if self.rows else peak.amax().reshape(1, 1)

    def scale_from(self, peaks: torch.Tensor) -> torch.Tensor:
        """Return scales, shaped like `peaks`, that spread the levels over them; NaN and Inf pass through."""
        return self.settle(scale_from_absmax(peaks, self.top))

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales with which rows `work` (as for `peaks`) are rounded where nobody searches.

        Shaped as the scales of a weight [n, K]; NaN and Inf in the rows show in them. cost: what a squared
        error costs in each column, [K], for grids that look for the best scale; None for the same in all.
        """
        return self.scale_from(self.peaks(work))

    def scale_in_all(self, peak: torch.Tensor) -> torch.Tensor:
        """Return the scale that all of a weight shares besides others, from its largest magnitude, [].

        For a grid that wants the peak: rows can then be rounded without the others (`WeightLayout.round`).
        """
        raise TypeError(f"{type(self).__name__} has no scale in all")

    def settle(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the nearest scales that can be stored; by default any float32 can."""
        return scale

    def errors(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the squared rounding error summed over what shares a scale, for rows as in `peaks`.

        Shaped as `peaks`.
        """
        error = self.residual_(work.clone(), self.round(work, scale), scale).square_()
        if self.columns or self.rows > 1:
            return self._blocks(error).sum((1, 3))
        return error.sum(1, keepdim=True) if self.rows else error.sum().reshape(1, 1)

    def view(self, scale: torch.Tensor, part: slice, columns: int) -> torch.Tensor:
        """Return the scale of rows `part` of all, broadcastable to [n, K]; columns: K."""
        own = self.row_scale(scale, part)
        return own.repeat_interleave(self.columns, 1)[:, :columns] if self.columns else own

    def row_scale(self, scale: torch.Tensor, part: slice) -> torch.Tensor:
        """Return the scales of rows `part`: [n or 1, ceil(K / columns)]."""
        if self.rows == 0:
            return scale
        if self.rows == 1:
            return scale[part]
        return scale[torch.arange(part.start, part.stop, device=scale.device) // self.rows]

    def column_view(self, scale: torch.Tensor, part: slice, column: int) -> torch.Tensor:
        """Return the scale of rows `part` in the columns that share one with `column`: [n or 1, 1]."""
        own = self.row_scale(scale, part)
        return own[:, column // self.columns].unsqueeze(1) if self.columns else own

    def round(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes [n, K] nearest to `work`, half to even, saturated."""
        return self.clamp_((work * scale.reciprocal()).round_())

    def clamp_(self, codes: torch.Tensor) -> torch.Tensor:
        """Saturate codes at the levels, in place; return them."""
        return codes.clamp_(-self.levels, self.levels)

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the floats that codes (float32, of any shape that fits the scale) stand for."""
        return codes * scale

    def residual_(self, work: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Subtract what the codes [n, B] stand for from `work` [n, B], in place; return it.

        scale: broadcastable to [n, B].
        """
        return work.addcmul_(codes, scale.expand(work.shape[0], work.shape[1]), value=-1)

    def ldlq_(
        self, codes: torch.Tensor, work: torch.Tensor, feedback: torch.Tensor, scale: torch.Tensor
    ) -> None:
        """Quantize the columns of `work` [n, B] into int8 `codes` with error feedback; see `kernels.ldlq_`.

        feedback: float32 [B, B], the block of U on its diagonal. scale: as `column_view` returns it; all B
        columns share it.
        """
        ldlq_(codes, work, feedback, scale, self.levels)

    def ldlq_block_(
        self, codes: torch.Tensor, work: torch.Tensor, target: torch.Tensor, block: Block
    ) -> None:
        """Quantize a block of columns with error feedback, and leave in `work` what the codes do not hold.

        codes: int8 [n, B], written. work: float32 [n, B], the weights; what the codes stand for is subtracted
        from them. target: [n, B], the weights with the errors of all earlier blocks fed back; may be
        overwritten. B is at most `span`. A grid that chooses scales as it goes writes them to `block.scale`.
        """
        scale = self.column_view(block.scale, block.rows, int(block.columns[0]))
        self.ldlq_(codes, target, block.square, scale)
        self.residual_(work, codes, scale)

    def block_scale(self, block: Block) -> torch.Tensor:
        """Return the scales of a block, broadcastable to [n, B]."""
        own = self.row_scale(block.scale, block.rows)
        return own[:, (block.columns // self.columns).to(own.device)] if self.columns else own

    def descend_block_(self, codes: torch.Tensor, gradient: torch.Tensor, block: Block) -> torch.Tensor:
        """Move the codes of a block, column by column, to where the loss is least; return the change [n, B].

        codes: int8 [n, B], written. gradient: float32 [n, B], (W - Q) H in these columns; may be overwritten.
        change: by how much the values move. B is at most `span`; scales stay. See `kernels.descend_`.
        """
        scale = self.column_view(block.scale, block.rows, int(block.columns[0]))
        return descend_(codes, gradient, block.square, scale, self.levels)

    def change(self, codes: torch.Tensor, moves: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return how much values change when their codes move by `moves`; all shapes fit each other."""
        return moves * scale

    def unit(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the mean squared step between codes in each row of `work` [n, K], [n, 1]."""
        return (scale * scale).expand_as(work).mean(1, keepdim=True)

    def shifted(
        self, codes: torch.Tensor, gradient: torch.Tensor, curvature: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Return the codes nearest to the codes' values plus gradient / curvature: a Newton step.

        For one column each: codes, gradient and scale [n]; curvature: the diagonal of H there.
        """
        return self.clamp_((codes + gradient / (scale * curvature)).round_())

    def _blocks(self, work: torch.Tensor) -> torch.Tensor:
        """Return [n, K] as [row blocks, rows, column blocks, columns], padded with zeros."""
        n, k = work.shape
        rows, columns = self.rows or n, self.columns or k
        padded = torch.nn.functional.pad(work, (0, -k % columns, 0, -n % rows))
        return padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
