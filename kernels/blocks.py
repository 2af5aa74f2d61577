"""Blocks of a few columns with a scale each, side by side: [columns, B].

Every pass of a search then has long rows, whose scales lie side by side as well: on a CPU a pass over
[B, 16] with a scale per block takes ten times as long.
"""

import torch

LANES = 8
"""How many sums `in_lanes` begins with."""


def side_by_side(work: torch.Tensor, columns: int) -> torch.Tensor:
    """Return rows [n, K] as blocks [columns, n K / columns], in new memory."""
    blocks = work.reshape(-1, columns).t()
    return blocks.clone(memory_format=torch.contiguous_format)


def in_rows(blocks: torch.Tensor, columns: int) -> torch.Tensor:
    """Return blocks [c, B] as rows [n, columns] of what is left of them, in new memory."""
    return blocks.t().reshape(-1, columns)


def in_lanes(errors: torch.Tensor) -> torch.Tensor:
    """Return the sum of [columns, B] over each block, [B]; the first rows of `errors` are overwritten.

    Every eighth column first, then the eight sums one after the other: an order that a GPU thread can keep
    to, so that near ties fall alike everywhere.
    """
    lanes = errors[:LANES]
    for first in range(LANES, errors.shape[0], LANES):
        lanes += errors[first : first + LANES]
    total = lanes[0] + lanes[1]
    for lane in lanes[2:]:
        total += lane
    return total


def round_floats_(size: torch.Tensor, digits: int, least: float, spare: torch.Tensor) -> torch.Tensor:
    """Round size >= 0 half to even to `digits` binary digits after the first, in place; return it.

    Below `least`, a power of two, steps stay as they are there. spare: of the same shape, overwritten. All
    float32. The sum with 1.5 x 2^23 steps has no digits below one step.
    """
    torch.clamp(size, min=least, out=spare)
    magic = spare.view(torch.int32).bitwise_and_(0x7F800000).add_((23 - digits << 23) | 1 << 22)
    return size.add_(magic.view(torch.float32)).sub_(magic.view(torch.float32))
