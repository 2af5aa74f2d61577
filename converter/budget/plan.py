"""The plan whose layers have the best mix of formats for a size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...files.checkpoint import Checkpoint
from ...files.header import build_header
from ...formats.errors import ConversionError
from ..options.settings import Settings
from ..options.size import shown, size_in_bytes
from ..plan.build import build_plan
from ..plan.inputs import job_metadata
from ..plan.mix import Mix, Point
from ..plan.steps import Plan
from .candidates import Candidate, candidates
from .importance import importance
from .knapsack import Choice, Option, best_choice, least_bytes
from .uniform import uniform_or

if TYPE_CHECKING:
    from ...folding.factors import Folds
    from .sensitivity import Sensitivity

POINTS = 10
"""Sizes on the curve of size against quality."""


def make_plan(checkpoint: Checkpoint, settings: Settings) -> Plan:
    """Decide what happens to every tensor, as `build_plan`; for a target size, measure layers first."""
    return mixed_plan(checkpoint, settings) if settings.target_size else build_plan(checkpoint, settings)


def mixed_plan(checkpoint: Checkpoint, settings: Settings) -> Plan:
    """Return the plan whose layers have the formats that lose least within ``target_size``.

    Reads weights and calibration to find out what each layer loses in each format. ConversionError where
    not even the smallest formats fit; it names the size that they need.
    """
    from ..quantize.measure import knowing, with_folds
    from .sensitivity import measure

    assert settings.target_size is not None
    target = size_in_bytes(settings.target_size, checkpoint.nbytes)
    layers, plain = candidates(checkpoint, settings)
    folds = with_folds(plain, checkpoint).folds
    sizes = [[build_header(step.outputs, {})[2] for step in layer.steps] for layer in layers]
    smallest = [row.index(min(row)) for row in sizes]
    least_plan = knowing(_plan(checkpoint, settings, layers, smallest), folds)
    least = file_size(checkpoint, least_plan, settings)
    if least > target:
        raise ConversionError(
            f"--target-size {shown(target)}: {checkpoint.path} cannot become that small: the smallest "
            f"formats that its layers may have make a file of {least} bytes ({shown(least)}); what stays as "
            f"it is counts too (--dry-run lists it)"
        )
    found = [measure(checkpoint, layer.steps, plain.calibration, settings, folds) for layer in layers]
    counts = importance(layers, plain.calibration.influence)
    items = [
        [Option(size, error * weight) for size, error in zip(row, f.errors, strict=True)]
        for weight, row, f in zip(counts.weights, sizes, found, strict=True)
    ]
    rest = least - least_bytes(items)
    choice, plan = _fitted(checkpoint, settings, layers, items, target, rest, folds)
    size = file_size(checkpoint, plan, settings)
    mix = replace(_mix(layers, found, items, choice, size, target, least, rest), at_output=counts.measured)
    return replace(plan, notes=(*plan.notes, *mix.lines()), mix=mix)


def file_size(checkpoint: Checkpoint, plan: Plan, settings: Settings) -> int:
    """Return the bytes of the file that a plan makes, header included."""
    metadata = {**plan.metadata, **job_metadata(checkpoint, plan, settings)}
    return build_header(plan.outputs, metadata)[2]


def _plan(
    checkpoint: Checkpoint, settings: Settings, layers: Sequence[Candidate], taken: Sequence[int]
) -> Plan:
    names = {layer.name: layer.formats[t] for layer, t in zip(layers, taken, strict=True)}
    return build_plan(checkpoint, settings, names)


def _fitted(
    checkpoint: Checkpoint,
    settings: Settings,
    layers: Sequence[Candidate],
    items: Sequence[Sequence[Option]],
    target: int,
    rest: int,
    folds: Folds | None,
) -> tuple[Choice, Plan]:
    """Return the best choice whose file, header included, is no larger than the target.

    rest: bytes of the smallest file beside the items. A header depends a little on the formats in it, so
    what is too much is taken off the budget until the file fits, as the smallest does.
    """
    from ..quantize.measure import knowing

    budget = target - rest
    while True:
        allowed = max(budget, least_bytes(items))
        choice = uniform_or(best_choice(items, allowed), layers, items, allowed)
        plan = knowing(_plan(checkpoint, settings, layers, choice.taken), folds)
        over = file_size(checkpoint, plan, settings) - target
        if over <= 0:
            return choice, plan
        budget = min(budget, choice.bytes) - over


def _mix(
    layers: Sequence[Candidate],
    found: Sequence[Sensitivity],
    items: Sequence[Sequence[Option]],
    choice: Choice,
    size: int,
    target: int,
    least: int,
    rest: int,
) -> Mix:
    best = sum(items[i][_best(options)].bytes for i, options in enumerate(items))
    low = least_bytes(items)
    budgets = [low + (best - low) * i // (POINTS - 1) for i in range(POINTS)]
    points = [best_choice(items, budget) for budget in dict.fromkeys(budgets)]
    taken = ((layer.formats[t], layer.steps[t]) for layer, t in zip(layers, choice.taken, strict=True))
    formats = Counter(step.format.kind().lower() if step.format else name for name, step in taken)
    return Mix(
        target=target,
        size=size,
        formats=dict(formats.most_common()),
        metrics=dict(Counter(f.metric for f in found).most_common()),
        sqnr_db=_decibels(choice),
        gap=choice.gap,
        least=least,
        curve=tuple(Point(rest + p.bytes, _decibels(p)) for p in points),
    )


def _best(options: Sequence[Option]) -> int:
    return min(range(len(options)), key=lambda i: (options[i].error, options[i].bytes))


def _decibels(choice: Choice) -> float:
    """Return the signal over the noise that the sum of errors stands for."""
    return 10 * math.log10(1 / choice.error) if choice.error > 0 else math.inf
