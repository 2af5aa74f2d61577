"""Size against quality as a page: what the best mix of formats reaches at other sizes."""

import math
from collections.abc import Sequence
from html import escape

from ..options.size import shown
from ..plan.mix import Mix, Point, decibel_text
from ..preview.dry_run import PlanReport
from .page import page

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _FOOT = 52, 20, 16, 34


def render(report: PlanReport, mix: Mix) -> str:
    """Write the page of a dry run for a target size: the choice, the curve and its figures, the terms."""
    name = report.input.replace(chr(92), "/").rpartition("/")[2]
    parts = [
        f"<header><h1>{escape(name)}: formats for {shown(mix.target)}</h1>",
        *(f'<p class="soft">{escape(line)}</p>' for line in mix.lines()),
        "</header>",
        _tiles(mix),
        _curve(mix),
        _table(mix),
        _terms(mix),
    ]
    return page(f"{name}: formats for {shown(mix.target)}", "\n".join(parts))


def _terms(mix: Mix) -> str:
    of = (
        "the energy of the model's output over the energy of what quantization adds to it: the sum of what "
        "its layers add, each weighed by its influence as the calibration measured it"
        if mix.at_output
        else "the energy of the layers' outputs over the energy of what quantization adds to them, as the "
        "mean over all weights whose format is open"
    )
    return f"""<section><h2>How to read it</h2>
<p>SQNR is {of}, in dB: 10 dB more is a tenth of the noise. It is expected from 128 rows of each layer: from
its outputs for held-back calibration inputs where there are any, else from its weights. Each point is the
best mix for a file of that size, so nothing lies above the curve.</p></section>"""


def _tiles(mix: Mix) -> str:
    figures = [
        (shown(mix.size), f"size, of {shown(mix.target)} at most"),
        (decibel_text(mix.sqnr_db), f"expected SQNR of {mix.subject}"),
        (shown(mix.least), "smallest possible size"),
        *((str(count), f"layers in {name}") for name, count in mix.formats.items()),
    ]
    cells = "".join(f'<div><b>{escape(n)}</b><span class="soft">{escape(t)}</span></div>' for n, t in figures)
    return f'<section class="tiles">{cells}</section>'


def _curve(mix: Mix) -> str:
    """Draw the points that have some loss, the target as a dashed line, the choice as a dot."""
    points = [p for p in mix.curve if math.isfinite(p.sqnr_db)]
    chosen = [Point(mix.size, mix.sqnr_db)] if math.isfinite(mix.sqnr_db) else []
    if not points:
        return ""
    sizes = [p.bytes for p in (*mix.curve, *chosen)]
    levels = [p.sqnr_db for p in (*points, *chosen)]
    low, high = math.floor(min(levels)), max(math.ceil(max(levels)), math.floor(min(levels)) + 1)
    first, last = min(sizes), max(*sizes, min(sizes) + 1)

    def at(point: Point) -> tuple[float, float]:
        x = _LEFT + (point.bytes - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - point.sqnr_db) / (high - low) * (_HEIGHT - _TOP - _FOOT)
        return x, y

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
    dots = "".join(_dot(*at(p), p, "") for p in points) + "".join(_dot(*at(p), p, "chosen") for p in chosen)
    grid = "".join(_level(db, at(Point(first, db))[1]) for db in _ticks(low, high))
    bottom = _HEIGHT - _FOOT
    mark = ""
    if first <= mix.target <= last:
        x = at(Point(mix.target, low))[0]
        mark = f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
    label = f"expected SQNR of {mix.subject} from {shown(first)} to {shown(last)}"
    return (
        '<section><h2>Size against quality</h2><p class="soft">The dashed line is the target, the ring is '
        "the choice for it.</p><figure>"
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{grid}{mark}<polyline points="{line}"/>{dots}'
        f'<text x="{_LEFT}" y="{_HEIGHT - 10}">{shown(first)}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" text-anchor="end">{shown(last)}</text>'
        "</svg></figure></section>"
    )


def _dot(x: float, y: float, point: Point, kind: str) -> str:
    what = f"{shown(point.bytes)}: {decibel_text(point.sqnr_db)}"
    radius = 6 if kind else 3
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{what}</title></circle>'


def _ticks(low: int, high: int) -> Sequence[int]:
    """Return at most six whole levels from low to high."""
    return range(low, high + 1, max(1, -(-(high - low) // 5)))


def _level(db: int, y: float) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 3:.1f}" text-anchor="end">{db} dB</text>'
    )


def _table(mix: Mix) -> str:
    rows = "".join(
        f'<tr><td class="n">{shown(p.bytes)}</td><td class="n">{decibel_text(p.sqnr_db)}</td>'
        f"<td>{'fits' if p.bytes <= mix.target else 'too large'}</td></tr>"
        for p in mix.curve
    )
    head = f'<tr><th class="n">size</th><th class="n">SQNR of {mix.subject}</th><th>target</th></tr>'
    return f'<section><h2>Figures</h2><div class="wide"><table>{head}{rows}</table></div></section>'
