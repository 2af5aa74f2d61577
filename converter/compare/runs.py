"""The runs behind ``ctq compare``: building the model, the cases, timing, scoring."""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...formats.errors import ConversionError
from ...quant import QuantizedTensor
from ...quant.runtime import LoadReport, empty_weights, load_quantized
from .report import CaseResult, Side

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYER_SHAPES = 4
"""Distinct weight shapes whose linears are tried with edge-case inputs."""


@dataclass(frozen=True)
class Case:
    """What to run: factory keywords, dtype, and whether the inputs are handed over with odd strides."""

    name: str
    dtype: torch.dtype
    keywords: dict[str, int] = field(default_factory=dict)
    strided: bool = False
    skip: str = ""


@dataclass
class Outcome:
    """What came out: all floating outputs as one float32 vector on the CPU, median seconds, or the error."""

    values: torch.Tensor | None = None
    seconds: float = 0.0
    error: str = ""


def find_factory(spec: str) -> Callable[..., tuple[nn.Module, Any]]:
    """The function that ``module:function`` or ``file.py:function`` names; ConversionError without one."""
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConversionError(f"--model must be module:function or file.py:function, not {spec!r}")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise ConversionError(f"--model: {where}: no such file")
            plan = importlib.util.spec_from_file_location(Path(where).stem, where)
            module = importlib.util.module_from_spec(plan)  # type: ignore[arg-type]
            sys.modules[plan.name] = module  # type: ignore[union-attr]
            plan.loader.exec_module(module)  # type: ignore[union-attr]
        else:
            module = importlib.import_module(where)
    except ImportError as e:
        raise ConversionError(f"--model: cannot import {where}: {e}") from e
    function = getattr(module, name, None)
    if not callable(function):
        raise ConversionError(f"--model: {where} has no function {name!r}")
    return function


def plan_cases(spec: str, dtype: str, long: int, seed: int) -> list[Case]:
    """The cases to run, those that the factory's keywords do not allow marked."""
    accepted = inspect.signature(find_factory(spec)).parameters
    base = TORCH[dtype]

    def sized(name: str, keyword: str, value: int) -> Case:
        skip = "" if keyword in accepted else f"the factory takes no keyword {keyword!r}"
        return Case(name, base, {keyword: value}, skip=skip)

    return [
        Case("as given", base),
        Case("non-contiguous inputs", base, strided=True),
        sized("one token", "tokens", 1),
        sized(f"{long} tokens", "tokens", long),
        sized("three batches", "batch", 3),
        *(Case(name, value) for name, value in TORCH.items()),
    ]


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
        model, loaded = _load(factory, path, device, seed)
        if side is None:
            size, count = weight_bytes(model), len(loaded.quantized)
            side = Side(str(path), _file_bytes(Path(path)), size, loaded.seconds, count)
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


def _load(factory: Callable, path: str, device: str, seed: int) -> tuple[nn.Module, LoadReport]:
    model, _ = _build(factory, {}, seed)
    loaded = load_quantized(model, path, device=device)
    return model.to(device).eval(), loaded


def _build(factory: Callable, keywords: dict[str, int], seed: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    with empty_weights():
        made = factory(**keywords)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ConversionError(f"--model: the function must return (model, inputs), not {type(made).__name__}")
    return made


def _file_bytes(path: Path) -> int:
    if path.is_dir():
        return sum(f.stat().st_size for f in path.glob("*.safetensors"))
    return path.stat().st_size


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are stored."""
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
    _, inputs = _build(factory, case.keywords, seed)
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
    """Every floating tensor of an output, however it is packed."""
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


def score(case: Case, reference: Outcome, candidate: Outcome) -> CaseResult:
    """SQNR and cosine of the candidate's output."""
    result = CaseResult(case.name)
    want, got = reference.values, candidate.values
    if want is None or got is None:
        side = "reference: " if reference.error and not case.skip else "" if case.skip else "candidate: "
        result.note = side + (reference.error or candidate.error)
        return result
    if want.shape != got.shape:
        raise ConversionError(f"{case.name}: outputs have {want.numel()} and {got.numel()} values")
    result.sqnr, result.cosine = _distance(got, want)
    result.reference_seconds, result.candidate_seconds = reference.seconds, candidate.seconds
    if not want.isfinite().all():
        result.sqnr, result.note = None, "the reference's output is not finite"
    elif not got.isfinite().all():
        result.sqnr, result.note = float("-inf"), "the candidate's output is not finite"
    return result


def _distance(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    got, want = got.double().flatten(), want.double().flatten()
    noise, signal = (got - want).square().sum(), want.square().sum()
    sqnr = float("inf") if noise == 0 else float(10 * torch.log10(signal / noise))
    return sqnr, float(F.cosine_similarity(got, want, dim=0))


def _layers(model: nn.Module) -> list[tuple[QuantizedTensor, torch.Tensor | None]]:
    found: dict[tuple, tuple] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and isinstance(weight, QuantizedTensor):
            key = (tuple(weight.shape), weight._layout_type, weight._layout_params.get("rotation"))
            found.setdefault(key, (weight, module.bias))
    return list(found.values())[:LAYER_SHAPES]


def layer_cases(layers: list, device: str, seed: int) -> list[CaseResult]:
    """The candidate's own linears on inputs that models rarely see, against their dequantized weights."""
    g = torch.Generator().manual_seed(seed)
    results = []
    for weight, bias in layers:
        k = weight.shape[1]
        tries = {
            "M=1": torch.randn(1, k, generator=g),
            "1-D": torch.randn(k, generator=g),
            "M=2048": torch.randn(2048, k, generator=g),
            "3 x 7 rows": torch.randn(3, 7, k, generator=g),
            "transposed": torch.randn(k, 33, generator=g).t(),
            "every other row": torch.randn(2, 64, k, generator=g)[:, ::2],
            **{name: torch.randn(33, k, generator=g).to(dtype) for name, dtype in TORCH.items()},
        }
        dense = weight.map_inner(lambda a: a, orig_dtype=torch.float32).dequantize()
        for name, x in tries.items():
            x = x.to(device)
            with torch.no_grad():
                got = F.linear(x, weight, bias)
                want = F.linear(x.float(), dense, None if bias is None else bias.float())
            sqnr, cosine = _distance(got, want)
            results.append(CaseResult(f"{list(weight.shape)} {name}", sqnr, cosine))
    return results
