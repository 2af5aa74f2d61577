"""Which tensor of a quantized file belongs to which of its original, and whether kept ones are unchanged."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import torch_dtype
from ...formats import companion_suffixes
from ...names.prefixes import CHECKPOINT
from ..layers.selection import select
from ..presets import KEEP_SETS, detect
from ..stored.companions import is_marker, spellings, stored_quant
from ..stored.judge import Examined, Problem
from ..stored.layers import StoredFile

_ELEMENTS = 1 << 21
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Pairs:
    """Names of the quantized file beside names of the original.

    layers: quantized layers whose original is not stored the same way -> the original's weight. kept: tensors
    that should be unchanged -> the original's. removed: original tensors that a preset leaves out.
    """

    layers: Mapping[str, str]
    kept: Mapping[str, str]
    removed: tuple[str, ...]
    problems: tuple[Problem, ...]


def pair(original: Checkpoint, stored: StoredFile, examined: Mapping[str, Examined]) -> Pairs:
    """Match the tensors of the two by name, across the usual prefixes, and report what has no partner."""
    theirs, ours = prefixes(original.tensors, stored.checkpoint.tensors)
    owned = {t.name: layer.weight for layer in stored.layers.values() for t in layer.companions()}
    layers: dict[str, str] = {}
    kept: dict[str, str] = {}
    problems: list[Problem] = []

    def partner(name: str) -> str:
        return theirs + name[len(ours) :] if name.startswith(ours) else name

    for name, info in stored.checkpoint.tensors.items():
        source = partner(name)
        before = original.tensors.get(source)
        weight = owned.get(name)
        if weight is not None and _quantized_anew(weight, original.tensors.get(partner(weight.name))):
            continue
        if before is None:
            if name not in owned and name not in stored.orphans:
                problems.append(Problem("extra tensor", name, "the original has no such tensor", fatal=False))
        elif before.shape != _logical_shape(info, examined):
            text = f"shape {list(info.shape)}, but {list(before.shape)} in the original"
            problems.append(Problem("shape", name, text))
        elif name.removesuffix(_WEIGHT) in stored.layers and before.dtype != info.dtype:
            layers[name.removesuffix(_WEIGHT)] = source
        else:
            kept[name] = source
    removed = set(_removed(original))
    there = {*layers.values(), *kept.values()} | {theirs + n[len(ours) :] for n in stored.checkpoint.tensors}
    problems += _missing(original, there, theirs, removed)
    return Pairs(layers, kept, tuple(sorted(removed - there)), tuple(problems))


def _quantized_anew(weight: TensorInfo, before: TensorInfo | None) -> bool:
    """Return whether a weight is stored otherwise than before: what stands beside it then is new as well."""
    return before is not None and before.dtype != weight.dtype


def _logical_shape(info: TensorInfo, examined: Mapping[str, Examined]) -> tuple[int, ...]:
    """Return the shape of what a tensor stands for: [N, K] of a weight whose rows are packed."""
    layer = examined.get(info.name.removesuffix(_WEIGHT)) if info.name.endswith(_WEIGHT) else None
    return layer.format.shape(info.shape) if layer and layer.format else info.shape


def prefixes(original: Iterable[str], quantized: Iterable[str]) -> tuple[str, str]:
    """Return (prefix in the original, prefix in the quantized file) under which most names agree."""
    known, names = set(original), list(quantized)
    best, most = ("", ""), sum(n in known for n in names)
    for ours in CHECKPOINT:
        inner = [n[len(ours) :] for n in names if n.startswith(ours)]
        for theirs in CHECKPOINT:
            agree = sum(theirs + n in known for n in inner)
            if agree > most:
                best, most = (theirs, ours), agree
    return best


def _removed(original: Checkpoint) -> Iterator[str]:
    """Yield tensors that a conversion leaves out on purpose (the decoder of a T5)."""
    shapes = original.shapes()
    sets = [s for s in KEEP_SETS if s.remove]
    for name, decision in select(shapes, detect(shapes, original.metadata), False, sets).items():
        if decision.action == "remove":
            yield name


def _missing(original: Checkpoint, there: set[str], prefix: str, removed: set[str]) -> Iterator[Problem]:
    """Report original tensors without a partner; other parts of an all-in-one file are only mentioned."""
    consumed = set(_consumed(original))
    gone = [n for n in original.tensors if n not in there and n not in removed and n not in consumed]
    for name in gone:
        if not name.startswith(prefix):
            yield Problem("other part", name, "a part of the original that this file is without", fatal=False)
        elif name.endswith(".bias"):
            yield Problem("missing tensor", name, "missing: ComfyUI uses whatever memory holds as this bias")
        else:
            yield Problem("missing tensor", name, "the original has it, this file does not")


def _consumed(original: Checkpoint) -> Iterator[str]:
    """Yield companions of weights that were stored quantized: a conversion uses them up."""
    for name in original.tensors:
        if is_marker(name):
            yield name
        elif name.endswith(_WEIGHT) and (quant := stored_quant(original, name)):
            yield from quant.names()
            layer = name.removesuffix(_WEIGHT)
            beside = (f"{layer}.{name}" for suffix in companion_suffixes() for name in spellings(suffix))
            yield from (name for name in beside if name in original.tensors)


def changed(original: Checkpoint, source: str, quantized: Checkpoint, name: str) -> Problem | None:
    """Return the problem with a tensor that should be as in the original, or None. Reads both in pieces."""
    before, after = original.tensors[source], quantized.tensors[name]
    if before.dtype == after.dtype:
        count = _unequal_bytes(original, before, quantized, after)
        if not count:
            return None
        text = f"{count} of its {after.nbytes} bytes differ from the original's"
        if name.endswith(".bias"):
            return Problem("changed bias", name, f"{text}: a bias correction, or another model", fatal=False)
        return Problem("changed tensor", name, text)
    if torch_dtype(before.dtype) is None or torch_dtype(after.dtype) is None:
        return Problem("changed dtype", name, f"{before.dtype} became {after.dtype}; not compared")
    if _same_when_cast(original, before, quantized, after):
        return Problem("changed dtype", name, f"{before.dtype} became {after.dtype}", fatal=False)
    return Problem("changed tensor", name, f"{before.dtype} became {after.dtype} with other values")


def read_elements(checkpoint: Checkpoint, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    """Read elements [start, stop) of a tensor in its stored dtype, flat. torch must have the dtype."""
    dtype = torch_dtype(info.dtype)
    assert dtype is not None
    raw = torch.empty((stop - start) * dtype.itemsize, dtype=torch.uint8)
    checkpoint.read_into(info, raw.numpy().data, start * dtype.itemsize)
    return raw.view(dtype)


def _unequal_bytes(a: Checkpoint, before: TensorInfo, b: Checkpoint, after: TensorInfo) -> int:
    size, step = before.nbytes, 4 * _ELEMENTS
    x, y = (torch.empty(min(size, step), dtype=torch.uint8) for _ in range(2))
    unequal = 0
    for start in range(0, size, step):
        n = min(step, size - start)
        a.read_into(before, x[:n].numpy().data, start)
        b.read_into(after, y[:n].numpy().data, start)
        if not torch.equal(x[:n], y[:n]):
            unequal += int((x[:n] != y[:n]).sum())
    return unequal


def _same_when_cast(a: Checkpoint, before: TensorInfo, b: Checkpoint, after: TensorInfo) -> bool:
    dtype = torch_dtype(after.dtype)
    assert dtype is not None
    for start in range(0, before.numel, _ELEMENTS):
        stop = min(start + _ELEMENTS, before.numel)
        x, y = read_elements(a, before, start, stop), read_elements(b, after, start, stop)
        if not torch.equal(x.to(dtype).view(torch.uint8), y.view(torch.uint8)):
            return False
    return True
