"""Quantized tensors and their layouts, under the import path that ComfyUI users know.

Example::

    from convert_to_quant.comfy.quant_ops import QuantizedTensor
    q = QuantizedTensor.from_float(weight, "TensorWiseINT8Layout", rotation=256)
    y = torch.nn.functional.linear(x, q, bias)
"""

from ..quant import (
    LAYOUTS,
    QUANT_ALGOS,
    AxisWiseINT8Layout,
    BlockWiseINT8Layout,
    QuantizedLayout,
    QuantizedTensor,
    TensorWiseINT8Layout,
    register_generic_util,
    register_layout_op,
)
from ..quant.runtime import mixed_precision_ops

__all__ = [
    "LAYOUTS",
    "QUANT_ALGOS",
    "AxisWiseINT8Layout",
    "BlockWiseINT8Layout",
    "QuantizedLayout",
    "QuantizedTensor",
    "TensorWiseINT8Layout",
    "mixed_precision_ops",
    "register_generic_util",
    "register_layout_op",
]
