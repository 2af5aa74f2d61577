"""``--output-dtype``: the dtype of float matrices that are not quantized."""

from __future__ import annotations

from ...files.checkpoint import TensorInfo
from ..options.layers import OUTPUT_DTYPES
from ..options.settings import Settings
from .config import compile_pattern
from .selection import Decision

_FLOATS = ("F64", "F32", "F16", "BF16")


def recast(tensor: TensorInfo, decision: Decision, settings: Settings) -> Decision:
    """Return a cast to ``--output-dtype`` for a kept 2-D float weight of another dtype; else `decision`.

    Those that ``--preserve-layers`` names stay as they are. ConversionError when that is no regular
    expression.
    """
    if settings.output_dtype is None or decision.action != "keep":
        return decision
    wanted = OUTPUT_DTYPES[settings.output_dtype]
    if tensor.dtype not in _FLOATS or tensor.dtype == wanted:
        return decision
    if len(tensor.shape) != 2 or not tensor.name.endswith(".weight"):
        return decision
    pattern = settings.preserve_layers
    if pattern and compile_pattern(pattern, f"--preserve-layers {pattern!r}").search(tensor.name):
        return decision
    return Decision("cast", f"{decision.reason}; stored as {settings.output_dtype}", dtype=wanted)
