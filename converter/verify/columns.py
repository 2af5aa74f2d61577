"""Columns and rows that are not where, or as large as, the original has them: what sums over them show.

Feedback of an algorithm can make single values, and a whole column of an unrotated weight, anything; a row's
or column's place and size it keeps. Over 336 layers of seven formats (six kinds of inputs, white to rank one,
four of weights) no column that had lost its original resembled another by more than a correlation of 0.31,
and no row of a rotated weight was off by more than a factor of 1.11 beside the others.
"""

import torch

from .rows import Rows
from .weights import Quantized, Source

_LOST, _FOUND = 0.3, 0.8
"""Correlations of a column with its original, and of one that holds another's values with that."""

_ROWS = 32
"""Fewer values resemble others by chance."""

_MOST = 256
"""Columns that are looked for: of more, no one was moved."""

_FACTOR, _SPREAD = 0.15, 8.0
"""A row's factor is off by more than this, and by this many times the median deviation of the layer's."""


def moved(source: Source, quantized: Quantized, rows: Rows) -> str:
    """Say which columns hold the values of others; "" for none."""
    ww, wv, vv = rows.by_column
    lost = (wv < _LOST * (ww * vv).sqrt()) & (ww > 0) & (vv > 0)
    at = lost.nonzero().flatten()
    if quantized.shape[0] < _ROWS or not 0 < len(at) <= _MOST:
        return ""
    products = torch.zeros(len(ww), len(at), dtype=torch.float64)
    for start, stop in quantized.pieces():
        part = quantized.part(start, stop)
        work = part.stored(source.rows(start, stop)).double()
        products += work.t() @ part.values()[:, at].double()
    found = products / (ww[:, None] * vv[at]).sqrt().clamp_min(1e-300)
    best, whose = found.max(0)
    pairs = [(int(at[i]), int(whose[i])) for i in (best > _FOUND).nonzero().flatten().tolist()]
    if not pairs:
        return ""
    more = f" (and {len(pairs) - 1} more like it)" if len(pairs) > 1 else ""
    return f"column {pairs[0][0]} holds the values of column {pairs[0][1]}{more}"


def stretched(quantized: Quantized, rows: Rows) -> str:
    """Say which rows of a rotated weight with a scale for each are larger or smaller than the others; "" for
    none.

    Rotation makes a row's values alike, so that the best factor on them, <w, v> / <v, v>, is near 1 in each.
    """
    known = (rows.power > 0) & (rows.signal > 0)
    if not quantized.form.rotation or quantized.grid.rows != 1 or int(known.sum()) < _ROWS:
        return ""
    factor = 1 + rows.along / rows.power.clamp_min(1e-300)
    off = (factor - factor[known].median()).abs()
    wrong = known & (off > _FACTOR) & (off > _SPREAD * off[known].median())
    if not bool(wrong.any()):
        return ""
    at = wrong.nonzero().flatten().tolist()
    more = f" (and {len(at) - 1} more like it)" if len(at) > 1 else ""
    return f"row {at[0]}: its scale is {float(1 / factor[at[0]]):.3g} times what fits{more}"
