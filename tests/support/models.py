"""Small checkpoints with the shapes of real ones, written with the safetensors library."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def block_weights(blocks: int = 2, hidden: int = 256, dtype: torch.dtype = torch.bfloat16, seed: int = 0):
    """A transformer with numbered blocks, an embedder before and a final layer after them."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return (torch.randn(*shape, generator=g) * 0.05).to(dtype)

    tensors = {"x_embedder.weight": rand(hidden, 64), "x_embedder.bias": rand(hidden)}
    for b in range(blocks):
        p = f"blocks.{b}."
        tensors[p + "attn.qkv.weight"] = rand(3 * hidden, hidden)
        tensors[p + "attn.qkv.bias"] = rand(3 * hidden)
        tensors[p + "attn.norm.weight"] = rand(64)
        tensors[p + "mlp.fc1.weight"] = rand(2 * hidden, hidden)
        tensors[p + "mlp.fc2.weight"] = rand(hidden, 2 * hidden)
    tensors["final_layer.weight"] = rand(64, hidden)
    return tensors


QUANTIZED = ("attn.qkv", "mlp.fc1", "mlp.fc2")
"""What is quantized in each block of `block_weights`."""


def layers(blocks: int = 2) -> list[str]:
    """Names of the layers of `block_weights` that the default rule quantizes."""
    return [f"blocks.{b}.{name}" for b in range(blocks) for name in QUANTIZED]


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a checkpoint; returns its path."""
    save_file(tensors, str(path), metadata=metadata)
    return path


def save_sharded(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 3) -> Path:
    """Write shards and their index; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[i::shards]}
        save_file(part, str(folder / file), metadata={"format": "pt", f"shard{i}": "yes"})
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index
