"""Showing a person what is in a file: sizes, formats, rotation groups, problems; all on stdout."""

from collections.abc import Sequence

from rich.table import Table

from ..stored.inspect import Inspection
from ..stored.judge import Problem
from .show import table_console
from .show_edit import problem_lines
from .text import row, say


def show_inspection(found: Inspection) -> None:
    """Print what a file holds, and what is wrong with it."""
    files = f" in {found.files} files" if found.files > 1 else ""
    say(f"{found.path}: {found.nbytes / 2**20:,.1f} MiB{files}")
    say(f"model: {'; '.join(found.architectures) or 'not recognised'}")
    table = Table(title="Tensors", title_justify="left")
    table.add_column("what")
    for name in ("count", "parameters", "MiB"):
        table.add_column(name, justify="right")
    for kind, shares in (("layers", found.formats), ("tensors", found.dtypes)):
        for s in shares:
            size = f"{s.nbytes / 2**20:,.1f}"
            row(table, f"{kind} in {s.name}", str(s.tensors), f"{s.parameters:,}", size)
    table_console().print(table)
    if found.rotations:
        say("rotation groups: " + ", ".join(f"{g}: {n} layers" for g, n in found.rotations.items()))
    if found.metadata:
        say("metadata: " + ", ".join(f"{k} ({n} characters)" for k, n in found.metadata.items()))
    _show_problems(found.problems)


def _show_problems(problems: Sequence[Problem]) -> None:
    for fatal, label in ((True, "problem"), (False, "note")):
        for line in problem_lines([p for p in problems if p.fatal is fatal]):
            say(f"{label}: {line}")
    if any(p.fix for p in problems):
        say("ctq edit puts right what the file itself tells how to")
    if not problems:
        say("contract: nothing wrong")
