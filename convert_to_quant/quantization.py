"""Checkpoint conversion from Python, under the import path that users know.

Example::

    from convert_to_quant.quantization import convert_to_int8
    report = convert_to_int8("model.safetensors", "model-int8.safetensors")
    print(report.summary())
"""

from .converter.api import convert, convert_many, convert_many_to_int8, convert_to_int8, plan_int8, quantize
from .converter.convert.batch import BatchReport
from .converter.convert.report import ConversionReport, LayerReport
from .converter.preview.dry_run import PlanReport
from .formats.errors import ConversionError

__all__ = [
    "BatchReport",
    "ConversionError",
    "ConversionReport",
    "LayerReport",
    "PlanReport",
    "convert",
    "convert_many",
    "convert_many_to_int8",
    "convert_to_int8",
    "plan_int8",
    "quantize",
]
