"""LDLQ's column loop for grids whose levels are not evenly spaced, or whose scales are chosen on the way.

The same update as `kernels.ldlq_` (Frantar et al., "GPTQ", 2022, Algorithm 1), in runs of columns: a run
takes the errors of all earlier columns in one product, and only its own column by column.
"""

from collections.abc import Callable

import torch

RUN = 16
"""Columns in a run where a scale does not say otherwise."""

Nearest = Callable[[torch.Tensor], torch.Tensor]
"""Takes weights [n] of one column and returns the nearest values that can be stored, [n]."""


def feed_back(
    target: torch.Tensor,
    feedback: torch.Tensor,
    begin: Callable[[int, torch.Tensor, torch.Tensor], Nearest],
    run: int = RUN,
) -> torch.Tensor:
    """Return what LDLQ stores for the columns of `target` [n, B], float32 [n, B]; `target` is left as it was.

    feedback: float32 [B, B], the diagonal block of U; entries below its diagonal are not read. begin: called
    with the first column of each run of `run` columns, the run's weights [run, n] with the errors of all
    earlier runs in them, and what a squared error in each of its columns costs, [run]; returns how the run is
    rounded.
    """
    columns = target.t().clone(memory_format=torch.contiguous_format)
    errors, stored = torch.zeros_like(columns), torch.empty_like(columns)
    upper, diagonal = feedback.t().contiguous(), feedback.diagonal()
    cost, divisors = diagonal.square().reciprocal(), diagonal.tolist()
    for first in range(0, columns.shape[0], run):
        last = min(first + run, columns.shape[0])
        part = columns[first:last]
        if first:
            part.addmm_(upper[first:last, :first], errors[:first], alpha=-1.0)
        nearest = begin(first, part, cost[first:last])
        for j in range(first, last):
            if j > first:
                columns[j].addmv_(errors[first:j].t(), upper[j, first:j], alpha=-1.0)
            stored[j] = nearest(columns[j])
            torch.sub(columns[j], stored[j], out=errors[j]).div_(divisors[j])
    return stored.t()
