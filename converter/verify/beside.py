"""The scales of a layer's inputs, which the original cannot confirm: whether they can be such scales."""

import torch

from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE
from .weights import Quantized

_LEAST, _MOST = 1e-9, 1e4
"""An input_scale is max |x| over the largest code (127, 448): these are inputs of 1e-7 and of over a million,
where float16 ends at 65504."""


def broken_scales(quantized: Quantized) -> str:
    """Say which scales of a layer hold NaN or Inf, so that it cannot be read; "" for none."""
    broken = [s for s, t in quantized.beside.items() if t.is_floating_point() and not _finite(t)]
    return f"its {broken[0]} holds NaN or Inf" if broken else ""


def _finite(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values.float()).all())


def scale_faults(quantized: Quantized) -> str:
    """Say what is wrong with a layer's ``input_scale`` or ``pre_quant_scale``; "" for nothing."""
    static, smooth = (quantized.beside.get(s) for s in (INPUT_SCALE, PRE_QUANT_SCALE))
    if static is not None:
        value = float(static.double().flatten()[0])
        if not _LEAST <= value <= _MOST:
            return f"its input_scale is {value:g}: no layer has such inputs"
    if smooth is not None and not bool((torch.isfinite(smooth) & (smooth > 0)).all()):
        return "its pre_quant_scale has factors that are not positive numbers"
    return ""
