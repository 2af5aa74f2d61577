"""Layers whose number of columns ComfyUI reads from the file, to know the model by: packed rows tell another.

From ``comfy/model_detection.py`` of ComfyUI 0.33, as far as it looks into blocks, which alone are quantized.
"""

import re

PATTERNS = (
    r"(^|\.)transformer_blocks\.0\.attn2\.to_k\.weight$",  # UNets, LTX-Video: the width of the prompt
    r"(^|\.)blocks\.0\.norm1\.linear\.weight$",  # CogVideoX: the width of the time embedding
    r"(^|\.)transformer\.layers\.0\.(self_attn\.to_qkv|to_local_embed\.0)\.weight$",  # Stable Audio
)

_COMPILED = tuple(re.compile(pattern) for pattern in PATTERNS)


def columns_are_read(name: str) -> bool:
    """Tell whether ComfyUI reads the number of columns of the weight of this name."""
    return any(pattern.search(name) for pattern in _COMPILED)
