"""Showing a plan to a person: a line per layer, the rest by reason, totals and estimates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ..plan.dry_run import PlannedTensor, PlanReport
from .show_mix import mix_lines
from .text import say

_MIB = 2**20
_HEAD = ("layer", "shape", "stored as", "algorithm", "placement", "MiB in", "MiB out", "bytes/weight", "why")
_RIGHT = (1, 5, 6, 7)


def show_plan(report: PlanReport) -> None:
    """Print a plan on stdout."""
    say("\n".join(plan_lines(report)))


def plan_lines(report: PlanReport) -> list[str]:
    """Return a plan as text. Plain columns: rich takes longer for two thousand rows than planning does."""
    lines = list(_columns([_HEAD, *(_row(t) for t in report.layers)]))
    lines += ["", "Other tensors", *_others(t for t in report.tensors if not t.layer), ""]
    if report.mix is not None:
        lines += [*mix_lines(report.mix), ""]
    lines += [f"note: {note}" for note in report.notes]
    return [*lines, report.summary(), _expectation(report)]


def _row(t: PlannedTensor) -> tuple[str, ...]:
    kept = t.action == "keep"
    return (
        t.name,
        " x ".join(str(n) for n in t.shape),
        f"kept ({t.stored})" if kept else t.stored,
        t.algorithm or "-",
        t.placement or "-",
        f"{t.bytes_in / _MIB:,.1f}",
        f"{t.bytes_out / _MIB:,.1f}",
        f"{t.bytes_out / prod(t.shape):.3f}",
        t.reason,
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        cells = [
            c.rjust(w) if i in _RIGHT else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _others(tensors: Iterable[PlannedTensor]) -> Iterable[str]:
    """Sum up the tensors that are no layers: count and size by what happens and why."""
    groups: dict[tuple[str, str], list[int]] = {}
    for t in tensors:
        found = groups.setdefault((t.action, t.reason), [0, 0])
        found[0] += 1
        found[1] += t.bytes_in or t.bytes_out
    words = {"keep": "kept", "drop": "removed", "write": "written"}
    for (action, reason), (count, size) in groups.items():
        yield f"  {words[action]}: {reason}: {count} tensors, {size / _MIB:,.1f} MiB"


def _expectation(report: PlanReport) -> str:
    memory = f"about {report.peak_bytes / _MIB:,.0f} MiB of memory"
    if report.seconds is None:
        return f"estimated: {memory}; no estimate of the time for these algorithms"
    minutes, seconds = divmod(max(1, round(report.seconds)), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"estimated: {time} on two CPU cores (yours differ: see bench/estimate.py), {memory}"
