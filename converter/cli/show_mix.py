"""Size against quality, for a terminal: what the best mix of formats reaches at other sizes."""

from ..options.size import shown
from ..plan.mix import Mix, decibel_text

_BAR = 40


def mix_lines(mix: Mix) -> list[str]:
    """Return the trade-off curve of a target size, a line per size; the bar's length follows the dB."""
    known = [p.sqnr_db for p in mix.curve if p.sqnr_db < float("inf")]
    low, high = min(known, default=0.0), max(known, default=0.0)
    lines = [f"Size of the file and the SQNR of {mix.subject} that its best mix is expected to have"]
    for point in mix.curve:
        share = 1.0 if point.sqnr_db >= high else (point.sqnr_db - low) / (high - low)
        bar = "█" * round(1 + share * (_BAR - 1))
        lines.append(f"  {shown(point.bytes):>12}  {decibel_text(point.sqnr_db):>8}  {bar}")
    fits = [p for p in mix.curve if p.bytes <= mix.target]
    lines.append(f"  {len(fits)} of these fit in {shown(mix.target)}")
    return lines
