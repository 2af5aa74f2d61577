"""Vocabulary tables, which ``--embeddings`` stores as INT8 rows for the modules that look rows up.

ComfyUI reads them since pull request 15035 (July 2026, in 0.33): it takes the rows it needs, dequantizes and
un-rotates those. Where it offloads the table it fails (its issues 15291 and 15545).
"""

from ...files.checkpoint import TensorInfo
from ...files.dtypes import QUANTIZABLE
from ...formats import Asked
from ...formats.algorithms import ROUNDING
from ...formats.choose import chosen
from ...formats.convrot import largest_group
from ..options.settings import Settings
from .selection import Decision

FORMAT, GRANULARITY = "int8", "row"


def stored_table(weight: TensorInfo, decision: Decision, settings: Settings) -> Decision:
    """Return how a table [tokens, K] that is to be quantized is stored: INT8 rows, rotated unless that is
    off.

    It is only looked up, so its values are rounded to nearest, whatever the layers' algorithm is.
    """
    if weight.dtype not in QUANTIZABLE:
        return Decision("keep", f"stored as {weight.dtype}")
    rotation = 0 if settings.convrot is False else largest_group(weight.shape[1])
    form = chosen(FORMAT, GRANULARITY).make(Asked(GRANULARITY, rotation))
    return Decision("quantize", decision.reason, form, ROUNDING)


def note(tables: list[str]) -> str:
    """Say what reads these tables."""
    one = len(tables) == 1
    which = f"a table of embeddings is INT8 ({tables[0]})"
    which = which if one else f"{len(tables)} tables of embeddings are INT8 ({tables[0]}, ...)"
    return (
        f"{which}: ComfyUI reads {'it' if one else 'them'} since July 2026 and fails where it offloads "
        f"{'it' if one else 'them'} (its issues 15291 and 15545)"
    )
