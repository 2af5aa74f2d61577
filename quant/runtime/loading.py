"""Filling a model from a checkpoint: ours, stock ComfyUI's, or a plain one."""

import difflib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...files.checkpoint import Checkpoint, computable_dtype, open_checkpoint
from ...files.dtypes import FLOAT8
from ...formats import CheckpointError, Format, StoredTensor
from ...formats.names import CONFIG, SCALE, WEIGHT, tensor_name
from ...names.keymap import IDENTITY, KeyMap, Mapped, map_for
from ...names.prefixes import CHECKPOINT
from ..tensor import QuantizedTensor
from .adapters import remember_folds
from .rows import swap_halves, take_rows
from .stored import as_parameter, build_weight, companions, layer_format

logger = logging.getLogger(__name__)

_COMMON = ("F32", "F16", "BF16")
"""What the float tensors of a model are stored in."""


@dataclass
class LoadReport:
    """What `load_quantized` did: counts and sizes, for the log and for `ctq compare`."""

    path: str
    prefix: str
    quantized: dict[str, str] = field(default_factory=dict)
    plain: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    other_components: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    metadata: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Return one line: counts, bytes and rate."""
        rate = self.bytes_read / 1e9 / max(self.seconds, 1e-9)
        kinds = ", ".join(f"{n} {name} weights" for name, n in Counter(self.quantized.values()).items())
        return (
            f"{kinds or 'no quantized weights'}, {self.plain} other tensors; "
            f"{self.bytes_read / 1e6:.1f} MB in {self.seconds:.2f} s ({rate:.1f} GB/s)"
        )


@dataclass(frozen=True)
class _Source:
    """One tensor of the file (for a quantized layer its weight) and where it goes."""

    name: str
    mapped: Mapped
    extras: dict[str, str]
    config: Format | None


def load_quantized(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    prefix: str | None = None,
    key_map: KeyMap | Callable[[str], Mapped] | None = None,
) -> LoadReport:
    """Fill `model` in place from a safetensors checkpoint, quantized or not; returns a LoadReport.

    model: built as usual or inside `empty_weights()`; its parameters are replaced one after the other, so
        memory stays near the larger of model and file. Quantized weights become QuantizedTensors, the
        modules stay what they are; every loaded parameter has requires_grad=False.
    path: a file, a ``*.safetensors.index.json`` or a folder of shards.
    device: where the tensors go; None is where each parameter is, or the CPU for meta parameters.
    dtype: cast floating tensors (and the logical dtype of quantized weights); None keeps the file's own,
        quantized weights taking the file's most frequent float dtype.
    strict: CheckpointError for missing or unexpected names before any tensor is read, with the nearest
        name as a hint; False reports them instead.
    prefix: what the file puts before the model's names; None finds it (`CHECKPOINT`). Other tensors of an
        all-in-one file (VAE, text encoders) are then counted and left alone.
    key_map: None uses the table of the model's class (`names.families`) if that fits the file better
        than its plain names.

    CheckpointError, naming the layer, for anything that would give
    noise: integers without ``comfy_quant``, a scale or a rotation that does not fit.
    """
    start = time.perf_counter()
    targets = _targets(model)
    with open_checkpoint(path) as file:
        configs = _header_configs(file)
        prefix, mapper = _choose(file, model, targets, prefix, key_map)
        sources, other = _sources(file, prefix, mapper, configs)
        report = LoadReport(str(path), prefix, other_components=other, metadata=dict(file.metadata))
        persistent = _persistent_buffers(model)
        sources = _check(sources, file, targets, persistent, strict, report)
        logical, aliases = dtype or _common_float(file, sources), _aliases(targets)
        for source in sources:
            tensor = _read(file, source, logical, dtype, configs, report)
            _place(model, targets, aliases, source, tensor, device)
    _check_no_meta(model, report)
    model.__dict__["checkpoint_metadata"] = report.metadata
    remember_folds(model, report.metadata, mapper)
    report.seconds = time.perf_counter() - start
    logger.info("%s: %s", path, report.summary())
    return report


def require_fit(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError where `load_quantized` would for a file's names; no tensor is read."""
    targets = _targets(model)
    with open_checkpoint(path) as file:
        configs = _header_configs(file)
        prefix, mapper = _choose(file, model, targets, None, None)
        sources, _ = _sources(file, prefix, mapper, configs)
        _check(sources, file, targets, _persistent_buffers(model), True, LoadReport(str(path), prefix))


def _targets(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return everything a checkpoint may hold, by name: parameters under all their names, and buffers."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def _persistent_buffers(model: nn.Module) -> set[str]:
    """Return the buffers that belong to the state dict, and so must come from a checkpoint."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in module._buffers
        if name not in module._non_persistent_buffers_set and module._buffers[name] is not None
    }


def _header_configs(file: Checkpoint) -> dict[str, Any]:
    raw = file.metadata.get("_quantization_metadata")
    if not raw:
        return {}
    try:
        return dict(json.loads(raw)["layers"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{file.path}: metadata _quantization_metadata is not valid: {e}") from e


def _choose(file, model, targets, prefix, key_map) -> tuple[str, Callable[[str], Mapped]]:
    """Return the prefix and the map under which most of the file's names are the model's."""
    maps = [key_map] if key_map is not None else [IDENTITY, map_for(model)]
    prefixes = (
        [prefix]
        if prefix is not None
        else [p for p in CHECKPOINT if any(n.startswith(p) for n in file.tensors)]
    )

    def hits(p: str, m: Callable[[str], Mapped]) -> int:
        names = (n[len(p) :] for n in file.tensors if n.startswith(p))
        return sum(all(t in targets for t in m(n).targets) for n in names)

    options = [(p, m) for p in prefixes or [""] for m in maps]
    return max(options, key=lambda option: hits(*option))


def _sources(file, prefix, mapper, configs) -> tuple[list[_Source], int]:
    inside = [n for n in file.tensors if n.startswith(prefix)]
    present, beside = set(inside), companions()
    found = []
    for name in inside:
        layer, _, leaf = name.rpartition(".")
        weight = tensor_name(layer, "weight")
        if leaf in beside and weight in present:
            continue
        extras, config = {}, None
        if leaf == "weight":
            extras = {e: tensor_name(layer, e) for e in beside if tensor_name(layer, e) in present}
            config = _config(file, layer, prefix, extras, configs)
        found.append(_Source(name, mapper(name[len(prefix) :]), extras, config))
    return found, len(file.tensors) - len(inside)


def _config(file, layer, prefix, extras, configs) -> Format | None:
    """Return a layer's format; the header wins over the layer's own tensor, as in ComfyUI."""
    names = {WEIGHT: tensor_name(layer, WEIGHT), **{s: n for s, n in extras.items() if s != CONFIG}}
    infos = {s: StoredTensor(s, file.tensors[n].dtype, file.tensors[n].shape) for s, n in names.items()}
    stored = layer_format(file.read(extras[CONFIG]), infos, layer) if CONFIG in extras else None
    from_header = configs.get(layer, configs.get(layer[len(prefix) :]))
    if from_header is not None:
        config = layer_format(from_header, infos, layer)
        if stored is not None and config != stored:
            logger.warning(
                "%s: header metadata and comfy_quant disagree (%s, %s): using the header",
                layer,
                config,
                stored,
            )
        return config
    weight = infos[WEIGHT]
    if stored is None and (weight.dtype == "I8" or (weight.dtype in FLOAT8 and SCALE in extras)):
        raise CheckpointError(
            f"layer {layer} is stored as {computable_dtype(file.tensors[names[WEIGHT]])} but neither "
            f"{layer}.comfy_quant nor the header says how; loading the integers as they are would give noise"
        )
    return stored


def _check(sources, file, targets, persistent, strict, report) -> list[_Source]:
    """Compare names, shapes and dtypes before reading anything; returns the sources that have a place."""
    known, filled = [], set()
    for source in sources:
        lost = [t for t in source.mapped.targets if t not in targets]
        if lost:
            report.unexpected.append(source.name)
            continue
        known.append(source)
        filled.update(source.mapped.targets)
        _check_tensor(source, file, targets)
    same = {id(targets[t]) for t in filled}
    needed = (n for n, t in targets.items() if isinstance(t, nn.Parameter) or n in persistent)
    report.missing = [n for n in needed if n not in filled and id(targets[n]) not in same]
    if strict and (report.missing or report.unexpected):
        raise CheckpointError(_complaint(file, targets, report))
    return known


def _check_tensor(source, file, targets) -> None:
    info, names = file.tensors[source.name], source.mapped.targets
    shape = info.shape
    if not names:
        return
    for name in (source.name, *source.extras.values()):
        computable_dtype(file.tensors[name])
    wanted = [tuple(targets[t].shape) for t in names]
    joined = (sum(w[0] for w in wanted), *wanted[0][1:]) if len(names) > 1 else wanted[0]
    same_rest = all(w[1:] == wanted[0][1:] for w in wanted)
    if source.config is not None:
        shape = source.config.logical(tuple(shape))
    if tuple(shape) != joined or not same_rest:
        where = " + ".join(f"{t} {list(w)}" for t, w in zip(names, wanted, strict=True))
        raise CheckpointError(f"{file.path}: {source.name} is {list(shape)}, the model needs {where}")


def _complaint(file, targets, report) -> str:
    lines = [f"{file.path} does not fit the model:"]
    for what, names, others in (
        ("missing from the file", report.missing, [n[len(report.prefix) :] for n in file.tensors]),
        ("unknown to the model", report.unexpected, list(targets)),
    ):
        for name in names[:5]:
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
            lines.append(f"  {what}: {name}" + (f" (nearest: {near[0]})" if near else ""))
        if len(names) > 5:
            lines.append(f"  {what}: {len(names) - 5} more")
    return "\n".join(lines)


def _common_float(file, sources: Iterable[_Source]) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for source in sources:
        info = file.tensors[source.name]
        if info.dtype in _COMMON:
            counts[computable_dtype(info)] += 1
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _read(file, source, logical, dtype, configs, report) -> torch.Tensor:
    tensor = file.read(source.name, huge_pages=False)
    report.bytes_read += tensor.nbytes
    if source.config is None:
        report.plain += 1
        floating = tensor.is_floating_point() and file.tensors[source.name].dtype not in FLOAT8
        return tensor.to(dtype) if dtype is not None and floating else tensor
    layer = source.name.rpartition(".")[0]
    extras = {leaf: file.read(name) for leaf, name in source.extras.items() if leaf != CONFIG}
    report.bytes_read += sum(e.nbytes for e in extras.values())
    report.quantized[layer] = source.config.name
    made = build_weight(source.config, {WEIGHT: tensor, **extras}, logical)
    return made if not source.config.experts else _as_bank(made, source.config, tensor, layer)


def _as_bank(rows: torch.Tensor, form: Format, stored: torch.Tensor, layer: str) -> torch.Tensor:
    """Return a bank's matrix of rows as [E, N, K]: quantized where its layout can be seen so, else floats."""
    made = rows.view(form.logical(tuple(stored.shape)))
    if not isinstance(made, QuantizedTensor):
        logger.warning("%s: a bank of experts in %s is loaded as floats", layer, form.name)
    return made


def _aliases(targets: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Return every name of each parameter: tied weights have several."""
    groups: dict[int, list[str]] = {}
    for name, tensor in targets.items():
        groups.setdefault(id(tensor), []).append(name)
    return {name: groups[id(tensor)] for name, tensor in targets.items()}


def _place(model, targets, aliases, source, tensor, device) -> None:
    names = source.mapped.targets
    if source.mapped.swapped(targets):
        tensor = swap_halves(tensor, source.name)
    start = 0
    for name in names:
        rows = targets[name].shape[0] if targets[name].dim() else 0
        part = tensor if len(names) == 1 else take_rows(tensor, start, start + rows, source.name)
        start += rows
        _assign(model, targets, aliases, name, part, device)


def _assign(model, targets, aliases, name, tensor, device) -> None:
    """Put `tensor` where `name` is, and under every other name of the same parameter."""
    old = targets[name]
    where = device if device is not None else ("cpu" if old.is_meta else old.device)
    if tensor.device != torch.device(where):
        tensor = tensor.to(where)
    new = as_parameter(tensor) if isinstance(old, nn.Parameter) else tensor
    for other in aliases[name]:
        owner, _, leaf = other.rpartition(".")
        module = model.get_submodule(owner)
        (module._parameters if leaf in module._parameters else module._buffers)[leaf] = new
        targets[other] = new


def _check_no_meta(model, report) -> None:
    left = [n for n, t in _targets(model).items() if t.is_meta and n not in report.missing]
    if left:
        raise CheckpointError(
            f"{len(left)} buffers are still without data, first {left[0]!r}: the checkpoint does not hold "
            "them; build the model inside empty_weights(), which leaves buffers real"
        )
