"""Showing a person what an edit did: changes on stdout, what stays wrong on stderr."""

import sys
from collections.abc import Sequence

from rich.table import Table

from ..edit.run import EditReport
from ..stored.judge import Problem
from .show import table_console
from .text import row, say


def show_edit(report: EditReport, limit: int | None = None) -> None:
    """Print the changes, at most `limit` of each kind, the summary, and what could not be put right."""
    if report.changes:
        table_console().print(_changes(report, limit))
    say(report.summary())
    sys.stdout.flush()
    for line in problem_lines(report.left):
        say(f"still wrong: {line}", file=sys.stderr)
    for warning in report.warnings:
        say(f"warning: {warning}", file=sys.stderr)


def _changes(report: EditReport, limit: int | None) -> Table:
    table = Table(title="Changes", title_justify="left")
    table.add_column("kind")
    table.add_column("layer or tensor", overflow="fold")
    table.add_column("what", overflow="fold")
    for kind in dict.fromkeys(c.kind for c in report.changes):
        rows = [c for c in report.changes if c.kind == kind]
        for change in rows[:limit]:
            row(table, kind, change.where, change.text)
        if limit is not None and len(rows) > limit:
            row(table, kind, f"and {len(rows) - limit} more", "--all lists them")
    return table


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Return one line per kind of problem: the first, and how many there are like it."""
    lines = []
    for kind in dict.fromkeys(p.kind for p in problems):
        alike = [p for p in problems if p.kind == kind]
        more = f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else ""
        lines.append(f"{alike[0].where}: {alike[0].text}{more}")
    return lines
