"""Coordinate descent after LDLQ: each code in turn to where the loss is least given all others.

LDLQ decides each column once, knowing the errors before it and expecting the later ones to make up for its
own; passes over all columns settle what came out otherwise (Behdin et al., "QuantEase", 2023). Scales stay.
"""

import torch

from ..grid import Block, Grid
from .hessian import block_bounds, layer_hessian
from .types import LayerStats, QuantizeOptions


def damped_hessian(
    stats: LayerStats, options: QuantizeOptions, device: torch.device, damping: float
) -> torch.Tensor:
    """Return H [K, K] float32, its columns as stored, with `damping` of its mean diagonal on the diagonal."""
    h = layer_hessian(stats, options, device)
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
) -> None:
    """Improve the int8 codes [n, K] of rows `part` in place: at most `passes` times over all columns.

    error: float32 [n, K], what the codes leave of the weights; kept up to date. h: the damped Hessian. scale:
    of all rows, as the grid shapes it. Ends where a pass moves nothing. Blocks of columns share one product;
    inside a block the gradient follows column by column.
    """
    bounds = block_bounds(codes.shape[1], grid)
    for _ in range(passes):
        moved = torch.zeros((), dtype=torch.bool, device=codes.device)
        for c0, c1 in bounds:
            block = Block(h[c0:c1, c0:c1], scale, part, torch.arange(c0, c1))
            change = grid.descend_block_(codes[:, c0:c1], error @ h[:, c0:c1], block)
            error[:, c0:c1] -= change
            moved |= change.any()
        if not moved:
            return
