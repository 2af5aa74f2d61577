"""How much of a layer's error arrives at the model's output: measured by making a small one.

A layer's output error says little about the model's: later layers drown some errors and amplify others. So
each linear layer in turn computes W x + D x, with D random and small beside W, as quantized weights do, and
the model's output is compared with what it was. Errors of several layers add up, as energies, while they
are small; so one number a layer is enough to choose formats by (docs/size.md has what that gained). It takes
one run of the model for each layer and kept call, and no gradients.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from .linear import linear_layers

STRENGTH = 0.05
"""Size of D beside W: an error of -26 dB, about that of 4-bit weights."""


class Calls:
    """Keeps a uniform sample of a module's calls while its ``with`` block lasts, to make them again.

    module: the model, or what of it a run calls. count: calls to keep; with 0 nothing is hooked.
    """

    def __init__(self, module: nn.Module, count: int, seed: int = 0) -> None:
        self._kept: list[tuple[tuple, dict[str, Any]]] = []
        self._module, self._count, self._seen = module, count, 0
        self._generator = torch.Generator().manual_seed(seed)

    def __enter__(self) -> Calls:
        self._handle = None
        if self._count:
            self._handle = self._module.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._seen += 1
        place = len(self._kept)
        if place == self._count:  # the n-th call replaces one of the kept with probability count / n
            place = int(torch.randint(self._seen, (), generator=self._generator))
            if place >= self._count:
                return
        copies = tree_map(lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, (args, kwargs))
        self._kept[place : place + 1] = [copies]

    def __len__(self) -> int:
        return len(self._kept)

    def outputs(self) -> Iterator[torch.Tensor]:
        """Make the calls again; yield of each the first floating-point tensor that it returns.

        ValueError where there is none.
        """
        for args, kwargs in self._kept:
            returned = self._module(*args, **kwargs)
            # The output classes of diffusers and transformers are dicts in order, which pytree does not know.
            leaves = tree_leaves(list(returned.values()) if isinstance(returned, dict) else returned)
            found = (v for v in leaves if isinstance(v, torch.Tensor) and v.is_floating_point())
            output = next(found, None)
            if output is None:
                raise ValueError(f"{type(self._module).__name__} returns no floating-point tensor to compare")
            yield output


def influences(
    model: nn.Module,
    calls: Calls,
    seed: int = 0,
    layers: Callable[[str], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Return, for each linear layer that runs, its output's relative error in the model's output.

    An influence of 0.5: an error of one hundredth of the layer's output, both as energies, is an error of one
    two-hundredth of the model's. The model's output is the first floating-point tensor that a call returns.
    layers: which module names (None: all). The same model, calls and seed give the same numbers. progress:
    called as ``progress(done, total)``, in layers. Without calls nothing runs. ValueError for a model whose
    output is no such tensor.
    """
    found: dict[str, float] = {}
    if not len(calls):
        return found
    with torch.no_grad():
        exact = [y.float() for y in calls.outputs()]
        signal = sum(_energy(y) for y in exact)
        chosen = {n: m for n, m in linear_layers(model).items() if layers is None or layers(n)}
        for done, (name, module) in enumerate(chosen.items(), 1):
            with _Disturbed(module, zlib.crc32(f"{seed}:{name}".encode())) as layer:
                noise = sum(_energy(got - y) for got, y in zip(calls.outputs(), exact, strict=True))
            if layer.signal and signal and layer.noise:
                found[name] = noise / signal / (layer.noise / layer.signal)
            if progress is not None:
                progress(done, len(chosen))
    return {name: value for name, value in found.items() if value < float("inf")}


class _Disturbed:
    """A layer that computes W x + D x while the block lasts. noise, signal: energies of D x and of W x."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        self.noise = self.signal = 0.0
        self._module, self._seed = module, seed
        self._weight: torch.Tensor | None = None

    def __enter__(self) -> _Disturbed:
        self._handle = self._module.register_forward_hook(self._add, with_kwargs=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._handle.remove()

    def _add(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(output, torch.Tensor) or not isinstance(x, torch.Tensor) or not output.numel():
            return None
        if self._weight is None:
            self._weight = self._random(x)
        error = F.linear(x, self._weight)
        bias = getattr(module, "bias", None)
        self.noise += _energy(error)
        self.signal += _energy(output if bias is None or bias.is_meta else output - bias.to(output))
        return output + error.to(output.dtype)

    def _random(self, x: torch.Tensor) -> torch.Tensor:
        """Return D [N, K] on x's device: normal, and as large beside each row of W as the others'."""
        weight: Any = self._module.weight
        made = torch.randn(weight.shape, generator=torch.Generator().manual_seed(self._seed))
        size = torch.ones(()) if weight.is_meta else weight.detach().float().square().mean(1, True).sqrt()
        return (made.to(x.device) * (STRENGTH * size.to(x.device))).to(x.dtype)


def _energy(x: torch.Tensor) -> float:
    return x.float().square().sum(dtype=torch.float64).item()
