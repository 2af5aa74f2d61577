"""The SQNR of every layer along the model's depth, as a plot: where in a model quantization costs most."""

import math
import re
from collections.abc import Iterator, Sequence
from html import escape

from .report import VerifiedLayer, VerifyReport

_WIDTH, _HEIGHT = 1100, 260
_LEFT, _RIGHT, _TOP, _FOOT = 52, 12, 12, 24
_LEAST = 4
"""Decibels that the plot spans at least, so that hundredths do not look like much."""

_DIGITS = re.compile(r"(\d+)")


def depth(report: VerifyReport) -> str:
    """Return the section with the plot, "" for fewer than three layers that could be read."""
    layers = sorted((r for r in report.layers if r.weight_db is not None), key=_natural)
    levels = [v for r in layers for v in (r.weight_db, r.w8a8_db) if v is not None and math.isfinite(v)]
    if len(layers) < 3 or not levels:
        return ""
    low = math.floor(min(levels))
    high = max(math.ceil(max(levels)), low + _LEAST)
    outputs = any(r.w8a8_db is not None for r in layers)
    told = "Each dot is a layer, from the first block to the last; point at it for its name. "
    told += "Rings are outputs on recorded inputs, rounded to INT8. " if outputs else ""
    if report.threshold >= low:
        told += f"The dashed line is the threshold, {report.threshold:g} dB."
    return (
        f'<section><h2>Weight SQNR along the depth</h2><p class="soft">{told}</p><figure>'
        f'<svg class="depth" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="weight SQNR of '
        f'{len(layers)} layers along the depth">{"".join(_parts(layers, low, high, report.threshold))}'
        "</svg></figure></section>"
    )


def _natural(layer: VerifiedLayer) -> list[tuple[int, int, str]]:
    """Order names as people count: block 2 before block 10."""
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in _DIGITS.split(layer.name)]


def _parts(layers: Sequence[VerifiedLayer], low: int, high: int, threshold: float) -> Iterator[str]:
    bottom, step = _HEIGHT - _FOOT, (_WIDTH - _LEFT - _RIGHT) / len(layers)

    def at(db: float) -> float:
        return _TOP + (high - min(max(db, low), high)) / (high - low) * (bottom - _TOP)

    for db in range(low, high + 1, max(1, -(-(high - low) // 5))):
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at(db):.1f}" y2="{at(db):.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{at(db) + 3:.1f}" text-anchor="end">{db} dB</text>'
    if threshold >= low:
        y = at(threshold)
        yield f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    for i, layer in enumerate(layers):
        x = _LEFT + (i + 0.5) * step
        for value, kind, what in ((layer.w8a8_db, "chosen", "output"), (layer.weight_db, "", "weight")):
            if value is not None:
                title = f"{escape(layer.name)}: {what} {value:.1f} dB"
                radius = 4 if kind else 2.5
                yield f'<circle class="{kind}" cx="{x:.1f}" cy="{at(value):.1f}" r="{radius}">'
                yield f"<title>{title}</title></circle>"
    yield f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{escape(layers[0].name)}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{escape(layers[-1].name)}</text>'
