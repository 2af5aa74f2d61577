"""Algorithms that choose the values of a layer.

Each is a pure function ``(weight, stats, options, name) -> (QuantizedTensor, note)``; `quantize_layer`
adds what surrounds the values (smoothing, bias, static scale). `formats.algorithms` lists them.
"""

from ...formats.algorithms import ALGORITHMS
from .layer import quantize_layer
from .types import LayerResult, LayerStats, QuantizeOptions

__all__ = ["ALGORITHMS", "LayerResult", "LayerStats", "QuantizeOptions", "quantize_layer"]
