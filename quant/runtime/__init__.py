"""Running quantized models: load, quantize and save any torch model; operations; LoRA; name tables."""

from ...formats import CheckpointError
from ...names.keymap import KeyMap, map_for
from ..sharing import shared_inputs
from .adapters import fold_lora
from .empty import empty_weights
from .int8_linear import Int8Linear
from .loading import LoadReport, load_quantized, require_fit
from .lora import LoraHandle, LowRank, apply_lora
from .operations import mixed_precision_ops
from .quantizing import QuantizeReport, quantize_model
from .saving import plain_state_dict, save_quantized, write_tensors

__all__ = [
    "CheckpointError",
    "Int8Linear",
    "KeyMap",
    "LoadReport",
    "LoraHandle",
    "LowRank",
    "QuantizeReport",
    "apply_lora",
    "empty_weights",
    "fold_lora",
    "load_quantized",
    "map_for",
    "mixed_precision_ops",
    "plain_state_dict",
    "quantize_model",
    "require_fit",
    "save_quantized",
    "shared_inputs",
    "write_tensors",
]
