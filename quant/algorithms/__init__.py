"""Algorithms that choose the int8 values of a layer.

Each is a pure function ``(weight, stats, options, name) -> (QuantizedTensor, note)``; `quantize_layer`
adds what surrounds the integers (smoothing, bias, static scale). A new algorithm is a row of ALGORITHMS.
"""

from collections.abc import Callable

from . import ldlq, learned, rtn
from .types import LEARNED, LayerResult, LayerStats, QuantizeOptions

ALGORITHMS: dict[str, Callable] = {
    "rtn": rtn.rtn,
    "ldlq": ldlq.ldlq,
    "gptq": ldlq.ldlq,
    "quip": ldlq.ldlq,
    "original": learned.learned,
    "adamw": learned.learned,
    "radam": learned.learned,
}
"""Name -> algorithm. "quip" is LDLQ whose options carry a rotation."""

from .layer import quantize_layer  # noqa: E402

__all__ = ["ALGORITHMS", "LEARNED", "LayerResult", "LayerStats", "QuantizeOptions", "quantize_layer"]
