"""What quantized checkpoints hold, layer by layer: one file per format, and the only place that knows.

A format is a subclass of `Format`: its name on disk, its tensors, its JSON. Never loads torch. A new one is
a file here, a layout of the same name in quant/layouts and an import below.
"""

from .asym_w4a8_int8 import AsymW4A8Int8
from .base import (
    FORMATS,
    Asked,
    Format,
    companion_suffixes,
    format_class,
    read_format,
)
from .convrot_w4a4 import ConvRotW4A4
from .errors import CheckpointError, ConversionError
from .float8 import Float8E4M3, Float8E5M2
from .int8_blockwise import Int8Blockwise
from .int8_smooth import Int8Smooth
from .int8_tensorwise import Int8Tensorwise
from .mxfp8 import MXFP8
from .nvfp4 import NVFP4
from .tensors import Shape, StoredTensor, Tensors

__all__ = [
    "FORMATS",
    "MXFP8",
    "NVFP4",
    "Asked",
    "AsymW4A8Int8",
    "CheckpointError",
    "ConvRotW4A4",
    "ConversionError",
    "Float8E4M3",
    "Float8E5M2",
    "Format",
    "Int8Blockwise",
    "Int8Smooth",
    "Int8Tensorwise",
    "Shape",
    "StoredTensor",
    "Tensors",
    "companion_suffixes",
    "format_class",
    "read_format",
]
