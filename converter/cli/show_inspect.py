"""Showing a person what is in a file: sizes, formats, rotation groups, problems; all on stdout."""

from collections.abc import Sequence

from ..stored.inspect import Inspection
from ..stored.judge import Problem
from .show import show_table
from .show_edit import problem_lines
from .table import Table
from .text import say


def show_inspection(found: Inspection) -> None:
    """Print what a file holds, and what is wrong with it."""
    files = f" in {found.files} files" if found.files > 1 else ""
    say(f"{found.path}: {found.nbytes / 2**20:,.1f} MiB{files}")
    say(f"model: {'; '.join(found.architectures) or 'not recognised'}")
    table = Table("Tensors", ("what", "count", "parameters", "MiB"), right=(1, 2, 3))
    for kind, shares in (("layers", found.formats), ("tensors", found.dtypes)):
        for s in shares:
            size = f"{s.nbytes / 2**20:,.1f}"
            table.add(f"{kind} in {s.name}", s.tensors, f"{s.parameters:,}", size)
    show_table(table)
    if found.rotations:
        say("rotation groups: " + ", ".join(f"{g}: {n} layers" for g, n in found.rotations.items()))
    if found.folded:
        say(f"folds: {found.folded}")
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
