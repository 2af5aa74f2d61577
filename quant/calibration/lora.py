"""The input directions that a LoRA reads, as weighted rows for the Hessian.

An adapter adds B A to the weight: it acts on an input only through A's rows. Errors along those
directions reach what the adapter was trained for, so they join the Hessian as D^T D = A^T B^T B A: each
direction by the strength with which it moves the output.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from .names import MatchReport, NothingMatched, bare

_DOWN = re.compile(r"^(?P<layer>.+?)[._]lora(?:_down|_A|\.down)(?:\.default)?\.weight$")
_UPS = (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up"))


@dataclass(frozen=True)
class LoraDirections:
    """The adapted layers of a LoRA file; tensors are read when `directions` asks for them.

    layers: the adapted layer's name in the file -> (key of A, key of B or None).
    """

    path: Path
    layers: dict[str, tuple[str, str | None]]

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LoraDirections":
        """Open a LoRA in safetensors. ValueError when it holds no down-projection of a linear layer."""
        path = Path(path)
        with safe_open(path, framework="pt") as f:
            keys = set(f.keys())
            down = {m["layer"]: key for key in sorted(keys) if (m := _DOWN.match(key))}
            down = {name: key for name, key in down.items() if len(f.get_slice(key).get_shape()) == 2}
        if not down:
            raise ValueError(f"{path} holds no lora_down / lora_A weight of a linear layer")
        return cls(path, {name: (key, _up(key, keys)) for name, key in down.items()})

    def match(self, layer_names: Iterable[str]) -> tuple[dict[str, str], MatchReport]:
        """``({layer: name in the file}, report)``; dots and underscores, and prefixes, do not matter.

        NothingMatched (a ValueError) when no layer is adapted.
        """
        layer_names = list(layer_names)
        by_flat = {_flat(name): name for name in self.layers}
        found = {name: by_flat[_flat(name)] for name in layer_names if _flat(name) in by_flat}
        if not found:
            raise NothingMatched(
                f"{self.path}: none of its {len(self.layers)} adapted layers is in the model"
            )
        used = set(found.values())
        return found, MatchReport(
            tuple(found),
            tuple(n for n in layer_names if n not in found),
            tuple(n for n in self.layers if n not in used),
        )

    def directions(self, name: str) -> torch.Tensor:
        """D [r, K] float32 of a layer named as in the file: (B^T B)^(1/2) A."""
        down_key, up_key = self.layers[name]
        with safe_open(self.path, framework="pt") as f:
            down = f.get_tensor(down_key).float()
            if up_key is None:
                return down
            up = f.get_tensor(up_key).float()
        values, vectors = torch.linalg.eigh(up.T @ up)
        return (vectors * values.clamp_min(0).sqrt()).T @ down


def _up(down: str, keys: set[str]) -> str | None:
    candidates = (down.replace(a, b) for a, b in _UPS if a in down)
    return next((key for key in candidates if key in keys), None)


def _flat(name: str) -> str:
    """The name with prefixes gone and dots as underscores, as trainers flatten it."""
    for prefix in ("lora_unet_", "lora_transformer_", "lora_te_", "lycoris_"):
        name = name.removeprefix(prefix)
    return bare(name).replace(".", "_")
