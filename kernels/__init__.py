"""INT8 operations: tensors in, tensors out. Knows no model and no file.

Every function is a ``torch.library`` op (``torch.ops.convert_to_quant.<name>``) with an eager
twin; scales are float32 and multiply the int8 value to give the float back. On CUDA, ROCm and
XPU a Triton kernel serves the op, loaded by its first call; `force_eager` compares the two.
"""

from ..formats.convrot import GROUPS, PREFERRED_GROUPS, largest_group
from ._library import force_eager
from .blockwise import quantize_blockwise
from .decode import decode
from .decoded import quantize_decoded
from .dequantize import dequantize
from .descent import descend_
from .float_linear import float_linear
from .floats import dequantize_floats, quantize_float8
from .hessian import accumulate_hessian_
from .int4 import quantize_int4
from .int8_linear import int8_linear, int8_linear_prequantized
from .int8_mm import int8_mm
from .ldlq import ldlq_
from .mxfp8 import quantize_mxfp8
from .nvfp4 import quantize_nvfp4
from .packed_linear import packed_linear, packed_linear_prequantized
from .packing import pack
from .quantize_activations import quantize_activations
from .rotation import hadamard, rotate
from .rowwise import quantize_rowwise
from .tensorwise import quantize_tensorwise
from .weight_only import int8_weight_only_linear

__all__ = [
    "GROUPS",
    "PREFERRED_GROUPS",
    "accumulate_hessian_",
    "decode",
    "dequantize",
    "dequantize_floats",
    "descend_",
    "float_linear",
    "force_eager",
    "hadamard",
    "int8_linear",
    "int8_linear_prequantized",
    "int8_mm",
    "int8_weight_only_linear",
    "largest_group",
    "ldlq_",
    "pack",
    "packed_linear",
    "packed_linear_prequantized",
    "quantize_activations",
    "quantize_blockwise",
    "quantize_decoded",
    "quantize_float8",
    "quantize_int4",
    "quantize_mxfp8",
    "quantize_nvfp4",
    "quantize_rowwise",
    "quantize_tensorwise",
    "rotate",
]
