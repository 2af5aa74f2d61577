"""Quantized tensors, their layouts, and the algorithms that choose their values."""

from . import calibrated_ops, generic_ops, layout_ops, row_ops
from .dispatch import register_generic_util, register_layout_op
from .layouts import (
    LAYOUTS,
    AxisWiseINT8Layout,
    BlockWiseINT8Layout,
    QuantizedLayout,
    TensorCoreFP8Layout,
    TensorWiseINT8Layout,
    WeightLayout,
)
from .layouts.table import QUANT_ALGOS
from .tensor import QuantizedTensor

__all__ = [
    "LAYOUTS",
    "QUANT_ALGOS",
    "AxisWiseINT8Layout",
    "BlockWiseINT8Layout",
    "QuantizedLayout",
    "QuantizedTensor",
    "TensorCoreFP8Layout",
    "TensorWiseINT8Layout",
    "WeightLayout",
    "calibrated_ops",
    "generic_ops",
    "layout_ops",
    "register_generic_util",
    "register_layout_op",
    "row_ops",
]
