"""Quantized text encoders and language models in transformers, loaded and saved as transformers does it.

Example::

    from convert_to_quant.transformers import CtqConfig
    from transformers import T5EncoderModel
    model = T5EncoderModel.from_pretrained(PATH, quantization_config=CtqConfig(format="int8"))

Importing it registers the config in transformers; folders that such a model was saved to are then read by a
plain ``from_pretrained``. ConversionError says why where it cannot.
"""

from .integrations.config import CtqConfig
from .integrations.disk import disk_offload
from .integrations.marking import mark_quantized
from .integrations.register import register_transformers

__all__ = ["CtqConfig", "disk_offload", "mark_quantized"]

register_transformers()
