"""Which changes meet which tensors of a checkpoint: decided from headers, before any work."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...formats.errors import ConversionError
from ...names.rows import Segments
from .adapter import Adapter, flat
from .file import LoraFile, read_lora
from .names import LayerIndex, Place

if TYPE_CHECKING:
    from ..options.settings import Settings

DAMPING = 0.9
"""With damping each further LoRA counts this much of the one before it."""

_SHOWN = 20


@dataclass(frozen=True)
class Merge:
    """One adapter added to one tensor: all of it, or the rows that `segments` name.

    number: which LoRA of the run it comes from, from 0. scale: the user's, damped; alpha is not in it.
    """

    adapter: Adapter
    number: int
    scale: float
    segments: Segments = ()


@dataclass(frozen=True)
class MergedLora:
    """What became of one LoRA file: its scale, how many tensors it changes, the modules that match none.

    stamp: (path, size, modification time) of its files; an interrupted run goes on only with the same.
    """

    path: str
    scale: float
    tensors: int
    unmatched: tuple[str, ...] = ()
    stamp: tuple[tuple[str, int, int], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Merges:
    """All merges of a run: by the tensor's name in order of the LoRAs, and what became of each file."""

    by_tensor: Mapping[str, tuple[Merge, ...]]
    loras: tuple[MergedLora, ...]


def lora_scales(count: int, scale: float = 1.0, dampen: bool = True) -> list[float]:
    """The scale of each LoRA: `scale` times 1, 0.9, 0.81, ... with damping, `scale` without."""
    return [scale * DAMPING**n if dampen else scale for n in range(count)]


def settings_merges(settings: "Settings", shapes: Mapping[str, tuple[int, ...]]) -> Merges:
    """The merges that the settings ask for; see `plan_merges`."""
    first = () if settings.merge_lora_path is None else (settings.merge_lora_path,)
    paths = (*first, *settings.merge_lora_paths)
    return plan_merges(paths, shapes, settings.merge_lora_scale, settings.merge_lora_dampen)


def plan_merges(
    paths: Sequence[str], shapes: Mapping[str, tuple[int, ...]], scale: float = 1.0, dampen: bool = True
) -> Merges:
    """Match LoRA files to a checkpoint's tensors. shapes: tensor name -> shape.

    ConversionError for a file that cannot be read, a file none of whose modules matches (naming the nearest
    layers), a name that fits two layers, and a change whose shape is not its layer's (naming both).
    """
    by_tensor: dict[str, list[Merge]] = {}
    loras = []
    index = LayerIndex(shapes) if paths else None
    for number, (path, factor) in enumerate(zip(paths, lora_scales(len(paths), scale, dampen), strict=True)):
        assert index is not None
        file = read_lora(path)
        found, unmatched = _match(file, index, shapes, number, factor)
        if not found:
            raise ConversionError(_nothing_matches(file, index, unmatched))
        for name, merges in found.items():
            by_tensor.setdefault(name, []).extend(merges)
        loras.append(MergedLora(file.path, factor, len(found), (*unmatched, *file.unknown), file.stamp))
    return Merges({name: tuple(merges) for name, merges in by_tensor.items()}, tuple(loras))


def merge_notes(loras: Iterable[MergedLora]) -> Iterator[str]:
    """Lines for a person: each LoRA's scale and layers, and the keys that match no layer."""
    for lora in loras:
        yield f"LoRA {lora.path}: changes {lora.tensors} tensors, scale {lora.scale:.4g}"
        if lora.unmatched:
            shown = ", ".join(lora.unmatched[:_SHOWN])
            rest = len(lora.unmatched) - _SHOWN
            more = f" and {rest} more (all are in the JSON report)" if rest > 0 else ""
            yield f"LoRA {lora.path}: {len(lora.unmatched)} keys match no layer: {shown}{more}"


def _match(
    file: LoraFile, index: LayerIndex, shapes: Mapping[str, tuple[int, ...]], number: int, scale: float
) -> tuple[dict[str, list[Merge]], list[str]]:
    found: dict[str, list[Merge]] = {}
    unmatched: dict[str, None] = {}
    for adapter in file.adapters:
        place = index.find(adapter.module)
        name = _tensor(place, adapter, shapes) if place else None
        if place is None or name is None:
            unmatched[adapter.module + (".bias" if place else "")] = None
            continue
        merge = Merge(adapter, number, scale, _segments(file, adapter, place, name, shapes))
        for other in found.get(name, ()):
            _refuse_twice(file, other, merge, name)
        found.setdefault(name, []).append(merge)
    return found, list(unmatched)


def _tensor(place: Place, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The tensor of a layer that an adapter changes; None where the layer has no such tensor."""
    candidates = (f"{place.layer}.bias",) if adapter.bias else (f"{place.layer}.weight", place.layer)
    return next((name for name in candidates if name in shapes), None)


def _segments(
    file: LoraFile, adapter: Adapter, place: Place, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> Segments:
    """The rows that an adapter is for. ConversionError where its shape is not theirs."""
    rows, columns = flat(shapes[name])
    _, inputs = flat(shapes.get(f"{place.layer}.weight", shapes[name]))  # a bias is split as its weight is
    segments = place.rows.segments(rows, inputs)
    expected = sum(count for _, _, count in segments) if segments else rows
    if adapter.shape != (expected, columns):
        first = segments[0][0] if segments else 0
        where = f"rows {first} to {first + expected - 1} of {name!r} are" if segments else f"{name!r} is"
        raise ConversionError(
            f"{file.path}: {adapter.module!r} changes {list(adapter.shape)}, but {where} "
            f"{[expected, columns]}: this LoRA is for another model"
        )
    return segments


def _refuse_twice(file: LoraFile, one: Merge, other: Merge, name: str) -> None:
    """Two modules of one file for the same rows would be added twice: nobody means that."""
    same = one.segments == other.segments or not (one.segments and other.segments)
    if same and one.adapter.kind == other.adapter.kind and one.adapter.module != other.adapter.module:
        raise ConversionError(
            f"{file.path}: {one.adapter.module!r} and {other.adapter.module!r} both change {name!r}"
        )


def _nothing_matches(file: LoraFile, index: LayerIndex, unmatched: Sequence[str]) -> str:
    near = (f"{m!r} (nearest layer: {index.nearest(m)!r})" for m in unmatched[:3])
    return (
        f"{file.path}: none of its {len(unmatched)} modules matches a layer of the checkpoint: "
        f"{', '.join(near)}; is it for another model?"
    )
