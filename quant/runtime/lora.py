"""LoRA at run time: deltas on quantized weights that come off again to the bit."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ...files.checkpoint import open_checkpoint
from ...folding.changes import MADE_FOR, LayerFold
from ...formats import CheckpointError
from ...names.prefixes import lora_readings
from ..layouts import layout_class
from ..tensor import QuantizedTensor
from .folds import FOLDS

_PATCHED: "WeakKeyDictionary[nn.Module, _Patches]" = WeakKeyDictionary()
_DOWN_UP = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight")


@dataclass(frozen=True)
class LowRank:
    """delta = scale * up [N, r] @ down [r, K]."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0

    def delta(self, device: torch.device) -> torch.Tensor:
        """Return the float32 matrix [N, K] on `device`."""
        up, down = (t.to(device=device, dtype=torch.float32).flatten(1) for t in (self.up, self.down))
        return self.scale * (up @ down)


@dataclass
class _Patches:
    """Per parameter: its bits before the first LoRA. The handles in the order they were applied."""

    saved: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    active: list["LoraHandle"] = field(default_factory=list)


class LoraHandle:
    """An applied LoRA; `remove` (or leaving a ``with`` block) takes it off.

    deltas: by the parameter's name.
    """

    def __init__(self, model: nn.Module, deltas: dict[str, "LowRank | torch.Tensor"], strength: float):
        self.model, self.deltas, self.strength = model, deltas, strength

    def __enter__(self) -> "LoraHandle":
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take this LoRA off; other LoRAs on the model stay. Without any left on a weight, its integers
        and scales are the original ones, bit for bit. Removing twice does nothing."""
        patches = _PATCHED.get(self.model)
        if patches is None or self not in patches.active:
            return
        patches.active.remove(self)
        for name in self.deltas:
            _update(self.model, name, patches)


def apply_lora(
    model: nn.Module,
    lora: "str | os.PathLike[str] | Mapping[str, LowRank | torch.Tensor]",
    strength: float = 1.0,
) -> LoraHandle:
    """Add a LoRA to the weights of `model`, quantized or not, in place; returns its handle.

    lora: a safetensors file (``X.lora_A/lora_B``, ``X.lora_down/lora_up`` with ``X.alpha``, dotted or with
        underscores as in ``lora_unet_double_blocks_0_...``), or ``{module name: LowRank or delta [N, K]}``.
    A quantized weight is dequantized from its *original* bits, all active deltas are added in float32 and
    the sum is rounded to nearest in the same layout, granularity and rotation: order does not matter
    and nothing accumulates. The original bits are kept until the last LoRA is off.
    Weights keep their storage, so captured CUDA graphs and compiled models see the change.
    On a model from a folded file (``--fold``) the deltas are folded first, biases included; a LoRA file that
    was made for it (``ctq edit --fold-lora``) says so and is added as it is.

    CheckpointError, with the nearest names, when a key of the LoRA matches no layer or a shape does not fit;
    nothing is changed then.
    """
    given: dict[str, LowRank | torch.Tensor]
    given = {**read_lora(lora, model)} if isinstance(lora, (str, os.PathLike)) else dict(lora)
    _check(model, given)
    folds = {} if _made_for_folded(lora) else model.__dict__.get(FOLDS) or {}
    handle = LoraHandle(model, _by_parameter(given, folds), strength)
    patches = _PATCHED.setdefault(model, _Patches())
    patches.active.append(handle)
    for name in handle.deltas:
        _update(model, name, patches)
    return handle


def _made_for_folded(lora: object) -> bool:
    if not isinstance(lora, (str, os.PathLike)):
        return False
    with open_checkpoint(lora) as file:
        return MADE_FOR in file.metadata


def _by_parameter(
    given: Mapping[str, LowRank | torch.Tensor], folds: Mapping[str, LayerFold]
) -> dict[str, LowRank | torch.Tensor]:
    """Return changes of layers as changes of their parameters, folded where the layer is."""
    made: dict[str, LowRank | torch.Tensor] = {}
    for layer, delta in given.items():
        bias: torch.Tensor | None = None
        if layer in folds:
            fold = folds[layer]
            if isinstance(delta, LowRank):
                up, down, bias = fold.pair(delta.up.flatten(1), delta.down.flatten(1))
                delta, bias = LowRank(down, up, delta.scale), None if bias is None else delta.scale * bias
            else:
                delta, bias = fold.change(delta)
        made[f"{layer}.weight"] = delta
        if bias is not None:
            made[f"{layer}.bias"] = bias
    return made


def _bits(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return weight.inner_tensors() if isinstance(weight, QuantizedTensor) else {"": weight.detach()}


@torch.no_grad()
def _update(model: nn.Module, name: str, patches: _Patches) -> None:
    """Bring parameter `name` to its original bits plus the active deltas."""
    layer, _, leaf = name.rpartition(".")
    weight: Any = getattr(model.get_submodule(layer), leaf)
    if name not in patches.saved:
        patches.saved[name] = {k: t.clone() for k, t in _bits(weight).items()}
    _restore(weight, patches.saved[name])
    active = [h for h in patches.active if name in h.deltas]
    if not active:
        del patches.saved[name]
        return
    dense = dequantize_float32(weight)
    for handle in active:
        delta = handle.deltas[name]
        dense += handle.strength * (
            delta.delta(dense.device) if isinstance(delta, LowRank) else delta.to(dense)
        )
    if not isinstance(weight, QuantizedTensor):
        weight.detach().copy_(dense)
        return
    layout = layout_class(weight._layout_type)
    made = QuantizedTensor.from_float(dense, layout, **layout.requantize_options(weight._layout_params))
    _restore(weight, _bits(made))


def _restore(weight: torch.Tensor, bits: Mapping[str, torch.Tensor]) -> None:
    """Give a weight other bits, in the memory that it has."""
    for name, mine in _bits(weight).items():
        mine.copy_(bits[name].reshape(mine.shape))


def dequantize_float32(weight: torch.Tensor) -> torch.Tensor:
    """Return a float32 copy of a weight, quantized or not."""
    if isinstance(weight, QuantizedTensor):
        return weight.map_inner(lambda a: a, orig_dtype=torch.float32).dequantize()
    return weight.detach().float().clone()


def _check(model: nn.Module, deltas: Mapping[str, LowRank | torch.Tensor]) -> None:
    modules = dict(model.named_modules())
    for name, delta in deltas.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, torch.Tensor):
            near = get_close_matches(name, modules, n=1)
            raise CheckpointError(
                f"LoRA key {name!r} matches no layer" + (f" (nearest: {near[0]})" if near else "")
            )
        shape = (
            (delta.up.shape[0], delta.down.flatten(1).shape[1])
            if isinstance(delta, LowRank)
            else tuple(delta.shape)
        )
        if shape != tuple(weight.shape):
            raise CheckpointError(f"LoRA for {name} is {list(shape)}, the weight {list(weight.shape)}")


def read_lora(path: str | os.PathLike[str], model: nn.Module) -> dict[str, LowRank]:
    """Read the low-rank deltas of a LoRA file, by the module names of `model`.

    scale = alpha / rank where the file has an alpha, else 1. CheckpointError for keys of unknown form or
    layers that the model does not have.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    with open_checkpoint(path) as file:
        for key in file.tensors:
            match = _DOWN_UP.fullmatch(key)
            if match:
                leaf = "down" if match[2] in ("lora_A", "lora_down") else "up"
                parts.setdefault(match[1], {})[leaf] = file.read(key)
            elif key.endswith(".alpha"):
                parts.setdefault(key.removesuffix(".alpha"), {})["alpha"] = file.read(key)
            else:
                raise CheckpointError(
                    f"{path}: key {key!r} is of no LoRA form known here; X.lora_A and X.lora_B are, or "
                    "X.lora_down and X.lora_up with X.alpha"
                )
    modules = {n: n for n, _ in model.named_modules()}
    underscored = {n.replace(".", "_"): n for n in modules}
    found = {}
    for name, tensors in parts.items():
        if not {"down", "up"} <= tensors.keys():
            raise CheckpointError(f"{path}: {name} has only {', '.join(tensors)}; a LoRA needs down and up")
        alpha, rank = tensors.get("alpha"), tensors["down"].shape[0]
        scale = 1.0 if alpha is None else float(alpha) / rank
        found[_module_name(name, modules, underscored)] = LowRank(tensors["down"], tensors["up"], scale)
    return found


def _module_name(name: str, modules: dict[str, str], underscored: dict[str, str]) -> str:
    """Return the module that a LoRA calls `name`, less what its maker put before it; else what is left."""
    reading = name
    for reading, _ in lora_readings(name):
        found = modules.get(reading) or underscored.get(reading.replace(".", "_"))
        if found:
            return found
    return reading
