"""The methods that are compared, each a name and what it asks of `quantize_layer`."""

from typing import Any

from convert_to_quant.kernels import largest_group
from convert_to_quant.quant.algorithms import QuantizeOptions

TOKENS = 4096

MAIN: dict[str, dict[str, Any]] = {
    "round to nearest, per row": {},
    "round to nearest, block 128": {"scaling": "block"},
    "LDLQ, block 128": {"algorithm": "ldlq", "scaling": "block"},
    "LDLQ, per row": {"algorithm": "ldlq"},
    "learned rounding, per row": {"algorithm": "original"},
    "round to nearest + ConvRot": {"rotate": True},
    "QuIP (LDLQ + ConvRot)": {"algorithm": "quip", "rotate": True},
    "learned rounding + ConvRot": {"algorithm": "original", "rotate": True},
}
"""The table of the issue, all with the same calibration."""

BASE, BEST = "round to nearest + ConvRot", "QuIP (LDLQ + ConvRot)"

MORE: dict[str, dict[str, Any]] = {
    "round to nearest + ConvRot, searched scale": {"rotate": True, "scale_search": True},
    "round to nearest + ConvRot, bias corrected": {"rotate": True, "bias_correction": True},
    "QuIP, bias corrected": {"algorithm": "quip", "rotate": True, "bias_correction": True},
    "QuIP, searched scale": {"algorithm": "quip", "rotate": True, "scale_search": True},
    "QuIP, actorder": {"algorithm": "quip", "rotate": True, "actorder": True},
    "QuIP, bf16 GEMMs": {"algorithm": "quip", "rotate": True, "bf16_compute": "on"},
    "QuIP, damping 0.1": {"algorithm": "quip", "rotate": True, "damping": 0.1},
    "learned rounding (adamw) + ConvRot": {"algorithm": "adamw", "rotate": True},
    "learned rounding (radam) + ConvRot": {"algorithm": "radam", "rotate": True},
    "SmoothQuant 0.5, per row": {"smoothquant": 0.5},
    "SmoothQuant 0.5 + round to nearest + ConvRot": {"rotate": True, "smoothquant": 0.5},
    "SmoothQuant 0.5 + QuIP": {"algorithm": "quip", "rotate": True, "smoothquant": 0.5},
}
"""What else was tried."""


def options(method: dict[str, Any], columns: int, tokens: int = TOKENS) -> QuantizeOptions:
    """The options of a method for a layer with so many in_features."""
    rest = {k: v for k, v in method.items() if k != "rotate"}
    rotation = largest_group(columns) if method.get("rotate") else 0
    return QuantizeOptions(rotation=rotation, max_tokens=tokens, **rest)
