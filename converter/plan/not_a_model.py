"""Refusing a file that is no model, under its right name and with what to do with it."""

from ...files.checkpoint import Checkpoint
from ...formats.errors import ConversionError
from ..lora.keys import is_lora
from ..options.settings import Settings
from ..presets.other_files import other_file


def require_model(checkpoint: Checkpoint, settings: Settings) -> None:
    """ConversionError for a LoRA, and, unless the user says which model it is, for what holds none."""
    if is_lora(checkpoint.tensors):
        raise ConversionError(
            f"{checkpoint.path}: is a LoRA, not a model ({next(iter(checkpoint.tensors))}, ...); to merge it "
            f"into its model: convert_to_quant -i MODEL.safetensors --merge-lora {checkpoint.path}"
        )
    kind = other_file(checkpoint.shapes()) if settings.preset == "auto" else None
    if kind is not None:
        raise ConversionError(
            f"{checkpoint.path}: is {kind.title}, which ComfyUI does not load quantized; --preset none "
            "converts it all the same, by the general rule"
        )
