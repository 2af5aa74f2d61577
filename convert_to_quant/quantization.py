"""Checkpoint conversion from Python, under the import path that users know::

from convert_to_quant.quantization import convert_to_int8
report = convert_to_int8("model.safetensors", "model-int8.safetensors")
print(report.summary())
"""

from .converter.api import convert_to_int8
from .converter.errors import ConversionError
from .converter.report import ConversionReport, LayerReport

__all__ = ["ConversionError", "ConversionReport", "LayerReport", "convert_to_int8"]
