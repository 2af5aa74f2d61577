"""Recording a model's own activations while it runs.

A recorder hooks every linear layer and keeps, of each distinct input, a uniform random sample of its
tokens over all calls, the largest magnitude and the mean of each channel. Layers fed by one tensor
share one record. Memory is bounded by tokens x in_features x 2 bytes per record, however long it runs.
"""

import logging
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, cast

import torch
from torch import nn

from ..algorithms.types import LayerStats
from .file import CalibrationData, save
from .influence import Calls, influences
from .linear import linear_layers

logger = logging.getLogger(__name__)

_PROBES = 64
"""Values compared where a tensor has no version."""

TOKENS = 4096
"""Default sample size per layer: held-out quality still rises a little beyond (docs/quality.md)."""


class Reservoir:
    """Statistics of one input [.., K]: n tokens drawn uniformly, channel maxima and means.

    Each token gets a random key and the n smallest keys stay, which is a uniform sample without
    replacement whatever the batching.
    """

    def __init__(self, channels: int, tokens: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = torch.empty(tokens, channels, dtype=torch.bfloat16)
        self.keys = torch.empty(tokens, dtype=torch.float64)
        self.filled = self.seen = self.dropped = 0
        self.peak = torch.zeros(channels)
        self.total = torch.zeros(channels, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Take in the tokens of x; those with NaN or Inf are dropped and counted."""
        x = x.detach().reshape(-1, x.shape[-1])
        finite = torch.isfinite(x.sum(1, dtype=torch.float32))
        if not finite.all():
            self.dropped += int((~finite).sum())
            x = x[finite]
        m = x.shape[0]
        if m == 0:
            return
        self.seen += m
        self.peak = torch.maximum(self.peak, torch.maximum(x.amax(0), x.amin(0).neg()).float().cpu())
        self.total += x.sum(0, dtype=torch.float32).double().cpu()
        self._sample(x, torch.rand(m, generator=self.generator, dtype=torch.float64))

    def _sample(self, x: torch.Tensor, keys: torch.Tensor) -> None:
        room, filled = self.rows.shape[0], self.filled
        both = torch.cat((self.keys[:filled], keys))
        kept = both.topk(min(room, both.shape[0]), largest=False).indices
        incoming = kept[kept >= filled].sort().values - filled
        stays = torch.zeros(room, dtype=torch.bool)
        stays[kept[kept < filled]] = True
        slots = (~stays).nonzero().squeeze(1)[: incoming.shape[0]]
        self.rows[slots] = x[incoming.to(x.device)].to(device="cpu", dtype=torch.bfloat16)
        self.keys[slots] = keys[incoming]
        self.filled = kept.shape[0]

    def stats(self) -> LayerStats:
        """Return what was measured: samples bf16 [n, K], channel_max and channel_mean [K], input_scale."""
        mean = (self.total / max(self.seen, 1)).float()
        scale = max(self.peak.amax().item(), 1e-30) / 127
        return LayerStats(self.rows[: self.filled].clone(), self.peak.clone(), mean, scale)


class Recorder:
    """Hooks on the linear layers of a model, while its ``with`` block lasts::

        with Recorder(model, tokens=4096) as recorder:
            pipeline("a cat")
        recorder.save("calibration.safetensors")

    tokens: sample size per layer. max_bytes: lowers it so that all samples together stay below.
    layers: which module names to record (None: every linear layer). Same seed, same inputs: same file.
    `attach` and `detach` do what the block does, also on another copy of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: int = TOKENS,
        seed: int = 0,
        layers: Callable[[str], bool] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.layers = layers
        self.modules = self._linear(model)
        self.tokens = tokens if max_bytes is None else min(tokens, self._affordable(max_bytes))
        self.seed = seed
        self.records: dict[str, Reservoir] = {}
        self.owner: dict[str, str] = {}
        self._recent: dict[int, tuple[weakref.ref, tuple[float, ...], str]] = {}
        self._handles: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def _linear(self, model: nn.Module) -> dict[str, nn.Module]:
        chosen = self.layers or (lambda name: True)
        found = {n: m for n, m in linear_layers(model).items() if chosen(n)}
        if not found:
            raise ValueError("the model has no linear layer to record, or `layers` chose none")
        return found

    def _affordable(self, max_bytes: int) -> int:
        return max(1, max_bytes // sum(2 * cast(int, m.in_features) for m in self.modules.values()))

    def __enter__(self) -> "Recorder":
        self._hook()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.detach()

    def attach(self, model: nn.Module) -> None:
        """Record `model` from now on: the same one, or one with the same layers, built anew.

        What it sees joins the records of its layers' names. A layer whose hook has failed before stays off.
        """
        self.detach()
        self.modules = self._linear(model)
        self._hook()

    def detach(self) -> None:
        """Take every hook off; the records stay."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._recent.clear()

    def _hook(self) -> None:
        for name, module in self.modules.items():
            if name not in self.failed:
                hook = lambda module, args, kwargs, name=name: self._watch(name, args, kwargs)
                self._handles[name] = module.register_forward_pre_hook(hook, with_kwargs=True)

    def _watch(self, name: str, args: tuple, kwargs: dict) -> None:
        """Record an input; a fault takes this layer's hook off for good, and never reaches the model.

        The first is logged: a cause that all layers share would fill the log. `failed` has them all.
        Outside inference mode, whatever mode the model runs in: what is kept must stay writable.
        """
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._see(name, args, kwargs)
        except Exception as error:
            handle = self._handles.pop(name, None)
            if handle is not None:
                handle.remove()
            if not self.failed:
                logger.warning("recording of %s stopped: %s: %s", name, type(error).__name__, error)
            self.failed[name] = f"{type(error).__name__}: {error}"

    def _see(self, name: str, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.numel() == 0:
            return
        feeder = self._same_tensor(x)
        if feeder not in (None, name) and self.owner.setdefault(name, feeder) == feeder:
            return
        # A layer that shared an input until now gets a record of its own, of its inputs from here on.
        self.owner[name] = name
        if name not in self.records:
            seed = zlib.crc32(f"{self.seed}:{name}".encode())
            self.records[name] = Reservoir(x.shape[-1], self.tokens, seed)
        self.records[name].add(x)
        self._recent[id(x)] = (weakref.ref(x), _state(x), name)

    def _same_tensor(self, x: torch.Tensor) -> str | None:
        """Return the record that has just taken in this very tensor, unchanged since, or None."""
        self._recent = {key: entry for key, entry in self._recent.items() if entry[0]() is not None}
        ref, state, name = self._recent.get(id(x), (None, (), None))
        return name if ref is not None and ref() is x and state == _state(x) else None

    def stats(self) -> dict[str, LayerStats]:
        """Return {name: statistics}, one entry per record."""
        return {name: reservoir.stats() for name, reservoir in self.records.items() if reservoir.seen}

    def shared(self) -> dict[str, str]:
        """Return {layer: the record that it shares}."""
        return {name: owner for name, owner in self.owner.items() if name != owner}

    def save(self, path: str | os.PathLike, influence: Mapping[str, float] | None = None) -> CalibrationData:
        """Write the calibration file and open it. ValueError when nothing was recorded.

        influence: of layers on the model's output, as `influence.influences` returns it.
        """
        stats = self.stats()
        if not stats:
            raise ValueError("nothing was recorded: no linear layer has run; call the model inside the block")
        return CalibrationData.load(save(path, stats, self.shared(), influence=influence))


def _state(x: torch.Tensor) -> tuple[float, ...]:
    """Tell whether a tensor has changed in place: its version, or for an inference tensor some of its values.

    Tensors made under ``torch.inference_mode()``, as ComfyUI samples, have no version counter.
    """
    if not x.is_inference():
        return (float(x._version),)
    flat = x.detach().reshape(-1)
    return tuple(flat[:: max(1, flat.numel() // _PROBES)].float().tolist())


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    output: str | os.PathLike,
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    layers: Callable[[str], bool] | None = None,
    max_bytes: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    influence: int = 0,
) -> CalibrationData:
    """Run `model` over `batches` and write what its linear layers saw to `output`; returns it opened.

    batches: each a tensor (one argument), a tuple or list (positional) or a dict (keywords); `forward`
        replaces the call, as ``forward(model, batch)``.
    output: .safetensors (with samples) or .json. progress: called as ``progress(done, total or None)``.
    influence: calls of the model, drawn from all, on which every layer's influence on its output is measured
        afterwards, for ``--target-size``: so many more runs of the model for each linear layer.
    Other arguments as in `Recorder`. The model runs as it is set (put it in eval mode first).
    """
    total = len(batches) if isinstance(batches, Sized) else None
    recorder = Recorder(model, tokens, seed, layers, max_bytes)
    with recorder, Calls(model, influence, seed) as calls, torch.no_grad():
        for done, batch in enumerate(batches, 1):
            (forward or _call)(model, batch)
            if progress is not None:
                progress(done, total)
    return recorder.save(output, influences(model, calls, seed, layers))


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
