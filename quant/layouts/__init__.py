"""Storage layouts: what a quantized weight is in memory. One file per format, of the format's name."""

from .asym_w4a8_int8 import AsymW4A8Int8Layout
from .base import LAYOUTS, QuantizedLayout, layout_class
from .convrot_w4a4 import TensorCoreConvRotW4A4Layout
from .float8 import TensorCoreFP8Layout
from .int8_blockwise import BlockWiseINT8Layout
from .int8_tensorwise import AxisWiseINT8Layout, TensorWiseINT8Layout
from .mxfp8 import TensorCoreMXFP8Layout
from .nvfp4 import TensorCoreNVFP4Layout
from .weight import WeightLayout, weight_layout

__all__ = [
    "LAYOUTS",
    "AsymW4A8Int8Layout",
    "AxisWiseINT8Layout",
    "BlockWiseINT8Layout",
    "QuantizedLayout",
    "TensorCoreConvRotW4A4Layout",
    "TensorCoreFP8Layout",
    "TensorCoreMXFP8Layout",
    "TensorCoreNVFP4Layout",
    "TensorWiseINT8Layout",
    "WeightLayout",
    "layout_class",
    "weight_layout",
]
