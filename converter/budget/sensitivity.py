"""How much a layer's output loses in each format, measured on some of its rows before any is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F

from ...files.checkpoint import Checkpoint
from ...folding.factors import Folds
from ...formats.errors import ConversionError
from ...quant.algorithms import LayerResult, LayerStats, quantize_layer
from ..fold.stats import folded_stats
from ..options.settings import Settings
from ..plan.calibration import Calibration
from ..plan.steps import Step
from ..quantize.layer import layer_options
from ..quantize.source import read_weight

ROWS = 128
"""Rows of a layer that are tried: their mean error is within some percent of the whole layer's."""

RUN = 16
"""Rows beside each other among them."""

TOKENS = 1024
"""Held-back inputs that outputs are compared on."""

HEAVY = 32
"""Inputs of the greatest norm, and as many of the others, for which the outputs of all rows are made: in some
layers few inputs, or few rows, have nearly all of the signal."""

Metric = Literal["outputs", "input energy", "weights"]
"""What an error is measured in: outputs for held-back calibration inputs; weights, scaled by the energy of
their input channels; weights alone."""


@dataclass(frozen=True)
class Sensitivity:
    """errors: for each way to store the layer, its noise over its signal, both as energy. metric: of what."""

    errors: tuple[float, ...]
    metric: Metric


def measure(
    checkpoint: Checkpoint,
    ways: Sequence[Step],
    calibration: Calibration,
    settings: Settings,
    folds: Folds | None = None,
) -> Sensitivity:
    """Store some rows of a layer in each of several ways and compare them with their source.

    ways: steps of one layer that differ in how it is stored; one that keeps it loses nothing. Rows are taken
    evenly over the layer, and rounded as the conversion will do it, from three quarters of the layer's
    calibration inputs; outputs are compared on the rest of these, with activations as they run. What the
    layer's other rows lose is taken to be as much beside their weights' energy. ConversionError names a layer
    that cannot be stored.
    """
    layer = ways[0].layer_name
    weight = read_weight(checkpoint, ways[0], folds)
    rows = _some_rows(weight, max(w.format.row_step if w.format else 1 for w in ways))
    stats = calibration.stats(layer)
    stats = folded_stats(folds, layer, stats)
    fit, held_back = _split(stats)
    energy = None if stats is None or stats.channel_max is None else stats.channel_max.float().square()
    metric: Metric = (
        "outputs" if held_back is not None else "input energy" if energy is not None else "weights"
    )
    per_signal = 0.0
    if stats is not None and stats.samples is not None and held_back is not None:
        whole = weight.float()
        signal = _signal(whole, stats.samples)
        per_signal = float(_energy(whole) / _energy(rows).clamp(min=1e-30)) / signal if signal > 0 else 0.0
    errors = []
    for way in ways:
        if way.format is None:
            errors.append(0.0)
            continue
        try:
            result = quantize_layer(rows, fit, layer_options(way, settings), None, layer)
        except ValueError as e:
            raise ConversionError(str(e)) from e
        if held_back is not None:
            errors.append(_output_noise(rows, result, held_back) * per_signal)
        else:
            errors.append(_weight_error(rows, result, energy))
    return Sensitivity(tuple(errors), metric)


def _some_rows(weight: torch.Tensor, row_step: int) -> torch.Tensor:
    """Return ROWS rows [<= N, K] in runs that are evenly spaced and start where scales do."""
    run = max(RUN, row_step)
    starts = torch.arange(0, weight.shape[0], run)
    wanted = max(1, ROWS // run)
    if len(starts) <= wanted:
        return weight
    chosen = starts[torch.arange(wanted) * len(starts) // wanted].tolist()
    return torch.cat([weight[s : s + run] for s in chosen])


def _split(stats: LayerStats | None) -> tuple[LayerStats | None, torch.Tensor | None]:
    """Keep every fourth token back from the statistics that round."""
    if stats is None or stats.samples is None or stats.synthetic or stats.samples.shape[0] < 4:
        return stats, None
    fit = torch.arange(stats.samples.shape[0]) % 4 != 3
    return replace(stats, samples=stats.samples[fit], kept={}), stats.samples[~fit][:TOKENS].float()


def _energy(x: torch.Tensor) -> torch.Tensor:
    return x.float().square().sum()


def _signal(weight: torch.Tensor, samples: torch.Tensor) -> float:
    """Return the energy of the output of a float32 weight for one input, as the mean over samples [n, K]."""
    order = torch.linalg.vector_norm(samples, dim=1, dtype=torch.float32).argsort(descending=True)
    heavy, others = order[:HEAVY], order[HEAVY:]
    chosen = others[:: max(1, len(others) // HEAVY)]
    energies = [float(_energy(F.linear(samples[i].float(), weight))) for i in (heavy, chosen)]
    return (energies[0] + energies[1] * len(others) / max(1, len(chosen))) / len(samples)


def _output_noise(rows: torch.Tensor, result: LayerResult, tokens: torch.Tensor) -> float:
    """Return the energy of the rows' output error for one input, as the mean over tokens [n, K]."""
    exact = F.linear(tokens, rows.float())
    inputs = tokens if result.pre_quant_scale is None else tokens * result.pre_quant_scale
    got = F.linear(inputs.to(result.weight.dtype), result.weight).float()
    return float(_energy(got - exact)) / len(tokens)


def _weight_error(rows: torch.Tensor, result: LayerResult, energy: torch.Tensor | None) -> float:
    stored, exact = result.weight.dequantize().float(), rows.float()
    if result.pre_quant_scale is not None:
        stored = stored * result.pre_quant_scale
    weigh = 1.0 if energy is None else energy
    return _ratio((stored - exact).square() * weigh, exact.square() * weigh)


def _ratio(noise: torch.Tensor, signal: torch.Tensor) -> float:
    """Return noise over signal; without signal nothing can be lost."""
    total = float(signal.double().sum())
    return float(noise.double().sum()) / total if total > 0 else 0.0
