"""Small quantized files, and the same with one thing made wrong, as other programs write them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from models import block_weights, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convert_to_quant import convert_to_int8

LAYER = "blocks.0.attn.qkv"
Tensors = dict[str, torch.Tensor]


def make_pair(folder: Path, metadata: dict[str, str] | None = None, **options) -> tuple[Path, Path]:
    """(original, quantized) of a small model."""
    original = save(folder / "original.safetensors", block_weights(), metadata)
    quantized = folder / "quantized.safetensors"
    convert_to_int8(original, quantized, **options)
    return original, quantized


def load(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata by the safetensors library."""
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata() or {}
    return load_file(path), metadata


def config(tensors: Tensors, layer: str = LAYER) -> dict:
    """A layer's comfy_quant object."""
    return json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))


def config_tensor(value: object, end: bytes = b"") -> torch.Tensor:
    """A comfy_quant tensor of a JSON value."""
    return torch.tensor(list(json.dumps(value).encode() + end), dtype=torch.uint8)


def listed(metadata: dict[str, str]) -> dict:
    """The layers of the header's list."""
    return json.loads(metadata["_quantization_metadata"])["layers"]


def list_text(layers: object) -> str:
    """A header list."""
    return json.dumps({"format_version": "1.0", "layers": layers})


def spoil(source: Path, target: Path, change: Callable[[Tensors, dict[str, str]], None]) -> Path:
    """Write a copy of a file that `change` has altered."""
    tensors, metadata = load(source)
    change(tensors, metadata)
    save_file({n: t.contiguous() for n, t in tensors.items()}, target, metadata or None)
    return target
