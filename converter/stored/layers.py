"""The quantized layers of a file as they stand, faults and all: nothing here refuses or corrects."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...files.checkpoint import Checkpoint, TensorInfo
from ...formats import FORMATS, companion_suffixes
from ...formats.config import MAX_BYTES
from ...formats.names import CONFIG, METADATA_KEY, SCALE, WEIGHT, tensor_name
from ...names.prefixes import CHECKPOINT
from .companions import float_formats, is_marker, spellings


@dataclass(frozen=True)
class StoredLayer:
    """One quantized weight and what stands beside it.

    tensors: what stands beside it, by today's suffix. raw: the bytes of its ``comfy_quant``. listed: its
    entry in the header's ``_quantization_metadata``, which ComfyUI believes over `raw`; listed_as: the name
    it has there ("" when it is not listed).
    """

    name: str
    weight: TensorInfo
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    config: TensorInfo | None = None
    raw: bytes | None = None
    listed: Any = None
    listed_as: str = ""

    @property
    def floats(self) -> bool:
        """Tell whether its weight holds floats (FP8), which mean something by themselves."""
        return self.weight.dtype in float_formats()

    def companions(self) -> list[TensorInfo]:
        """Return the tensors that only make sense beside this weight."""
        return [*self.tensors.values(), *([self.config] if self.config else [])]


@dataclass(frozen=True)
class StoredFile:
    """A checkpoint's quantized layers by name, and what its header says of them.

    header: the parsed ``_quantization_metadata``, None where it is absent or no JSON object; header_error:
    what is wrong with it. unknown: names listed there that no quantized layer has, under any prefix.
    orphans: companions without a quantized weight. markers: the ``scaled_fp8`` tensors of older FP8 files.
    """

    checkpoint: Checkpoint
    layers: Mapping[str, StoredLayer]
    header: Mapping[str, Any] | None
    header_error: str
    unknown: tuple[str, ...]
    orphans: tuple[str, ...]
    markers: tuple[str, ...]

    @property
    def listed(self) -> bool:
        """Tell whether the header has a list of layers at all, valid or not."""
        return METADATA_KEY in self.checkpoint.metadata

    def bias(self, layer: StoredLayer) -> TensorInfo | None:
        """Return the layer's bias, None without one."""
        return self.checkpoint.tensors.get(f"{layer.name}.bias")


def stored_file(checkpoint: Checkpoint) -> StoredFile:
    """Find the quantized layers of a checkpoint. Reads the header and each layer's ``comfy_quant``.

    A layer is a ``.weight`` in INT8 or FP8, or one in bytes with a ``comfy_quant`` (formats of others).
    """
    header, error = _header(checkpoint.metadata)
    entries = header.get("layers", {}) if header and not error else {}
    names = [_layer_name(n) for n, t in checkpoint.tensors.items() if _is_layer(checkpoint, n, t)]
    listed_as, unknown = _match(entries, names)
    checkpoint.expect(t for n, t in checkpoint.tensors.items() if n.endswith(f".{CONFIG}"))
    layers = {n: _layer(checkpoint, n, entries, listed_as.get(n, "")) for n in names}
    owned = {t.name for layer in layers.values() for t in layer.companions()}
    orphans = tuple(
        n for n in checkpoint.tensors if n.endswith((f".{CONFIG}", f".{SCALE}")) and n not in owned
    )
    markers = tuple(n for n in checkpoint.tensors if is_marker(n))
    return StoredFile(checkpoint, layers, header, error, unknown, orphans, markers)


def _is_layer(checkpoint: Checkpoint, name: str, info: TensorInfo) -> bool:
    if not name.endswith(f".{WEIGHT}"):
        return False
    if info.dtype == "I8" or info.dtype in float_formats():
        return True
    there = tensor_name(_layer_name(name), CONFIG) in checkpoint.tensors
    return there and info.dtype in {"U8", *(f.weight_dtype for f in FORMATS.values())}


def _layer_name(weight: str) -> str:
    return weight.removesuffix(f".{WEIGHT}")


def _layer(checkpoint: Checkpoint, name: str, entries: Mapping[str, Any], listed_as: str) -> StoredLayer:
    tensors = checkpoint.tensors
    found = {}
    for suffix in companion_suffixes():
        names = (tensor_name(name, s) for s in spellings(suffix))
        there = next((tensors[n] for n in names if n in tensors), None)
        if there is not None:
            found[suffix] = there
    config = tensors.get(tensor_name(name, CONFIG))
    return StoredLayer(
        name,
        tensors[tensor_name(name, WEIGHT)],
        found,
        config,
        None if config is None else _bytes(checkpoint, config),
        entries.get(listed_as),
        listed_as,
    )


def _bytes(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    """Read the tensor's bytes; of an absurdly large one only the start, which then is no JSON."""
    raw = bytearray(min(info.nbytes, MAX_BYTES))
    checkpoint.read_into(info, memoryview(raw))
    return bytes(raw)


def _header(metadata: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """Parse the layer list; return it and what is wrong with it."""
    raw = metadata.get(METADATA_KEY)
    if raw is None:
        return None, ""
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as e:
        return None, f"not valid JSON: {e}"
    if not isinstance(header, dict):
        return None, "not a JSON object"
    if not isinstance(header.get("layers"), dict):
        return header, "it has no 'layers' object"
    return header, ""


def _match(listed: Iterable[str], names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (layer -> the name it is listed under, listed names that no layer has).

    A name without the file's prefix, or with one that the file lacks, still counts where it can only mean
    one layer.
    """
    known, found, later = set(names), {}, []
    for entry in listed:
        if entry in known:
            found[entry] = entry
        else:
            later.append(entry)
    endings = _endings(names) if later else {}
    unknown = []
    for entry in later:
        meant = endings.get(entry) or next(
            (entry[len(p) :] for p in CHECKPOINT if entry.startswith(p) and entry[len(p) :] in known),
            "",
        )
        if meant and meant not in found:
            found[meant] = entry
        else:
            unknown.append(entry)
    return found, tuple(unknown)


def _endings(names: list[str]) -> dict[str, str]:
    """Map every ending of a name that starts after a dot to the name; to "" where two names have it."""
    out: dict[str, str] = {}
    for name in names:
        at = name.find(".")
        while at >= 0:
            ending = name[at + 1 :]
            out[ending] = "" if ending in out else name
            at = name.find(".", at + 1)
    return out
