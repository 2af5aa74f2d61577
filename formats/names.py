"""The names of the tensors that stand beside a quantized weight, today's and those of older files."""

WEIGHT = "weight"
SCALE = "weight_scale"
CONFIG = "comfy_quant"
INPUT_SCALE = "input_scale"
PRE_QUANT_SCALE = "pre_quant_scale"

OLD_NAMES = {"scale_weight": SCALE, "scale": SCALE, "scale_input": INPUT_SCALE}
"""Older names of the same tensors. ComfyUI refuses them beside INT8 weights."""

FULL_PRECISION = "full_precision_matrix_mult"
"""The key by which a layer asks for float products."""

METADATA_KEY = "_quantization_metadata"
"""Header metadata that lists layers and their formats; ComfyUI believes it over the tensors."""

MARKER = "scaled_fp8"
"""The tensor by which older FP8 files say that their weights have scales."""


def tensor_name(layer: str, suffix: str) -> str:
    """Name a layer's tensor; the layer "" is the model itself."""
    return f"{layer}.{suffix}" if layer else suffix


JOB_KEY = "convert_to_quant.job"
"""Header metadata by which a conversion knows its own result: the version that made it, and from what."""
