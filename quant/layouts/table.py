"""The formats as ComfyUI's table of them is shaped."""

from typing import Any

from ...files.dtypes import torch_dtype
from ...formats import FORMATS

QUANT_ALGOS: dict[str, dict[str, Any]] = {
    f.name: {
        "storage_t": torch_dtype(f.weight_dtype),
        "parameters": {*f.suffixes, *f.extras},
        "comfy_tensor_layout": f.layout,
    }
    for f in FORMATS.values()
}
"""Checkpoint formats by the name in ``comfy_quant``, in the shape of ComfyUI's table of that name."""
