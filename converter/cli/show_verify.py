"""Showing a verification to a person: tables on stdout, what is wrong on stderr."""

import sys
from collections.abc import Sequence

from ..verify.report import VerifiedLayer, VerifyReport
from .show import show_table
from .show_edit import problem_lines
from .table import Table
from .text import say

_SHOWN = 5


def show_verification(report: VerifyReport, every_layer: bool = False) -> None:
    """Print the families, the worst layers (or all), the summary, and every kind of problem."""
    if report.layers:
        show_table(_families(report))
        rows = report.worst_first()
        shown = rows if every_layer else rows[: max(_SHOWN, len(report.faults))]
        title = "Layers, worst first" + ("" if len(shown) == len(rows) else f" ({len(shown)} of {len(rows)})")
        show_table(_layers(shown, title))
    say(report.summary())
    sys.stdout.flush()
    for line in report.notes:
        say(f"note: {line}", file=sys.stderr)
    for line in problem_lines([p for p in report.problems if not p.fatal]):
        say(f"note: {line}", file=sys.stderr)
    for r in report.faults:
        say(f"wrong: {r.name}: {r.fault}", file=sys.stderr)
    for line in problem_lines(report.violations):
        say(f"contract: {line}", file=sys.stderr)
    if any(p.fix for p in report.violations):
        say("note: ctq edit puts right what the file itself tells how to", file=sys.stderr)


def decibel_text(value: float | None) -> str:
    """Return ``41.2``, ``inf``, or nothing for None."""
    return "" if value is None else f"{value:.1f}"


def _families(report: VerifyReport) -> Table:
    table = Table(
        "Layer families, worst first", ("family", "layers", "worst dB", "median dB"), right=(1, 2, 3)
    )
    for f in report.families():
        table.add(f.name, len(f.layers), decibel_text(f.worst), decibel_text(f.median))
    return table


def _layers(rows: Sequence[VerifiedLayer], title: str) -> Table:
    outputs = any(r.w8a16_db is not None for r in rows)
    measured = ("weight dB", *(("W8A8 dB", "W8A16 dB") if outputs else ()))
    table = Table(title, ("layer", "shape", *measured, "format"), right=range(1, 2 + len(measured)))
    for r in rows:
        values = (r.weight_db, *((r.w8a8_db, r.w8a16_db) if outputs else ()))
        table.add(r.name, " x ".join(map(str, r.shape)), *map(decibel_text, values), r.format)
    return table
