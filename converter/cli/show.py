"""Showing a report to a person: tables on stdout, warnings on stderr."""

import sys

from ..convert.report import ConversionReport, LayerReport
from .table import Table
from .text import say

_MIB = 2**20


def show_report(report: ConversionReport, every_layer: bool = False) -> None:
    """Print what was quantized and kept, the sizes, and the worst layers (or all of them)."""
    if report.already_there:
        say(report.summary())
        return
    show_table(_what(report))
    ranked = report.worst(len(report.layers) if every_layer else 5)
    if ranked:
        show_table(_layers(ranked, "Every layer, worst first" if every_layer else "Worst layers"))
    say(report.summary())
    if report.error_lora is not None:
        say(report.error_lora.summary())
    sys.stdout.flush()
    for note in report.notes:
        say(f"note: {note}", file=sys.stderr)
    for warning in report.warnings:
        say(f"warning: {warning}", file=sys.stderr)


def show_table(table: Table) -> None:
    """Print a table and an empty line."""
    say("\n".join([*table.lines(), ""]))


def _what(report: ConversionReport) -> Table:
    table = Table("Tensors", ("what", "count", "MiB before", "MiB after"), right=(1, 2, 3))
    for name, count, before, after in report.formats():
        table.add(name, count, f"{before / _MIB:,.1f}", f"{after / _MIB:,.1f}")
    for reason, count, before, after in report.kept_reasons():
        table.add(f"kept: {reason}", count, f"{before / _MIB:,.1f}", f"{after / _MIB:,.1f}")
    table.add("file", "", f"{report.bytes_before / _MIB:,.1f}", f"{report.bytes_after / _MIB:,.1f}")
    return table


def _layers(rows: list[LayerReport], title: str) -> Table:
    noted = ["note"] if any(r.note for r in rows) else []
    table = Table(title, ("layer", "shape", "SQNR dB", "format", *noted), right=(1, 2))
    for r in rows:
        cells = (r.name, f"{r.shape[0]} x {r.shape[1]}", f"{r.sqnr_db:.1f}", r.format)
        table.add(*cells, *([r.note or ""] if noted else []))
    return table
