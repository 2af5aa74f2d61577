"""Showing a plan to a person: a line per kind of layer, the rest by reason, totals and estimates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import prod

from ..preview.dry_run import PlannedTensor, PlanReport
from .collapse import collapse
from .show_mix import mix_lines
from .table import Table
from .text import say

_MIB = 2**20
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LAYER = ("layer", "shape", "stored as", "algorithm", "placement", "MiB in", "MiB out", "bytes/weight", "why")


def show_plan(report: PlanReport, every_layer: bool = False) -> None:
    """Print a plan on stdout."""
    say("\n".join(plan_lines(report, every_layer)))


def plan_lines(report: PlanReport, every_layer: bool = False, width: int | None = None) -> list[str]:
    """Return a plan as text of `width` columns, None for the terminal's.

    Layers of repeated blocks that are treated alike take one line, and layers that are kept for one reason,
    unless `every_layer` is asked for.
    """
    lines = [*_layers(report).lines(width), ""] if every_layer else list(_groups(report, width))
    if not every_layer and (kept := list(_kept(report))):
        lines += ["Layers that are kept", *kept, ""]
    lines += ["Other tensors", *_others(t for t in report.tensors if not t.layer), ""]
    if report.mix is not None:
        lines += [*mix_lines(report.mix), ""]
    lines += [f"note: {note}" for note in report.notes]
    return [*lines, report.summary(), _expectation(report)]


def _layers(report: PlanReport) -> Table:
    table = Table("", _LAYER, right=(1, 5, 6, 7))
    for t in report.layers:
        name, shape, stored, algorithm, placement, why = _words(t)
        share = f"{t.bytes_out / prod(t.shape):.3f}"
        table.add(name, shape, stored, algorithm, placement, *_sizes([t]), share, why)
    return table


def _groups(report: PlanReport, width: int | None) -> Iterable[str]:
    """Make a table per reason, with a line per kind of layer; what is the same for all is left out."""
    layers = [t for t in report.layers if t.action != "keep"]
    words = {t.name: _words(t) for t in layers}
    alike = [i for i in (3, 4) if len({w[i] for w in words.values()}) > 1]
    for why in dict.fromkeys(w[-1] for w in words.values()):
        own = [t for t in layers if words[t.name][-1] == why]
        shown = ("layers", "number", "shape", *(_LAYER[i] for i in alike), "MiB in", "MiB out", "stored as")
        count = len(own)
        table = Table(
            f"{why}: {count} layer{'s' if count > 1 else ''}", shown, (1, 2, len(shown) - 3, len(shown) - 2)
        )
        for group in collapse([t.name for t in own], [words[t.name][1:] for t in own]):
            cells = words[own[group.indices[0]].name]
            sizes = _sizes([own[i] for i in group.indices])
            table.add(group.name, len(group.indices), cells[1], *(cells[i] for i in alike), *sizes, cells[2])
        yield from (*table.lines(width), "")


def _kept(report: PlanReport) -> Iterable[str]:
    """Sum up the layers that are kept by why, each with one of them."""
    groups: dict[str, list[PlannedTensor]] = {}
    for t in report.layers:
        if t.action == "keep":
            groups.setdefault(_words(t)[-1], []).append(t)
    for why, layers in groups.items():
        size = sum(t.bytes_out for t in layers) / _MIB
        example = layers[0].name + (", ..." if len(layers) > 1 else "")
        yield f"  {why}: {len(layers)} layers, {size:,.1f} MiB ({example})"


def _words(t: PlannedTensor) -> tuple[str, ...]:
    stored = f"kept ({t.stored})" if t.action == "keep" else t.stored
    shape = " x ".join(str(n) for n in t.shape)
    why = _NUMBER.sub("N", t.reason)  # of the block that a layer is in
    return t.name, shape, stored, t.algorithm or "-", t.placement or "-", why


def _sizes(layers: Sequence[PlannedTensor]) -> tuple[str, str]:
    total = (sum(t.bytes_in for t in layers), sum(t.bytes_out for t in layers))
    return f"{total[0] / _MIB:,.1f}", f"{total[1] / _MIB:,.1f}"


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
