"""Statistics of a layer's inputs as they are behind folds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...folding.factors import Folds, widened
from ...quant.algorithms import LayerStats


def folded_stats(folds: Folds | None, layer: str, stats: LayerStats | None) -> LayerStats | None:
    """Return the statistics of a layer's folded inputs: (x - mu) / t in the columns that a fold has."""
    changed = None if folds is None else folds.tensors.get(f"{layer}.weight")
    if folds is None or stats is None or changed is None or not changed.columns:
        return stats
    width = max(c.start + folds.inputs[i].width for i, c in changed.columns)
    shift, scale = torch.zeros(width), torch.ones(width)
    for number, c in changed.columns:
        one, made = folds.inputs[number], folds.factors[number]
        part = slice(c.start, c.start + one.width)
        scale[part] *= widened(made.scale, one)
        if made.mean is not None:
            shift[part] += widened(made.mean, one)
    return _folded(stats, shift, scale)


def _folded(stats: LayerStats, shift: torch.Tensor, scale: torch.Tensor) -> LayerStats:
    """Return statistics of (x - shift) / scale; channels beyond these stay as they are."""
    width = len(shift)

    def fold(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        x = x.float().clone()
        x[..., :width] = (x[..., :width] - shift) / scale
        return x

    changed: dict[str, Any] = {}
    if stats.samples is not None:
        changed["samples"] = fold(stats.samples, shift)
    if stats.channel_mean is not None:
        changed["channel_mean"] = fold(stats.channel_mean, shift)
    if stats.extra_directions is not None:
        changed["extra_directions"] = fold(stats.extra_directions, torch.zeros_like(shift))
    if stats.channel_max is not None:
        # What is known is |x| <= channel_max: |x - mu| <= channel_max + |mu|.
        changed["channel_max"] = fold(stats.channel_max, -shift.abs())
    peak = changed["channel_max"].amax().item() / 127 if "channel_max" in changed else None
    return replace(stats, **changed, input_scale=peak, kept=None)
