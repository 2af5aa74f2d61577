"""Whether what a layer lost is what an honest conversion loses, row by row.

Rounding to nearest takes the value nearest to the original's everywhere. LDLQ and learned rounding take
others, but their error stays near the least one: over 415 layers, ten kinds of inputs (white to rank one),
five of weights, with and without rotation, rows end at up to 7.3 times the least squared error, and no value
strays farther than 20 times the least error's largest. The bounds below leave a factor of three.
"""

import torch

from ..quantize.check import decibels
from .rows import Rows, misfits

_ERROR = 25.0
_ERROR_IN_GROUPS = 100.0
"""Where groups in a row have scales of their own, feedback in steps of the large ones reaches the small: rows
of 720 layers end at up to 38 times the least error."""

_MEDIAN = 15.0
"""Times the least error in half of a layer's rows; honest layers have up to 3.2."""

_PEAK = 64.0
_STRAY = 0.02
_DRIFT = 1.2
_ALL = 0.95
_EXACT = 1e-9
_TELLING = 8
"""Rows of which most must be rounded before the others are odd: fewer may be so by chance."""

_SHOWN = 3


def faults(rows: Rows, rounded: bool | None = None) -> list[str]:
    """Return what an honest conversion cannot have done to a layer; [] where it can.

    rounded: whether the file says that every value is the nearest (True) or that an algorithm chose it
    (False); None where it says nothing: then a layer of which most rows are nearest was rounded, and its
    other rows are at fault.
    """
    broken = ~torch.isfinite(rows.error)
    if bool(broken.any()):
        return [f"{_rows(broken)}: NaN or Inf"]
    found = []
    poor = dict(rows.poor)
    if poor:
        what, why = next(iter(poor.items()))
        more = f" (and {len(poor) - 1} more like it)" if len(poor) > 1 else ""
        found.append(f"the scales are not those of its rows: {what}: {why}{more}")
    else:
        ee, ev, vv = (t.sum().reshape(1, 1) for t in (rows.error, rows.along, rows.power))
        noise = torch.maximum(rows.least.mean() / rows.columns, rows.reach.amax().square() / 3)
        # Rows that are alike err alike: together they are off by what each may be, a few thousandths.
        least = 0.02 if rows.grid.rows else 0.0
        if misfits(ee, ev, vv, noise) and float(ev.abs()) > least * float(vv):
            factor = float(1 / (1 + ev / vv))
            found.append(f"its scales are {factor:.3g} times what fits, taken together")
    if not found and rows.grid.columns and rows.grid.rows == 1:
        found += _row_scale(rows)
    wrong = _far(rows)
    if bool(wrong.any()):
        worst = int((rows.error / rows.least.clamp_min(1e-300)).where(wrong, -torch.inf).argmax())
        kept, could = (decibels(float(rows.signal[worst]), float(t[worst])) for t in (rows.error, rows.least))
        found.append(
            f"{_rows(wrong)}: not the original's (row {worst} keeps {kept:.1f} dB, rounding {could:.1f} dB)"
        )
    odd = _odd(rows, rounded) & ~wrong
    if bool(odd.any()) and not found:
        found.append(
            f"{_rows(odd)}: values that are not the nearest to the original's, as rounding makes them"
        )
    return found


def _row_scale(rows: Rows) -> list[str]:
    """Return what is wrong with the scales of whole rows, where groups have others on top."""
    noise = torch.maximum(rows.least / rows.columns, rows.reach.square() / 3)
    at = [i for i, _ in misfits(*(t.unsqueeze(1) for t in (rows.error, rows.along, rows.power, noise)))]
    if not at:
        return []
    factor = float(1 / (1 + rows.along[at[0]] / rows.power[at[0]]))
    more = f" (and {len(at) - 1} more like it)" if len(at) > 1 else ""
    return [f"the scales are not those of its rows: row {at[0]}: {factor:.3g} times what fits{more}"]


def nearest(rows: Rows) -> bool:
    """Tell whether every value is the nearest to the original's."""
    return bool((rows.error - rows.least <= _allowance(rows, _STRAY)).all())


def _far(rows: Rows) -> torch.Tensor:
    """Tell the rows that no algorithm leaves so far from the original."""
    most = _ERROR_IN_GROUPS if rows.grid.columns and rows.grid.rows == 1 else _ERROR
    share = rows.error / _floor(rows)
    if float(share.median()) > _MEDIAN:
        most = _MEDIAN
    return (share > most) | (rows.top > _PEAK * rows.reach)


def _floor(rows: Rows) -> torch.Tensor:
    """Return the least error of each row, where a scale serves several that of the worst of them.

    A row of tiny weights beside large ones is below a step of its scale: it has next to no error when it is
    rounded, and a step's with feedback.
    """
    least, step = rows.least.clamp_min(1e-300), rows.grid.rows
    if step == 1:
        return least
    if not step:
        return least.amax().expand_as(least)
    padded = torch.nn.functional.pad(least, (0, -len(least) % step)).view(-1, step)
    return padded.amax(1, keepdim=True).expand_as(padded).reshape(-1)[: len(least)]


def _odd(rows: Rows, rounded: bool | None) -> torch.Tensor:
    """Tell the rows that were not rounded to nearest in a layer that was."""
    excess = rows.error - rows.least
    stray = ~(excess <= _allowance(rows, _STRAY))
    if rounded:
        return stray
    # Rows of zeros, and those below a step of a shared scale, look rounded, whatever was done.
    telling = (rows.least >= 0.1 * _floor(rows)) & (rows.least > _EXACT * rows.signal)
    count, odd = int(telling.sum()), int(stray[telling].sum())
    if rounded is None and count >= _TELLING:
        if odd == 1 or odd <= (1 - _ALL) * count:
            return stray
        if odd <= 0.5 * count:
            # Feedback that is next to nothing moves a value in some rows only, and then from tie to tie.
            return ~(excess <= _allowance(rows, _DRIFT))
    return torch.zeros_like(stray)


def _allowance(rows: Rows, share: float) -> torch.Tensor:
    """Return `share` of the least error of one value, and what sums are uncertain by."""
    return rows.least * (share / rows.columns + 1e-6) + 1e-12 * rows.signal


def _rows(which: torch.Tensor) -> str:
    """Name rows: ``rows 3, 8, 9 and 4 more``."""
    at = which.nonzero().flatten().tolist()
    some = ", ".join(map(str, at[:_SHOWN]))
    more = f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else ""
    return f"row{'s' if len(at) > 1 else ''} {some}{more}"
