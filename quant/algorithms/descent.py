"""Coordinate descent after LDLQ: each code in turn to where the loss is least given all others.

LDLQ decides each column once, knowing the errors before it and expecting the later ones to make up for its
own; passes over all columns settle what came out otherwise (Behdin et al., "QuantEase", 2023).
"""

import torch

from ..grid import Block, Grid
from .hessian import block_bounds


def damped_(h: torch.Tensor, damping: float) -> torch.Tensor:
    """Add `damping` of its mean diagonal to the diagonal of h [K, K], in place; return it."""
    h.diagonal().add_(damping * h.diagonal().mean())
    return h


def coordinate_descent_(
    codes: torch.Tensor,
    error: torch.Tensor,
    h: torch.Tensor,
    grid: Grid,
    scale: torch.Tensor,
    part: slice,
    passes: int,
    columns: torch.Tensor | None = None,
    refit: bool = False,
) -> None:
    """Improve the int8 codes [n, K] of rows `part` in place: at most `passes` times over all columns.

    error: float32 [n, K], what the codes leave of the weights; kept up to date. h: the damped Hessian. scale:
    of all rows, as the grid shapes it. columns: int64 [K] on the CPU, where each column stands in the weight,
    None for in order. refit: after half of the passes give each row the scale that is best for its codes, if
    the grid has one to a row. Ends where a pass moves nothing. Blocks of columns share one product; inside a
    block the gradient follows column by column.
    """
    columns = torch.arange(codes.shape[1]) if columns is None else columns
    for number in range(passes):
        if refit and grid.refits and 2 * number in (passes, passes + 1):
            _refit_(codes, error, h, scale, part)
        moved = torch.zeros((), dtype=torch.bool, device=codes.device)
        for c0, c1 in block_bounds(codes.shape[1], grid):
            block = Block(h[c0:c1, c0:c1], scale, part, columns[c0:c1])
            change = grid.descend_block_(codes[:, c0:c1], error @ h[:, c0:c1], block)
            error[:, c0:c1] -= change
            moved |= change.any()
        if not moved:
            return


def _refit_(
    codes: torch.Tensor, error: torch.Tensor, h: torch.Tensor, scale: torch.Tensor, part: slice
) -> None:
    """Move the scale [N, 1] of rows `part` to the least of (e - d q) H (e - d q)^T; keep `error` up to date.

    Rows of zeros, and those whose best scale would not be positive, keep theirs.
    """
    q = codes.float()
    weighed = q @ h
    curvature = (weighed * q).sum(1, keepdim=True)
    change = (weighed * error).sum(1, keepdim=True) / curvature
    own = scale[part]
    change = torch.where((curvature > 0) & (own + change > 0), change, 0.0)
    scale[part] = own + change
    error.addcmul_(q, change, value=-1)
