"""Under which names a checkpoint is converted: ComfyUI's, where its own are diffusers'.

The renamed checkpoint is a view: each tensor knows the places of its rows in the source. All that follows
(presets, patterns, LoRAs, calibration, steps, verification) sees ComfyUI's names and fused layers only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.joined import joined
from ...formats.errors import ConversionError
from ...formats.names import CONFIG, METADATA_KEY, OLD_NAMES, SCALE
from ...names.diffusers import (
    COMFYUI,
    DIFFUSERS,
    NAMES_KEY,
    DiffusersNames,
    recognise,
    renamed_without_a_table,
)
from ...names.keymap import KeyMap, Mapped
from ..options.settings import Settings

_WAY_OUT = "--keep-names keeps the file's own names, for loading it with diffusers"
_COMFYUI_PREFIXES = ("", "model.diffusion_model.")
"""What ComfyUI expects before the names of a model."""


@dataclass(frozen=True)
class Named:
    """A checkpoint under the names of the output.

    metadata: what the output's header says of them. notes: what a person should know.
    """

    checkpoint: Checkpoint
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def name_for_output(checkpoint: Checkpoint, settings: Settings) -> Named:
    """Return a checkpoint under the names that its conversion writes.

    ConversionError where stock ComfyUI would rename its tensors and no table knows how, and for tensors that
    do not fit together, unless --keep-names is given.
    """
    found = recognise(checkpoint.tensors)
    if settings.keep_names:
        return _kept(checkpoint, found)
    if found is None:
        if renamed_without_a_table(checkpoint.tensors):
            raise ConversionError(
                f"{checkpoint.path}: has diffusers' names, which stock ComfyUI changes without their scales "
                f"when it loads a file, and for this model no ComfyUI names are known; {_WAY_OUT}"
            )
        return Named(checkpoint, {})
    prefix, model = found
    unknown = unknown_names(checkpoint.tensors, prefix, model)
    if unknown and not model.renamed:
        return Named(
            checkpoint,
            {NAMES_KEY: DIFFUSERS},
            (
                f"stock ComfyUI does not load these names: they are diffusers' ({model.family}), and "
                f"{len(unknown)} of them have no ComfyUI name ({unknown[0]}, ...): all stay as they are",
            ),
        )
    view = comfyui_view(checkpoint, prefix, model)
    return Named(view, {NAMES_KEY: COMFYUI}, tuple(_notes(checkpoint, view, model, unknown)))


def named_as(original: Checkpoint, converted: Checkpoint) -> Checkpoint:
    """Return the original under the names of what was made from it: ComfyUI's where only those are there."""
    found = recognise(original.tensors)
    if found is None or recognise(converted.tensors) is not None:
        return original
    return comfyui_view(original, *found)


def _kept(checkpoint: Checkpoint, found: tuple[str, DiffusersNames] | None) -> Named:
    if found is None and not renamed_without_a_table(checkpoint.tensors):
        return Named(checkpoint, {}, ("--keep-names changes nothing: the file has no diffusers names",))
    note = "diffusers' names are kept: stock ComfyUI cannot use this file, diffusers can (load_quantized)"
    return Named(checkpoint, {NAMES_KEY: DIFFUSERS}, (note,))


def _notes(
    checkpoint: Checkpoint, view: Checkpoint, model: DiffusersNames, unknown: Sequence[str]
) -> Iterator[str]:
    yield (
        f"diffusers' names ({model.family}) become ComfyUI's: {len(checkpoint.tensors)} tensors are "
        f"{len(view.tensors)} in the output, and layers are called by their new names everywhere; {_WAY_OUT}"
    )
    if unknown:
        yield (
            f"{len(unknown)} tensors have no ComfyUI name and keep their own ({unknown[0]}, ...): stock "
            "ComfyUI ignores them"
        )


def comfyui_view(checkpoint: Checkpoint, prefix: str, model: DiffusersNames) -> Checkpoint:
    """Return a checkpoint of `model` under ComfyUI's names, in the order of their first parts.

    prefix: what stands before the model's names; it is left out where ComfyUI does not expect it.
    ConversionError for tensors that do not fit together.
    """
    if METADATA_KEY in checkpoint.metadata:
        raise ConversionError(
            f"{checkpoint.path}: its header lists quantized layers under diffusers' names ({METADATA_KEY}); "
            f"convert the float checkpoint, or {_WAY_OUT}"
        )
    inside = {n[len(prefix) :]: info for n, info in checkpoint.tensors.items() if n.startswith(prefix)}
    before = prefix if prefix in _COMFYUI_PREFIXES else ""
    tensors = {n: info for n, info in checkpoint.tensors.items() if not n.startswith(prefix)}
    table = KeyMap(model.rows(inside))
    placed: set[str] = set()
    for name, mapped in table.inverse(inside).items():
        _whole(checkpoint, table, name, mapped)
        parts = [inside[t] for t in mapped.targets]
        placed.update(mapped.targets)
        tensors[before + name] = _tensor(checkpoint, before + name, parts, mapped.swapped(inside))
    if lost := [n for n in inside if n not in placed]:
        raise ConversionError(
            f"{checkpoint.path}: {prefix}{lost[0]} has a name that another tensor would get; is the file two "
            f"models? {_WAY_OUT}"
        )
    return checkpoint.with_tensors(tensors)


def _whole(checkpoint: Checkpoint, table: KeyMap, name: str, mapped: Mapped) -> None:
    """Refuse a fused tensor some of whose parts are not there: its rows would stand in the wrong places."""
    if not table.lists(mapped.targets[0]):
        return
    missing = [part for part in table(name).targets if part not in mapped.targets]
    if missing:
        raise ConversionError(
            f"{checkpoint.path}: there is no {missing[0]}, which {name} would be made of together with "
            f"{', '.join(mapped.targets)}; {_WAY_OUT}"
        )


def _tensor(checkpoint: Checkpoint, name: str, parts: Sequence[TensorInfo], swap: bool) -> TensorInfo:
    """Put a tensor together; what stands beside a quantized weight goes with its rows."""
    leaf = name.rpartition(".")[2]
    role = OLD_NAMES.get(leaf, leaf)
    if role == CONFIG:
        if len({_bytes(checkpoint, part) for part in parts}) > 1:
            raise ConversionError(
                f"{checkpoint.path}: {', '.join(p.name for p in parts)} differ, and their layers are one in "
                f"ComfyUI; {_WAY_OUT}"
            )
        return joined(name, parts[:1])
    if role == SCALE and len(parts) > 1 and parts[0].numel == 1:
        raise ConversionError(
            f"{checkpoint.path}: {', '.join(p.name for p in parts)} are each one scale of a whole weight, "
            f"and their layers are one in ComfyUI; convert the float checkpoint, or {_WAY_OUT}"
        )
    swap = swap and (role != SCALE or parts[0].numel > 1)
    try:
        return joined(name, parts, swap)
    except ValueError as e:
        raise ConversionError(f"{e}; {_WAY_OUT}") from e


def _bytes(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    raw = bytearray(info.nbytes)
    checkpoint.read_into(info, memoryview(raw))
    return bytes(raw)


def unknown_names(names: Iterable[str], prefix: str, model: DiffusersNames) -> list[str]:
    """List the tensors of a diffusers model that its table has no name for."""
    inside = [n[len(prefix) :] for n in names if n.startswith(prefix)]
    table = KeyMap(model.rows(inside))
    return [prefix + n for n in inside if not table.lists(n)]
