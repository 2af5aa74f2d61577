"""The methods that are compared: each a name and what it asks of `quantize_layer`.

"block": one scale per 128 x 128 block, not one per row. "rotate": ConvRot in the largest group that fits.
"format": a value of ``--format``. Everything else is a field of `QuantizeOptions`.
"""

from typing import Any

from convert_to_quant.formats import Asked, Format, Int8Blockwise, Int8Tensorwise
from convert_to_quant.formats.choose import chosen
from convert_to_quant.formats.choose import options as names
from convert_to_quant.formats.work import DAMPING
from convert_to_quant.kernels import largest_group
from convert_to_quant.quant.algorithms import QuantizeOptions

TOKENS = 4096

MAIN: dict[str, dict[str, Any]] = {
    "round to nearest, per row": {},
    "round to nearest, block 128": {"block": True},
    "LDLQ, block 128": {"algorithm": "ldlq", "block": True},
    "LDLQ, per row": {"algorithm": "ldlq"},
    "learned rounding, per row": {"algorithm": "original"},
    "round to nearest + ConvRot": {"rotate": True},
    "QuIP (LDLQ + ConvRot)": {"algorithm": "quip", "rotate": True},
    "learned rounding + ConvRot": {"algorithm": "original", "rotate": True},
}
"""The main table, all with the same calibration."""

BASE, BEST = "round to nearest + ConvRot", "QuIP (LDLQ + ConvRot)"

MORE: dict[str, dict[str, Any]] = {
    "round to nearest + ConvRot, searched scale": {"rotate": True, "scale_search": True},
    "round to nearest + ConvRot, bias corrected": {"rotate": True, "bias_correction": True},
    "QuIP, bias corrected": {"algorithm": "quip", "rotate": True, "bias_correction": True},
    "QuIP, searched scale": {"algorithm": "quip", "rotate": True, "scale_search": True},
    "QuIP, actorder": {"algorithm": "quip", "rotate": True, "actorder": True},
    "QuIP, 4 passes of coordinate descent": {"algorithm": "quip", "rotate": True, "passes": 4},
    "QuIP, actorder, 4 passes": {"algorithm": "quip", "rotate": True, "actorder": True, "passes": 4},
    "QuIP, bf16 GEMMs": {"algorithm": "quip", "rotate": True, "bf16_compute": "on"},
    "QuIP, damping 0.01": {"algorithm": "quip", "rotate": True, "damping": 0.01},
    "learned rounding (adamw) + ConvRot": {"algorithm": "adamw", "rotate": True},
    "learned rounding (radam) + ConvRot": {"algorithm": "radam", "rotate": True},
    "SmoothQuant 0.5, per row": {"smoothquant": 0.5},
    "SmoothQuant 0.5 + round to nearest + ConvRot": {"rotate": True, "smoothquant": 0.5},
    "SmoothQuant 0.5 + QuIP": {"algorithm": "quip", "rotate": True, "smoothquant": 0.5},
}
"""What else was tried."""


def formats() -> dict[str, dict[str, Any]]:
    """Return every format that can be written, by rounding and by LDLQ with the same calibration."""
    found = {}
    for name in names():
        found[f"{name}, rounding"] = {"format": name}
        found[f"{name}, LDLQ"] = {"format": name, "algorithm": "ldlq"}
    return found


def _format(name: str, columns: int) -> Format:
    found = chosen(name, None)
    return found.make(Asked(rotation=largest_group(columns) if found.rotates else 0, option=name))


def options(
    method: dict[str, Any], columns: int, tokens: int = TOKENS, damping: float = DAMPING
) -> QuantizeOptions:
    """Return the options of a method for a layer with `columns` in_features and at most `tokens` samples.

    damping: of methods that say nothing of it.
    """
    rest = {k: v for k, v in method.items() if k not in ("block", "rotate", "format")}
    rest = {"damping": damping, **rest}
    if "format" in method:
        return QuantizeOptions(format=_format(method["format"], columns), max_tokens=tokens, **rest)
    rotation = largest_group(columns) if method.get("rotate") else 0
    form = Int8Blockwise() if method.get("block") else Int8Tensorwise(rotation=rotation)
    return QuantizeOptions(format=form, max_tokens=tokens, **rest)
