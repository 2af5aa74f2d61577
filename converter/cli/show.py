"""Showing a report to a person: tables on stdout, warnings on stderr."""

import sys

from rich.console import Console
from rich.table import Table

from ..convert.report import ConversionReport, LayerReport
from .text import row, say

_MIB = 2**20


def table_console() -> Console:
    """Return a console for tables: as wide as the terminal; in a file or pipe wide enough for layer names."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)


def show_report(report: ConversionReport, every_layer: bool = False) -> None:
    """Print what was quantized and kept, the sizes, and the worst layers (or all of them)."""
    console = table_console()
    console.print(_what(report))
    ranked = report.worst(len(report.layers) if every_layer else 5)
    if ranked:
        title = "Every layer, worst first" if every_layer else "Worst layers"
        console.print(_layers(ranked, title))
    say(report.summary())
    if report.error_lora is not None:
        say(report.error_lora.summary())
    sys.stdout.flush()
    for note in report.notes:
        say(f"note: {note}", file=sys.stderr)
    for warning in report.warnings:
        say(f"warning: {warning}", file=sys.stderr)


def _what(report: ConversionReport) -> Table:
    table = Table(title="Tensors", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("MiB before", justify="right")
    table.add_column("MiB after", justify="right")
    for name, count, before, after in report.formats():
        row(table, name, str(count), f"{before / _MIB:,.1f}", f"{after / _MIB:,.1f}")
    for reason, count, before, after in report.kept_reasons():
        row(table, f"kept: {reason}", str(count), f"{before / _MIB:,.1f}", f"{after / _MIB:,.1f}")
    table.add_section()
    row(table, "file", "", f"{report.bytes_before / _MIB:,.1f}", f"{report.bytes_after / _MIB:,.1f}")
    return table


def _layers(rows: list[LayerReport], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("format")
    table.add_column("SQNR dB", justify="right")
    noted = any(r.note for r in rows)
    if noted:
        table.add_column("note")
    for r in rows:
        cells = [r.name, f"{r.shape[0]} x {r.shape[1]}", r.format, f"{r.sqnr_db:.1f}"]
        row(table, *cells, *([r.note or ""] if noted else []))
    return table
