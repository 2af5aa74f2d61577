"""Which linear layers of a model are quantized."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..tensor import QuantizedTensor

MIN_FEATURES = 32
"""Layers with fewer inputs or outputs stay as they are: nothing to gain, and much to lose."""

Layers = Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Which layers: patterns on module names (``"*.norm1.*"``, fnmatch), or a function of name and module.

A pattern that matches a module stands for all layers inside it."""

Keep = Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, str]]
"""Takes the shapes of all parameters by name; returns the weights to leave, each with the reason."""


def select_layers(
    model: nn.Module,
    skip: Layers = None,
    include: Layers = None,
    keep: Keep | None = None,
    empty: bool = False,
) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """Return the linear layers to quantize, by name, and why the others are not.

    The second also lists weights that no ``nn.Linear`` holds (``in_proj_weight`` of an attention module).
    empty: also those on the meta device, whose data come later. ValueError for a pattern that matches no
    linear layer.
    """
    named = dict(model.named_modules())
    linears = {name: module for name, module in named.items() if isinstance(module, nn.Linear)}
    refuse, insist = _predicate(skip, "skip", linears), _predicate(include, "include", linears)
    kept = dict(keep(_shapes(model))) if keep is not None else {}
    owners: dict[int, str] = {}
    for name, parameter in _own_parameters(named):
        owners.setdefault(id(parameter), name)
    todo, skipped = {}, {}
    for name, module in linears.items():
        reason = _reason(name, module, refuse, owners)
        if not reason and module.weight.is_meta and not empty:
            reason = "has no data (meta device)"
        if not reason and not insist(name, module):
            reason = kept.get(_weight(name))
        if reason:
            skipped[name] = reason
        else:
            todo[name] = module
    for name, module in named.items():
        if not isinstance(module, (nn.Linear, nn.Embedding, nn.EmbeddingBag)):
            for leaf, p in _own_parameters({name: module}):
                if p.dim() == 2 and p.is_floating_point() and min(p.shape) >= MIN_FEATURES:
                    skipped[leaf] = f"belongs to {type(module).__name__}, which is no nn.Linear"
    return todo, skipped


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def _own_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield (f"{name}.{leaf}" if name else leaf), parameter


def _predicate(asked: Layers, what: str, linears: Iterable[str]) -> Callable[[str, nn.Module], bool]:
    if asked is None:
        return lambda name, module: False
    if callable(asked):
        return asked
    patterns = [asked] if isinstance(asked, str) else list(asked)
    matched: set[str] = set()
    for pattern in patterns:
        found = {name for name in linears if any(fnmatchcase(n, pattern) for n in _around(name))}
        if not found:
            raise ValueError(_matches_nothing(pattern, what, list(linears)))
        matched |= found
    return lambda name, module: name in matched


def _around(name: str) -> Iterator[str]:
    """Yield a module's name and those of the modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _matches_nothing(pattern: str, what: str, names: list[str]) -> str:
    modules = list(dict.fromkeys(n for name in names for n in _around(name)))
    near = difflib.get_close_matches(pattern, modules, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"its linear layers are {', '.join(names[:3])}, ..."
    return f"{what}: the pattern {pattern!r} matches no linear layer of the model; {hint}"


def _reason(name: str, module: nn.Linear, refuse: Callable, owners: dict[int, str]) -> str | None:
    weight = module.weight
    if refuse(name, module):
        return "asked to skip"
    if isinstance(weight, QuantizedTensor):
        return "already quantized"
    if owners[id(weight)] != _weight(name):
        return f"shares its weight with {owners[id(weight)]}"
    if min(weight.shape) < MIN_FEATURES:
        return f"smaller than {MIN_FEATURES}"
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"is {weight.dtype}"
    return None
