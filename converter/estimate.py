"""How long a planned conversion takes and how much memory it needs.

The memory rule here is the one `convert` runs by. The time is an estimate: the rates below were measured
with ``bench/estimate.py`` on two cores of a desktop CPU, and yours differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .contract import LayerFormat
from .plan import Plan, Step

LEAST_IN_FLIGHT = 48 << 20
BYTES_IN_FLIGHT = 6
"""Bytes in flight for each element of the largest layer: two bfloat16 layers with their integers,
which is what reading one while the other is quantized takes."""

PROCESS_BYTES = 230 << 20
"""Resident memory of Python with torch for the CPU before a weight is read."""

READ_RATE = 1.0e9
"""Bytes a second that are read, or copied from file to file."""

ELEMENTS_PER_SECOND: dict[str, dict[str, float]] = {
    "rtn": {"row": 2.0e8, "row + convrot": 6.0e7, "tensor": 2.0e8, "tensor + convrot": 6.0e7, "block": 2.0e8},
}
"""Weights quantized and checked a second, by algorithm and kind of format. Algorithms that are not listed
have no estimate."""


@dataclass(frozen=True)
class Estimate:
    """seconds: None where a planned algorithm has no measured rate. peak_bytes: of the whole process."""

    seconds: float | None
    peak_bytes: int


def estimate(plan: Plan) -> Estimate:
    """Time and peak memory of a plan, before it runs."""
    computing = max((s.placement.bytes for s in plan.quantized if s.placement is not None), default=0)
    return Estimate(_seconds(plan), PROCESS_BYTES + peak_in_flight(plan) + computing)


def read_bytes(step: Step) -> int:
    """Bytes in memory of the float weight that `source.read_weight` returns for a step."""
    if step.merges:
        return 4 * step.source.numel
    width = {"F8_E4M3": 4, "F8_E5M2": 4, "F64": 8, "F32": 4}.get(step.source.dtype, 2)
    return width * step.source.numel


def bytes_held(step: Step) -> int:
    """Bytes a step holds between its reading and its writing. Kept tensors go from file to file."""
    if step.action not in ("quantize", "cast") and not step.merges:
        return 0
    return read_bytes(step) + step.output_bytes


def in_flight_limit(plan: Plan) -> int:
    """The bytes that all steps together may hold while the plan runs; one larger step passes alone."""
    return max(LEAST_IN_FLIGHT, BYTES_IN_FLIGHT * plan.largest_layer)


def peak_in_flight(plan: Plan) -> int:
    """What the steps will hold at most: no more than the limit, or than there is."""
    held = [bytes_held(step) for step in plan]
    return min(sum(held), max(in_flight_limit(plan), max(held, default=0)))


def format_kind(layer: LayerFormat) -> str:
    """The part of a format that decides how fast it is made: its scaling, and whether it rotates."""
    return f"{layer.scaling} + convrot" if layer.rotation else layer.scaling


def _seconds(plan: Plan) -> float | None:
    work = _work_seconds(plan.quantized)
    if work is None:
        return None
    return max(work, sum(step.source.nbytes for step in plan if step.outputs) / READ_RATE)


def _work_seconds(steps: Iterable[Step]) -> float | None:
    """Reading overlaps the work, so the slower of the two counts."""
    total = 0.0
    for step in steps:
        assert step.layer is not None
        rate = ELEMENTS_PER_SECOND.get(step.algorithm, {}).get(format_kind(step.layer))
        if rate is None:
            return None
        total += step.source.numel / rate
    return total
