"""INT8 quantization for diffusion transformers and text encoders.

Everything below is imported on first use, so that ``import convert_to_quant``
neither loads torch nor touches a device::

    from convert_to_quant import convert_to_int8
    report = convert_to_int8("model.safetensors", "model-int8.safetensors")
    print(report.summary())
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from .namesake import warn as _warn_of_namesake
from .version import VERSION as __version__

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "kernels")):
    # A source checkout: kernels/, quant/ and converter/ stand beside this folder.
    __path__.append(os.path.dirname(_HERE))

_warn_of_namesake()

_LAZY = {
    "convert": ".quantization",
    "convert_many": ".quantization",
    "convert_to_int8": ".quantization",
    "quantize": ".quantization",
    "calibrate": ".quant.calibration",
    "load_quantized": ".runtime",
    "quantize_model": ".runtime",
    "save_quantized": ".runtime",
    "QuantizedTensor": ".comfy.quant_ops",
    "QuantizedLayout": ".comfy.quant_ops",
    "register_layout_op": ".comfy.quant_ops",
}

__all__ = [
    "QuantizedLayout",
    "QuantizedTensor",
    "__version__",
    "calibrate",
    "convert",
    "convert_many",
    "convert_to_int8",
    "load_quantized",
    "quantize",
    "quantize_model",
    "register_layout_op",
    "save_quantized",
]

if TYPE_CHECKING:
    from .comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_op
    from .quant.calibration import calibrate
    from .quantization import convert, convert_many, convert_to_int8, quantize
    from .runtime import load_quantized, quantize_model, save_quantized


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
