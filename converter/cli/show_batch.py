"""Showing a person what became of several models: a line per model on stdout, notes on stderr."""

import sys
from collections.abc import Iterable
from pathlib import Path

from ..convert.batch import BatchReport
from .text import say


def show_batch(report: BatchReport) -> None:
    """Print the notes of a batch and its table."""
    for note in report.notes:
        say(f"note: {note}", file=sys.stderr)
    say("\n".join(_lines(report)))


def _lines(report: BatchReport) -> Iterable[str]:
    """Make the summary table: a line per model, then the total."""
    width = max((len(Path(o.input).name) for o in report.outcomes), default=0)
    for o in report.outcomes:
        state = f"failed: {o.error}" if o.error else f"done in {o.seconds:.1f} s: {o.output}"
        yield f"{Path(o.input).name.ljust(width)}  {state}"
    yield report.summary()
