"""One checkpoint of a comparison: loaded into the model, run on every case, timed."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ...files.checkpoint import open_checkpoint
from ...formats.errors import ConversionError
from ...quant import QuantizedTensor
from ...quant.runtime import LoadReport, load_quantized
from .cases import Case, build_model, find_factory
from .report import Side

LAYER_SHAPES = 4
"""Distinct weight shapes whose linears are tried with edge-case inputs."""


@dataclass
class Outcome:
    """What came out: all floating outputs as one float32 vector on the CPU, median seconds, or the error."""

    values: torch.Tensor | None = None
    seconds: float = 0.0
    error: str = ""


def run_side(
    path: str, spec: str, cases: list[Case], *, device: str, seed: int, runs: int, keep_layers: bool
) -> tuple[Side, dict[str, Outcome], list[tuple[QuantizedTensor, torch.Tensor | None]]]:
    """Load `path` into the factory's model and run every case; the model is gone when this returns.

    Built and loaded anew for each dtype: a cast to bfloat16 and back would cost the float weights bits.
    """
    factory, outcomes, side = find_factory(spec), {}, None
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    layers: list[tuple[QuantizedTensor, torch.Tensor | None]] = []
    for dtype in dict.fromkeys(case.dtype for case in cases):
        model, loaded = load_model(factory, path, device, seed)
        if side is None:
            size, count = weight_bytes(model), len(loaded.quantized)
            side = Side(str(path), _file_bytes(path), size, loaded.seconds, count)
            layers = _layers(model) if keep_layers else []
        model.to(dtype)
        for case in cases:
            if case.dtype == dtype:
                skipped = Outcome(error=case.skip)
                outcomes[case.name] = skipped if case.skip else _run(model, factory, case, device, seed, runs)
        del model
    if side is None:
        raise ConversionError("there is no case to run")
    if device.startswith("cuda"):
        side.peak_bytes = torch.cuda.max_memory_allocated(device)
    return side, outcomes, layers


def load_model(factory: Callable, path: str, device: str, seed: int) -> tuple[nn.Module, LoadReport]:
    """Return the factory's model with the weights of `path`, ready to run, and what loading says."""
    model, _ = build_model(factory, {}, seed)
    loaded = load_quantized(model, path, device=device)
    return model.to(device).eval(), loaded


def _file_bytes(path: str) -> int:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.nbytes


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters and buffers as they are stored."""
    seen, total = set(), 0
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            parts = [tensor]
            if isinstance(tensor, QuantizedTensor):
                params = tensor._layout_params.values()
                parts = [tensor._qdata, *(v for v in params if isinstance(v, torch.Tensor))]
            total += sum(p.numel() * p.element_size() for p in parts)
    return total


def _run(model: nn.Module, factory: Callable, case: Case, device: str, seed: int, runs: int) -> Outcome:
    _, inputs = build_model(factory, case.keywords, seed)
    args, keywords = _arguments(_map(inputs, lambda t: _prepare(t, case, device)))
    seconds, out = [], None
    try:
        for _ in range(runs + 1):
            torch.manual_seed(seed)
            _synchronize(device)
            start = time.perf_counter()
            with torch.no_grad():
                out = model(*args, **keywords)
            _synchronize(device)
            seconds.append(time.perf_counter() - start)
    except (RuntimeError, TypeError, ValueError) as e:
        return Outcome(error=f"{type(e).__name__}: {e}".splitlines()[0])
    return Outcome(_values(out), median(seconds[1:] or seconds))


def _prepare(t: torch.Tensor, case: Case, device: str) -> torch.Tensor:
    t = t.to(device, case.dtype if t.is_floating_point() else None)
    if not case.strided or t.dim() == 0:
        return t
    wide = torch.empty((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype, device=t.device)
    wide[..., ::2] = t
    return wide[..., ::2]


def _map(tree: Any, fn: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        return {k: _map(v, fn) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(v, fn) for v in tree)
    return tree


def _arguments(inputs: Any) -> tuple[tuple, dict]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _values(out: Any) -> torch.Tensor:
    """Join every floating tensor of an output, however it is packed, into one float32 vector."""
    found: list[torch.Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                found.append(value.detach().float().flatten().cpu())
        elif isinstance(value, dict):
            for v in value.values():
                collect(v)
        elif isinstance(value, (list, tuple)):
            for v in value:
                collect(v)
        elif dataclasses.is_dataclass(value):
            for f in dataclasses.fields(value):
                collect(getattr(value, f.name))

    collect(out)
    if not found:
        raise ConversionError("the model's output holds no floating tensor to compare")
    return torch.cat(found)


def _layers(model: nn.Module) -> list[tuple[QuantizedTensor, torch.Tensor | None]]:
    found: dict[tuple, tuple] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and isinstance(weight, QuantizedTensor):
            key = (tuple(weight.shape), weight._layout_type, weight._layout_params.get("rotation"))
            found.setdefault(key, (weight, module.bias))
    return list(found.values())[:LAYER_SHAPES]
