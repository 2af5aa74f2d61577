"""A verification as one HTML page: no scripts, nothing to load, light and dark."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from ..pages.page import page
from ..quantize.check import WARN_DB
from .html_depth import depth
from .html_terms import OUTPUT_TERMS, TERMS
from .report import Family, VerifiedLayer, VerifyReport, histogram

_BINS = 24
_WIDTH, _HEIGHT, _FOOT = 264, 72, 16


def render(report: VerifyReport) -> str:
    """Write the page: verdict, figures, breaches of the contract, a histogram per family, and all layers."""
    title = f"{report.quantized.replace(chr(92), '/').rpartition('/')[2]}: verification"
    return page(title, "\n".join(part for part in _parts(report) if part))


def _parts(report: VerifyReport) -> Iterator[str]:
    verdict = '<span class="good">ok</span>' if report.ok else '<span class="bad">failed</span>'
    yield f"<header><h1>{escape(report.quantized)}: {verdict}</h1>"
    yield f'<p class="soft">checked against {escape(report.original)}</p>'
    if report.activations:
        yield f'<p class="soft">outputs on inputs from {escape(report.activations)}</p>'
    yield "</header>"
    yield _tiles(report)
    yield _problems(report)
    yield depth(report)
    yield _plots(report)
    yield _table(report)
    yield _terms(report)


def _terms(report: VerifyReport) -> str:
    """Explain the words of the page."""
    outputs = any(r.w8a16_db is not None for r in report.layers)
    terms = {**TERMS, **(OUTPUT_TERMS if outputs else {})}
    body = "".join(
        f"<dt>{escape(t)}</dt><dd>{escape(d.format(threshold=report.threshold))}</dd>"
        for t, d in terms.items()
    )
    return f"<section><h2>Terms</h2><dl>{body}</dl></section>"


def _tiles(report: VerifyReport) -> str:
    worst = min((f.worst for f in report.families()), default=math.inf)
    figures = (
        (str(len(report.layers)), "quantized layers"),
        (_db(worst if report.layers else None) or "none", "worst layer, dB"),
        (str(len(report.faults)), f"layers below {report.threshold:g} dB or wrong"),
        (str(len(report.violations)), "breaches of the contract"),
        (str(report.unchanged), "tensors unchanged"),
        (f"{report.bytes_after / 2**20:,.0f} MiB", f"was {report.bytes_before / 2**20:,.0f} MiB"),
    )
    cells = "".join(f'<div><b>{escape(n)}</b><span class="soft">{escape(t)}</span></div>' for n, t in figures)
    return f'<section class="tiles">{cells}</section>'


def _problems(report: VerifyReport) -> str:
    if not report.problems and not report.notes:
        return ""
    rows = []
    for p in sorted(report.problems, key=lambda p: not p.fatal):
        kind = "bad" if p.fatal else "warn"
        fix = f"ctq edit: {p.fix}" if p.fix else ""
        rows.append(
            f'<tr><td class="{kind}">{escape(p.kind)}</td><td class="name">{escape(p.where)}</td>'
            f"<td>{escape(p.text)}</td><td>{escape(fix)}</td></tr>"
        )
    notes = "".join(f"<p>{escape(n)}</p>" for n in report.notes)
    head = "<tr><th>what</th><th>where</th><th>why</th><th>repair</th></tr>"
    table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>' if rows else ""
    return f"<section><h2>Contract and kept tensors</h2>{notes}{table}</section>"


def _plots(report: VerifyReport) -> str:
    """Draw a small histogram per family, all over the same range so that they compare at a glance."""
    families = report.families()
    values = [v for f in families for v in f.values if math.isfinite(v)]
    if not values:
        return ""
    low = math.floor(min(*values, report.threshold))
    high = max(math.ceil(max(*values, report.threshold)), low + 1)
    plots = "".join(_plot(f, low, high, report.threshold) for f in families)
    mark = (
        f"All over the same range; the dashed line is the threshold, {report.threshold:g} dB: layers left of "
        "it fail."
    )
    return (
        f'<section><h2>Weight SQNR by layer family</h2><p class="soft">{mark}</p>'
        f'<div class="plots">{plots}</div></section>'
    )


def _plot(family: Family, low: int, high: int, threshold: float) -> str:
    counts = histogram(family.values, low, high, _BINS)
    peak, step = max(*counts, 1), _WIDTH / _BINS
    bars = []
    for i, count in enumerate(counts):
        if count:
            h = max(2.0, count / peak * (_HEIGHT - 8))
            start, stop = (low + (high - low) * j / _BINS for j in (i, i + 1))
            bars.append(
                f'<rect x="{i * step + 1:.1f}" y="{_HEIGHT - h:.1f}" width="{step - 2:.1f}" height="{h:.1f}">'
                f"<title>{count} layers from {start:.1f} to {stop:.1f} dB</title></rect>"
            )
    x = min(max((threshold - low) / (high - low) * _WIDTH, 1.0), _WIDTH - 1.0)  # whole at the edge, too
    bars.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>')
    side, at = ("end", x - 4) if x > _WIDTH / 2 else ("start", x + 4)
    bars.append(f'<text class="mark" x="{at:.1f}" y="10" text-anchor="{side}">{threshold:g} dB</text>')
    label = f"{family.name}: {len(family.layers)} layers, worst {family.worst:.1f} dB"
    y = _HEIGHT + _FOOT - 4
    return (
        f"<figure><figcaption>{escape(family.name)}<br>"
        f'<span class="soft">{len(family.layers)} layers, worst {_db(family.worst)} dB, '
        f"median {_db(family.median)} dB</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{escape(label)}">'
        f'{"".join(bars)}<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
        f'<text x="0" y="{y}">{low} dB</text>'
        f'<text x="{_WIDTH}" y="{y}" text-anchor="end">{high} dB</text></svg></figure>'
    )


def _table(report: VerifyReport) -> str:
    rows = report.worst_first()
    if not rows:
        return ""
    outputs = any(r.w8a16_db is not None for r in rows)
    columns = '<th class="n">W8A8 dB</th><th class="n">W8A16 dB</th>' if outputs else ""
    head = (
        '<tr><th>layer</th><th class="n">shape</th><th>format</th><th class="n">MiB</th>'
        f'<th class="n">weight dB</th>{columns}<th>wrong</th></tr>'
    )
    body = "".join(_row(r, outputs, report.threshold) for r in rows)
    return (
        f'<section><h2>Layers, worst first</h2><div class="wide"><table>{head}{body}</table></div></section>'
    )


def _row(r: VerifiedLayer, outputs: bool, threshold: float) -> str:
    poor = r.weight_db is None or r.fault or r.weight_db < threshold
    kind = "bad" if poor else "warn" if (r.weight_db or 0.0) < WARN_DB else ""
    extra: Sequence[float | None] = (r.w8a8_db, r.w8a16_db) if outputs else ()
    cells = "".join(f'<td class="n">{_db(v)}</td>' for v in extra)
    return (
        f'<tr><td class="name">{escape(r.name)}</td><td class="n">{" × ".join(map(str, r.shape))}</td>'
        f'<td>{escape(r.format)}</td><td class="n">{r.bytes_after / 2**20:,.1f}</td>'
        f'<td class="n {kind}">{_db(r.weight_db)}</td>{cells}<td class="name">{escape(r.fault)}</td></tr>'
    )


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
