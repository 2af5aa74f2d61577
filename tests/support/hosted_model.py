"""A small model written as ComfyUI's are, as floats and in a stand-in for ComfyUI."""

import torch
from safetensors.torch import load_file
from torch import nn

PACK = "custom_nodes_convert_to_quant"
"""The name under which tests load the node pack."""


class Transformer(nn.Module):
    """As ComfyUI's models are written: layers from `operations`."""

    def __init__(self, operations):
        super().__init__()
        self.up = operations.Linear(128, 256)
        self.down = operations.Linear(256, 128, bias=False)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x)))


def float_model() -> nn.Module:
    """The model in float32, always with the same weights."""
    torch.manual_seed(0)
    return Transformer(nn).requires_grad_(False)


def hosted(comfy, source, dtype=torch.float32) -> nn.Module:
    """The model as ComfyUI builds it, of a file or a state dict."""
    state = source if isinstance(source, dict) else load_file(source)
    model = Transformer(comfy.ops.pick_operations({"mixed_ops": True}, dtype))
    model.load_state_dict(state)
    return model.requires_grad_(False)
