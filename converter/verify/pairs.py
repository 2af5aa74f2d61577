"""Which tensor of a quantized file belongs to which of its original."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...files.checkpoint import Checkpoint, TensorInfo
from ...formats import companion_suffixes
from ...formats.names import CONFIG, tensor_name
from ...names.prefixes import CHECKPOINT
from ..layers.selection import select
from ..presets import KEEP_SETS, detect
from ..stored.companions import is_marker, spellings, stored_quant
from ..stored.judge import Examined, Problem
from ..stored.layers import StoredFile, StoredLayer
from ..stored.record import Record

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


def pair(
    original: Checkpoint, stored: StoredFile, examined: Mapping[str, Examined], record: Record | None = None
) -> Pairs:
    """Match the tensors of the two by name, across the usual prefixes, and report what has no partner.

    record: what the quantized file says of its making, None where it says nothing.
    """
    theirs, ours = prefixes(original.tensors, stored.checkpoint.tensors)
    owned = {t.name: (layer, s) for layer in stored.layers.values() for s, t in _companions(layer)}
    layers: dict[str, str] = {}
    kept: dict[str, str] = {}
    problems: list[Problem] = []

    def partner(name: str) -> str:
        return theirs + name[len(ours) :] if name.startswith(ours) else name

    for name, info in stored.checkpoint.tensors.items():
        source = partner(name)
        if name in owned:
            layer, suffix = owned[name]
            weight = original.tensors.get(partner(layer.weight.name))
            if _quantized_anew(layer.weight, weight):
                continue
            beside = (partner(tensor_name(layer.name, s)) for s in spellings(suffix))
            source = next((s for s in beside if s in original.tensors), source)
            if source not in original.tensors and weight is not None and suffix == CONFIG:
                continue  # made of the header's list, or of an older file's marker
        before = original.tensors.get(source)
        if before is None:
            told = name in stored.orphans and name.endswith(f".{CONFIG}")
            if not told and not is_marker(name):
                problems.append(Problem("extra tensor", name, "the original has no such tensor"))
        elif (before.dtype, before.shape) == (info.dtype, info.shape):
            kept[name] = source  # also a layer that was quantized before, whose rows may be packed
        elif before.shape != _logical_shape(info, examined):
            text = f"shape {list(info.shape)}, but {list(before.shape)} in the original"
            problems.append(Problem("shape", name, text))
        elif name.removesuffix(_WEIGHT) in stored.layers and before.dtype != info.dtype:
            layers[name.removesuffix(_WEIGHT)] = source
        else:
            kept[name] = source
    companions = {tensor_name(_layer(w), s) for w in layers.values() for s in _companion_names()}
    removed = {*_removed(original), *(record.dropped if record else ())}
    there = {*layers.values(), *kept.values(), *(theirs + n[len(ours) :] for n in stored.checkpoint.tensors)}
    problems += _missing(original, there | companions, theirs, removed)
    return Pairs(layers, kept, tuple(sorted(removed & original.tensors.keys() - there)), tuple(problems))


def _layer(weight: str) -> str:
    return weight.removesuffix(_WEIGHT)


def _companion_names() -> list[str]:
    """Return every name that a tensor beside a quantized weight may have."""
    return [CONFIG, *(name for suffix in companion_suffixes() for name in spellings(suffix))]


def _companions(layer: StoredLayer) -> Iterator[tuple[str, TensorInfo]]:
    """Yield what stands beside a weight, by its suffix."""
    yield from layer.tensors.items()
    if layer.config is not None:
        yield CONFIG, layer.config


def _quantized_anew(weight: TensorInfo, before: TensorInfo | None) -> bool:
    """Return whether a weight is stored otherwise than before: what stands beside it then is new as well."""
    return before is not None and before.dtype != weight.dtype


def _logical_shape(info: TensorInfo, examined: Mapping[str, Examined]) -> tuple[int, ...]:
    """Return the shape of what a tensor stands for: [N, K] of a weight whose rows are packed."""
    layer = examined.get(info.name.removesuffix(_WEIGHT)) if info.name.endswith(_WEIGHT) else None
    return layer.format.logical(info.shape) if layer and layer.format else info.shape


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
            beside = (tensor_name(_layer(name), s) for s in _companion_names())
            yield from (name for name in beside if name in original.tensors)
