"""Models that were quantized, or loaded, in place: told to their library as if it had loaded them."""

import sys
from typing import Any

from ..folding.coding import KEY
from ..formats import ConversionError
from ..quant import QuantizedTensor
from .config import CtqConfig


def mark_quantized(model: Any, config: CtqConfig | None = None) -> None:
    """Let ``model.save_pretrained`` write what ``from_pretrained`` reads::

        quantize_model(transformer)            # or load_quantized(transformer, "model-int8.safetensors")
        mark_quantized(transformer)
        transformer.save_pretrained("transformer-int8")

    model: a diffusers or transformers model with quantized weights. config: what its ``config.json`` tells of
    how it was made. ConversionError for another model, or one without quantized weights.
    """
    if not any(isinstance(p, QuantizedTensor) for p in model.parameters()):
        raise ConversionError(
            f"{type(model).__name__} has no quantized weights; quantize_model(model) makes them"
        )
    quantizer, config = _quantizer(model), config or CtqConfig()
    model.hf_quantizer = quantizer(config, pre_quantized=True)
    known = getattr(model, "checkpoint_metadata", {})
    model.hf_quantizer.metadata = {KEY: known[KEY]} if KEY in known else {}
    model.is_quantized, model.quantization_method = True, config.quant_method
    if hasattr(model, "register_to_config"):
        model.register_to_config(quantization_config=config)  # diffusers' configs cannot be written to
    else:
        model.config.quantization_config = config


def _quantizer(model: Any) -> Any:
    def is_a(module: str, name: str) -> bool:
        base = getattr(sys.modules.get(module), name, None)
        return base is not None and isinstance(model, base)

    if is_a("diffusers.models.modeling_utils", "ModelMixin"):
        from .diffusers import CtqDiffusersQuantizer

        return CtqDiffusersQuantizer
    if is_a("transformers.modeling_utils", "PreTrainedModel"):
        from .transformers import CtqTransformersQuantizer

        return CtqTransformersQuantizer
    raise ConversionError(
        f"{type(model).__name__} is a model of neither diffusers nor transformers; "
        "convert_to_quant.runtime.save_quantized(model, path) saves any model"
    )
