"""The factors of a plan's folds, from its calibration and one pass over the weights that read the inputs.

t = rms(x)^a / rms(w)^(1 - a) per channel, with a geometric mean of one (Xiao et al. 2023, SmoothQuant, eq. 4,
with energies for maxima because a rotation follows), rounded to a quarter of an octave; mu = E[x], rounded to
an eighth of the channel's spread: a fold is exact with any, and these are short in the file. What evens out
inputs makes weights uneven, so a is of the formats (`Format.fold_balance`): the mean of those that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ...files.checkpoint import Checkpoint
from ...folding.coding import KEY, encoded
from ...folding.factors import MOST, STEPS, Factors, Folds, narrowed, product, widened
from ...folding.inputs import Columns, FoldedInput
from ..plan.calibration import Calibration
from ..plan.steps import Plan, Step
from ..progress import Progress, Silent
from .source import read_weight

_FINE = 8
"""Parts of a channel's rms that its mean is rounded to."""

_ROWS = 1 << 20


def with_folds(plan: Plan, checkpoint: Checkpoint, progress: Progress | None = None) -> Plan:
    """Return the plan with the factors of its folds, in its header as well; reads weights and calibration.

    A plan that has them, or folds nothing, is returned as it is.
    """
    if plan.folds is not None or not plan.inputs:
        return plan
    return knowing(plan, measured(plan, checkpoint, progress or Silent()))


def knowing(plan: Plan, folds: Folds | None) -> Plan:
    """Return the plan with the factors of its inputs, measured for another plan of the same file."""
    if folds is None:
        return plan
    return replace(plan, folds=folds, metadata={**plan.metadata, KEY: encoded(folds)})


def measured(plan: Plan, checkpoint: Checkpoint, progress: Progress) -> Folds:
    """Measure the factors of all inputs of a plan; weights are read in turn, with their LoRAs in them."""
    steps = {s.layer_name: s for s in plan}
    gains: dict[tuple[int, str], torch.Tensor] = {}
    means: dict[tuple[str, int], torch.Tensor] = {}
    factors = []
    layers = [c.layer for one in plan.inputs for c in one.columns]
    progress.start(sum(steps[layer].source.nbytes for layer in layers), 0)
    try:
        for number, one in enumerate(plan.inputs):
            activity = _Activity.of(one, plan.calibration, means)
            energy, rows = torch.zeros(one.width, dtype=torch.float64), 0
            for c in one.columns:
                step = steps[c.layer]
                weight = read_weight(checkpoint, step)
                energy += _squares(weight, c, one.width)
                rows += len(weight)
                if activity.mean is not None:
                    gains[number, c.layer] = product(weight, c.start, widened(activity.mean, one))
                progress.advance(c.layer, step.source.nbytes)
                if activity.mean is not None:
                    means[c.layer, c.start] = widened(activity.mean, one)
            exponents = torch.zeros(one.factors, dtype=torch.int8)
            if one.smooth:
                balance = _balance([steps[c.layer] for c in one.columns])
                exponents = activity.exponents(narrowed(energy / rows, one), balance)
            factors.append(Factors(exponents, activity.mean))
    finally:
        progress.stop()
    return Folds(plan.inputs, factors, lambda number, layer: gains[number, layer])


def _balance(readers: list[Step]) -> float:
    """Return a of an input by the formats of the layers that read it; of those alone that are quantized."""
    own = [s.format.fold_balance for s in readers if s.format is not None]
    return sum(own) / len(own) if own else 0.0


def _squares(weight: torch.Tensor, c: Columns, width: int) -> torch.Tensor:
    """Return the sum of squares of each column that reads the input, float64 [width]."""
    total = torch.zeros(width, dtype=torch.float64)
    for rows in weight[:, c.start : c.start + width].split(max(1, _ROWS // width)):
        total += rows.float().square().sum(0, dtype=torch.float64)
    return total


class _Activity:
    """What calibration knows of an input.

    mean: float32 [C], rounded; None where none is taken off. square: E[(x - mean)^2], float64 [C].
    """

    def __init__(self, mean: torch.Tensor | None, square: torch.Tensor) -> None:
        self.mean, self.square = mean, square

    @classmethod
    def of(
        cls, one: FoldedInput, calibration: Calibration, means: Mapping[tuple[str, int], torch.Tensor]
    ) -> _Activity:
        """Average over the records of the layers that read the input.

        means: what another input takes off a layer's columns, by its name and their start.
        """
        known = [c for c in one.columns if calibration.has(c.layer, "samples")]
        records = {calibration.records[c.layer]: c for c in known}
        first, second = (torch.zeros(one.width, dtype=torch.float64) for _ in range(2))
        for c in records.values():
            stats = calibration.stats(c.layer)
            assert stats is not None
            assert stats.samples is not None
            off = means.get((c.layer, c.start), torch.zeros(1)).double()
            for x in stats.samples[:, c.start : c.start + one.width].split(max(1, _ROWS // one.width)):
                share = 1 / (len(stats.samples) * len(records))
                first += (x.double() - off).sum(0) * share
                second += (x.double() - off).square().sum(0) * share
        first, second = narrowed(first, one), narrowed(second, one)
        if not one.mean:
            return cls(None, second)
        spread = (second - first.square()).clamp_min(0)
        mean = _rounded(first, spread.sqrt())
        off = first - mean.double()
        return cls(mean, spread + off.square())

    def exponents(self, weights: torch.Tensor, balance: float) -> torch.Tensor:
        """Return int8 exponents of the factors, by the mean squares of the columns of weights, [C]."""
        octaves = (balance * self.square.log2() - (1 - balance) * weights.log2()) / 2
        alive = torch.isfinite(octaves)
        if not bool(alive.any()):
            return torch.zeros(len(octaves), dtype=torch.int8)
        steps = STEPS * torch.where(alive, octaves - octaves[alive].mean(), 0.0)
        return steps.round().clamp(-MOST, MOST).to(torch.int8)


def _rounded(mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Round means to the power of two next below a part of the channel's spread; float32."""
    least = torch.maximum(spread / _FINE, mean.abs() * 2.0**-20).clamp_min(2.0**-100)
    grid = torch.exp2(least.log2().floor())
    return ((mean / grid).round() * grid).float()
