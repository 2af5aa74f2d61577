"""The table of formats; weights are comfy-kitchen's own."""

import torch
from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

QUANT_ALGOS = {
    "int8_tensorwise": {
        "storage_t": torch.int8,
        "parameters": {"weight_scale"},
        "comfy_tensor_layout": "TensorWiseINT8Layout",
        "quantize_input": False,
    }
}

__all__ = ["QUANT_ALGOS", "QuantizedTensor", "get_layout_class"]
