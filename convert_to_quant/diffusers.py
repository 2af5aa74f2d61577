"""Quantized models in diffusers, loaded and saved as diffusers does it.

Example::

    from convert_to_quant.diffusers import CtqConfig
    from diffusers import FluxTransformer2DModel
    model = FluxTransformer2DModel.from_pretrained(PATH, quantization_config=CtqConfig(format="int8"))

Importing it registers the config in diffusers, and in transformers where that is installed; folders that such
a model was saved to are then read by a plain ``from_pretrained``. ConversionError says why where it cannot.
"""

from .integrations.config import CtqConfig
from .integrations.disk import disk_offload
from .integrations.marking import mark_quantized
from .integrations.register import register_diffusers

__all__ = ["CtqConfig", "disk_offload", "mark_quantized"]

register_diffusers()
