"""Quantized tensors, their layouts, and the algorithms that choose their values."""

from . import calibrated_ops, generic_ops, layout_ops
from .dispatch import register_generic_util, register_layout_op
from .int8_layouts import QUANT_ALGOS, AxisWiseINT8Layout, BlockWiseINT8Layout, TensorWiseINT8Layout
from .layout import LAYOUTS, QuantizedLayout
from .tensor import QuantizedTensor

__all__ = [
    "LAYOUTS",
    "QUANT_ALGOS",
    "AxisWiseINT8Layout",
    "BlockWiseINT8Layout",
    "QuantizedLayout",
    "QuantizedTensor",
    "TensorWiseINT8Layout",
    "calibrated_ops",
    "generic_ops",
    "layout_ops",
    "register_generic_util",
    "register_layout_op",
]
