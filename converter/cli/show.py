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
        if any(r.output_db is not None for r in report.layers):
            say(f"{_of_outputs()}\n")
    say(report.summary())
    if report.error_lora is not None:
        say(report.error_lora.summary())
    sys.stdout.flush()
    for note in report.notes:
        say(f"note: {note}", file=sys.stderr)
    for warning in report.warnings:
        say(f"warning: {warning}", file=sys.stderr)


def _of_outputs() -> str:
    """Explain the outputs' dB."""
    from ...quant.calibration.held_back import MOST, SHARE  # inspect and edit show tables without torch

    return f"""\
Output dB is the SQNR of the layer's outputs, as it runs, for recorded tokens that its rounding has not
seen: one in {SHARE}, at most {MOST}. With calibration the weight's falls, because LDLQ moves weights off
their nearest values wherever that keeps the outputs closer: judge by the outputs."""


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
    measured = any(r.output_db is not None for r in rows)
    columns = ("output dB", "weight dB") if measured else ("SQNR dB",)
    right = range(1, 2 + len(columns))
    table = Table(title, ("layer", "shape", *columns, "format", *noted), right)
    for r in rows:
        figures = [_decibels(r.output_db)] * measured + [_decibels(r.sqnr_db)]
        cells = (r.name, f"{r.shape[0]} x {r.shape[1]}", *figures, r.format)
        table.add(*cells, *([r.note or ""] if noted else []))
    return table


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
