"""LoRA files in the key styles of their makers, and the float64 weights they must give."""

import torch
from models import save

TINY_FLUX = {
    "img_in": (64, 32),
    "double_blocks.0.img_mod.lin": (384, 64),
    "double_blocks.0.img_attn.qkv": (192, 64),
    "double_blocks.0.img_attn.proj": (64, 64),
    "double_blocks.0.txt_attn.qkv": (192, 64),
    "double_blocks.0.txt_attn.proj": (64, 64),
    "double_blocks.0.img_mlp.0": (256, 64),
    "double_blocks.0.img_mlp.2": (64, 256),
    "single_blocks.0.linear1": (448, 64),
    "single_blocks.0.linear2": (64, 320),
    "single_blocks.1.linear1": (448, 64),
    "single_blocks.1.linear2": (64, 320),
    "final_layer.linear": (32, 64),
    "final_layer.adaLN_modulation.1": (128, 64),
}
"""Layers of a model named and proportioned as Flux."""


def rand(*shape, seed=0, dtype=torch.float32, size=0.05):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g) * size).to(dtype)


def flux_weights(prefix: str = "", dtype=torch.bfloat16):
    """Weights and biases of TINY_FLUX by name."""
    tensors = {}
    for i, (name, (n, k)) in enumerate(TINY_FLUX.items()):
        tensors[f"{prefix}{name}.weight"] = rand(n, k, seed=i, dtype=dtype)
        tensors[f"{prefix}{name}.bias"] = rand(n, seed=100 + i, dtype=dtype)
    return tensors


STYLES = {
    "peft": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "peft default": ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "down up": ("{}.lora_down.weight", "{}.lora_up.weight"),
    "first diffusers": ("{}_lora.down.weight", "{}_lora.up.weight"),
    "linear layer": ("{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight"),
}
"""Style -> (key of the down projection, key of the up projection) of a module."""


def low_rank(module, n, k, rank=4, style="down up", alpha=None, seed=7, dtype=torch.float32):
    """The tensors of one module, and its unscaled change in float64 (alpha included)."""
    down, up = rand(rank, k, seed=seed, dtype=dtype), rand(n, rank, seed=seed + 1, dtype=dtype)
    a, b = STYLES[style]
    tensors = {a.format(module): down, b.format(module): up}
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(float(alpha))
    change = up.double() @ down.double() * (1.0 if alpha is None else alpha / rank)
    return tensors, change


def save_lora(path, tensors, metadata=None):
    return save(path, tensors, metadata)
