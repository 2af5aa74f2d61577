"""How long a planned conversion takes and how much memory it needs.

The memory rules here are those `convert` runs by. The time is an estimate: the rates below were measured
with ``bench/estimate.py`` on two cores of a desktop CPU, and yours differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...formats.algorithms import ALGORITHMS
from ..options.settings import Settings
from .steps import Plan, Step

LEAST_IN_FLIGHT = 48 << 20
BYTES_IN_FLIGHT = 6
"""Bytes in flight for each element of the largest layer: two bfloat16 layers with their integers,
which is what reading one while the other is quantized takes."""

PROCESS_BYTES = 250 << 20
"""Memory beside the steps: 221 MiB for Python with torch for the CPU before a weight is read, the rest for
chunk buffers and the rows that the check compares. With --low-memory 357 MiB are then foreseen for layers of
3072 x 12288, and 351 measured."""

CARRIED_BYTES = 64 << 20
"""The largest tensor from elsewhere that is held whole only to be kept. Larger ones are copied in pieces."""

READ_RATE = 1.0e9
"""Bytes per second that are read, or copied from file to file."""

FOLD_SPEED = 1.0e8
"""Elements per second of weights whose columns and products with means are summed: 0.5e8 on each core."""


@dataclass(frozen=True)
class Estimate:
    """seconds: None where a planned algorithm has no measured rate. peak_bytes: of the host's memory."""

    seconds: float | None
    peak_bytes: int


def estimate(plan: Plan, settings: Settings) -> Estimate:
    """Estimate the time and peak memory of a plan, before it runs. No time where a layer goes to a device."""
    placed = [s.placement for s in plan.quantized if s.placement is not None]
    work = max((p.bytes for p in placed if p.kind == "cpu"), default=0)
    seconds = _seconds(plan, settings) if all(p.kind == "cpu" for p in placed) else None
    return Estimate(seconds, PROCESS_BYTES + peak_in_flight(plan, settings.low_memory) + work)


def read_bytes(step: Step) -> int:
    """Return the bytes in memory of the float weight that `source.read_weight` returns for a step."""
    if step.changed:
        return 4 * step.source.numel
    width = {"F8_E4M3": 4, "F8_E5M2": 4, "F64": 8, "F32": 4}.get(step.source.dtype, 2)
    return width * step.source.numel


def bytes_held(step: Step) -> int:
    """Return the bytes a step holds from reading to writing. Kept tensors go from file to file."""
    if is_carried(step):
        return step.source.nbytes
    if step.action not in ("quantize", "cast") and not step.changed:
        return 0
    return read_bytes(step) + step.output_bytes


def is_carried(step: Step) -> bool:
    """Return whether a kept tensor is read in its turn: it is elsewhere, and not too large to be held."""
    kept = step.action == "keep" and not step.changed
    return kept and step.source.elsewhere and step.source.nbytes <= CARRIED_BYTES


def in_flight_limit(plan: Plan, low_memory: bool = False) -> int:
    """Return the bytes that all steps together may hold while the plan runs; one larger passes alone.

    With low_memory that is every step.
    """
    return 1 if low_memory else max(LEAST_IN_FLIGHT, BYTES_IN_FLIGHT * plan.largest_layer)


def peak_in_flight(plan: Plan, low_memory: bool = False) -> int:
    """Return the bytes that the steps will hold at most: no more than the limit, or than there are."""
    held = [bytes_held(step) for step in plan]
    return min(sum(held), max(in_flight_limit(plan, low_memory), max(held, default=0)))


def _seconds(plan: Plan, settings: Settings) -> float | None:
    """Take the slower of reading and work, which overlap, after the folds. None where a rate is not known."""
    work = [_step_seconds(step, plan, settings) for step in plan.quantized]
    known = [seconds for seconds in work if seconds is not None]
    if len(known) < len(work):
        return None
    converted = max(sum(known), sum(step.source.nbytes for step in plan if step.outputs) / READ_RATE)
    return converted + _folded_elements(plan) / FOLD_SPEED


def _folded_elements(plan: Plan) -> int:
    """Count what is read before the first step to measure factors: the weights that read folded inputs."""
    sizes = {step.layer_name: step.source.numel for step in plan if step.source is not None}
    return sum(sizes[c.layer] for one in plan.inputs for c in one.columns)


def _step_seconds(step: Step, plan: Plan, settings: Settings) -> float | None:
    assert step.format is not None
    work = ALGORITHMS[step.algorithm].work(
        step.shape,
        plan.calibration.tokens(step.layer_name, settings.calib_samples),
        settings.num_iter,
        step.format.passes(settings.quip_passes),
    )
    if work is not None:
        return work.seconds
    speed = step.format.speed()
    return step.source.numel / speed if speed else None
