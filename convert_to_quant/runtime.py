"""Running quantized models in any torch program.

Example::

    from convert_to_quant.runtime import empty_weights, load_quantized
    with empty_weights():
        model = MyTransformer(config)
    print(load_quantized(model, "model-int8.safetensors", device="cuda").summary())
"""

from .converter.model import quantize_model
from .namesake import warn as _warn_of_namesake
from .quant.algorithms import LayerStats, QuantizeOptions
from .quant.runtime import (
    CheckpointError,
    Int8Linear,
    KeyMap,
    LoadReport,
    LoraHandle,
    LowRank,
    QuantizeReport,
    apply_lora,
    empty_weights,
    fold_lora,
    load_quantized,
    map_for,
    mixed_precision_ops,
    plain_state_dict,
    save_quantized,
    shared_inputs,
)

__all__ = [
    "CheckpointError",
    "Int8Linear",
    "KeyMap",
    "LayerStats",
    "LoadReport",
    "LoraHandle",
    "LowRank",
    "QuantizeOptions",
    "QuantizeReport",
    "apply_lora",
    "empty_weights",
    "fold_lora",
    "load_quantized",
    "map_for",
    "mixed_precision_ops",
    "plain_state_dict",
    "quantize_model",
    "save_quantized",
    "shared_inputs",
]

_warn_of_namesake()  # the package did, unless the other tool's __init__ has replaced ours
