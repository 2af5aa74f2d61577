"""Showing a person what an edit did: changes on stdout, what stays wrong on stderr."""

import sys
from collections.abc import Sequence

from ..edit.run import EditReport
from ..stored.judge import Problem
from .collapse import Group, collapse
from .show import show_table
from .table import Table
from .text import say


def show_edit(report: EditReport, limit: int | None = None) -> None:
    """Print the changes, at most `limit` of each kind, the summary, and what could not be put right."""
    if report.changes:
        show_table(_changes(report, limit))
    say(report.summary())
    sys.stdout.flush()
    for line in problem_lines(report.left):
        say(f"still wrong: {line}", file=sys.stderr)
    for warning in report.warnings:
        say(f"warning: {warning}", file=sys.stderr)


def _changes(report: EditReport, limit: int | None) -> Table:
    table = Table("Changes", ("layer or tensor", "kind", "what"))
    for kind in dict.fromkeys(c.kind for c in report.changes):
        changes = [c for c in report.changes if c.kind == kind]
        groups = collapse([c.where for c in changes], [c.text for c in changes])
        if limit is None:
            groups = [Group(c.where, (i,)) for i, c in enumerate(changes)]
        for group in groups[:limit]:
            count = f" ({len(group.indices)} times)" if len(group.indices) > 1 else ""
            table.add(group.name, kind, changes[group.indices[0]].text + count)
        if limit is not None and len(groups) > limit:
            table.add(f"and {len(groups) - limit} more", kind, "--all lists them")
    return table


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Return one line per kind of problem: the first, and how many there are like it."""
    lines = []
    for kind in dict.fromkeys(p.kind for p in problems):
        alike = [p for p in problems if p.kind == kind]
        more = f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else ""
        lines.append(f"{alike[0].where}: {alike[0].text}{more}")
    return lines
