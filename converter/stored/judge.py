"""What is wrong with a stored layer by ComfyUI's contract, and what it is when put right.

`examine` is the one judge: verification shows the problems, editing writes the layer as examined.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...files.checkpoint import TensorInfo
from ...files.header import OutputTensor
from ...formats import FORMATS, CheckpointError, Format, StoredTensor, Tensors, read_format
from ...formats.config import flattened, shown
from ...formats.convrot import DEFAULT_GROUP
from ...formats.names import INPUT_SCALE, MARKER, SCALE, WEIGHT, tensor_name
from ..layers.selection import names_embedding
from .companions import float_formats
from .layers import StoredLayer


@dataclass(frozen=True)
class Problem:
    """One breach of the contract.

    kind: a short, fixed name. where: the layer or tensor. text: what is wrong and what comes of it. fix: what
    editing does about it, "" for nothing. fatal: ComfyUI refuses, crashes or shows noise; else it is only
    worth knowing.
    """

    kind: str
    where: str
    text: str
    fix: str = ""
    fatal: bool = True


@dataclass(frozen=True)
class Examined:
    """A layer put right as far as its file allows.

    config: its ``comfy_quant``; None for a plain FP8 layer that has and needs none. tensors: what stands
    beside the weight as it should stand in a file, by suffix. format: how it is to be read, None where that
    cannot be told. rotation_unknown: nothing in the file says whether the layer was rotated.
    """

    layer: StoredLayer
    config: dict[str, Any] | None
    tensors: Mapping[str, OutputTensor]
    format: Format | None = None
    problems: tuple[Problem, ...] = ()
    rotation_unknown: bool = False

    @property
    def stored(self) -> Tensors:
        """The weight and its companions as they should stand, as formats describe them."""
        return _described(self.layer.weight, self.tensors)


_EMBEDDING = (
    "an INT8 embedding: ComfyUI reads it since July 2026 (noise before), and fails where it offloads it (No "
    "backend can handle 'dequantize_int8_embedding'); ctq edit --dequantize '^{name}$' makes it float again"
)
"""ComfyUI pull request 15035 and issues 15291, 15545."""


@dataclass
class _Findings:
    """Problems of one layer as they are found."""

    layer: StoredLayer
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: str, text: str, fix: str = "", fatal: bool = True) -> None:
        self.problems.append(Problem(kind, self.layer.name, text, fix, fatal))


def examine(layer: StoredLayer, marker: TensorInfo | None = None) -> Examined:
    """Judge one layer.

    marker: the ``scaled_fp8`` tensor, with which ComfyUI loads FP8 layers under their old names; one of two
    elements turns on full_precision_matrix_mult for them.
    """
    found = _Findings(layer)
    given = _config(layer, found)
    form = _class_of(layer, given)
    if form is None:
        if given is not None and "format" not in given:
            found.add("no format", "its comfy_quant has no 'format': ComfyUI refuses it")
        elif given is not None and (named := FORMATS.get(str(given["format"]))):
            text = f"its weight is {layer.weight.dtype}, {named.name} needs {named.weight_dtype}"
            found.add("weight dtype", text)
        return Examined(layer, given, _as_found(layer), None, tuple(found.problems))
    if names_embedding(layer.name) and layer.weight.dtype == "I8" and len(layer.weight.shape) == 2:
        found.add("INT8 embedding", _EMBEDDING.format(name=layer.name), fatal=False)
    if given is None and layer.floats and SCALE in layer.tensors:
        given = _by_marker(form, marker, found)
    infos = _described(layer.weight, _as_found(layer))
    config, right = form.put_right(given, infos, found.add, layer.config is not None)
    tensors = _renamed(layer, right, found, marker)
    read = None if config is None and not layer.floats else _read(layer, config, tensors, found)
    unknown = given is None and config is not None and form.rotates
    return Examined(layer, config, tensors, read, tuple(found.problems), unknown)


def _class_of(layer: StoredLayer, config: Mapping[str, Any] | None) -> type[Format] | None:
    """Find the format that judges a layer: the one it names if that stores such weights, else by dtype."""
    named = FORMATS.get(str((config or {}).get("format")))
    if named is not None and named.weight_dtype == layer.weight.dtype:
        return named
    alike = (f for f in FORMATS.values() if f.weight_dtype == layer.weight.dtype and f.unlabelled)
    return next(alike, None)


def _by_marker(form: type[Format], marker: TensorInfo | None, found: "_Findings") -> dict[str, Any]:
    """Say how a scaled FP8 layer without ``comfy_quant`` is stored, as ComfyUI reads older files."""
    text = "an FP8 layer without comfy_quant" + (f", told by the {MARKER} tensor" if marker else "")
    found.add("no comfy_quant", text, f"written as {form.name}", fatal=marker is None)
    full = marker is not None and marker.numel == 2
    return form(full_precision_matrix_mult=full).config()


def _read(
    layer: StoredLayer,
    config: Mapping[str, Any] | None,
    tensors: Mapping[str, OutputTensor],
    found: "_Findings",
) -> Format | None:
    """Read the format of a layer put right; None when a fault without a remedy stands in the way."""
    if any(p.fatal and not p.fix for p in found.problems):
        return None
    name = (config or {}).get("format") or float_formats().get(layer.weight.dtype)
    try:
        return read_format({"format": name, **(config or {})}, _described(layer.weight, tensors), layer.name)
    except CheckpointError as e:
        if not any(p.fatal for p in found.problems):
            found.add("layer", str(e))
        return None


def _as_found(layer: StoredLayer) -> dict[str, OutputTensor]:
    return {s: OutputTensor(t.name, t.dtype, t.shape) for s, t in layer.tensors.items()}


def _described(weight: TensorInfo, tensors: Mapping[str, OutputTensor]) -> Tensors:
    own = {WEIGHT: StoredTensor(WEIGHT, weight.dtype, weight.shape)}
    return {**own, **{s: StoredTensor(s, t.dtype, t.shape) for s, t in tensors.items()}}


def _renamed(
    layer: StoredLayer, right: Tensors, found: "_Findings", marker: TensorInfo | None
) -> dict[str, OutputTensor]:
    """Return the companions under today's names."""
    out = {}
    for suffix, info in layer.tensors.items():
        name, old = tensor_name(layer.name, suffix), info.name.removeprefix(f"{layer.name}.")
        if info.name != name:
            _report_name(layer, suffix, old, found, marker)
        out[suffix] = OutputTensor(name, right[suffix].dtype, right[suffix].shape)
    return out


def _report_name(
    layer: StoredLayer, suffix: str, old: str, found: "_Findings", marker: TensorInfo | None
) -> None:
    if suffix == INPUT_SCALE:
        text = f"its input scale is named .{old}"
        found.add("input scale name", text, f"renamed to .{suffix}", fatal=False)
    elif layer.floats:
        found.add("scale name", f"its scale is named .{old}", f"renamed to .{suffix}", fatal=marker is None)
    else:
        found.add("scale name", f"its scale is named .{old}: ComfyUI refuses it", f"renamed to .{suffix}")


def _config(layer: StoredLayer, found: _Findings) -> dict[str, Any] | None:
    """Return the config that holds: the header's if it lists the layer, as in ComfyUI, else the tensor's."""
    stored = _stored_config(layer, found)
    listed = layer.listed
    if isinstance(listed, str):
        found.add("header entry", f"the header lists it as the text {listed!r}", "made a JSON object")
        listed = {"format": listed}
    if layer.listed_as and not isinstance(listed, dict):
        found.add("header entry", f"the header lists it as {listed!r}", "taken from its comfy_quant")
        listed = None
    if listed is None:
        return stored
    listed = _flat(listed, "the header's entry", found)
    if layer.listed_as != layer.name:
        found.add(
            "header name",
            f"the header lists it as {layer.listed_as!r}: ComfyUI leaves it unquantized without a word",
            "listed under its name",
        )
    if stored is None:
        if layer.config is None:
            text, fix = "only the header names its format", "comfy_quant written from the header"
            found.add("no comfy_quant", text, fix, fatal=False)
        return listed
    return _agreed(stored, listed, found)


def _agreed(stored: dict[str, Any], listed: dict[str, Any], found: _Findings) -> dict[str, Any]:
    if _meaning(stored) == _meaning(listed):
        return stored
    text = (
        f"comfy_quant says {json.dumps(stored)}, the header {json.dumps(listed)}: ComfyUI believes the header"
    )
    if "convrot" in stored and "convrot" not in listed:
        rotation: dict[str, Any] = {k: stored[k] for k in ("convrot", "convrot_groupsize") if k in stored}
        found.add("header differs", text, "the rotation taken from comfy_quant, the rest from the header")
        return {**listed, **rotation}
    found.add("header differs", text, "the header's taken for both")
    return listed


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the values that ComfyUI assumes, so that configs of equal meaning compare equal."""
    out = {k: v for k, v in config.items() if k not in ("convrot", "full_precision_matrix_mult") or v}
    if out.get("convrot"):
        out.setdefault("convrot_groupsize", DEFAULT_GROUP)
    else:
        out.pop("convrot_groupsize", None)
    return out


def _stored_config(layer: StoredLayer, found: _Findings) -> dict[str, Any] | None:
    """Read the JSON object in the ``comfy_quant`` tensor; None when there is none."""
    if layer.config is None or layer.raw is None:
        return None
    raw = layer.raw
    if layer.config.dtype != "U8" or len(layer.config.shape) != 1:
        shape = f"{layer.config.dtype} {list(layer.config.shape)}"
        found.add("comfy_quant tensor", f"comfy_quant is {shape}, not U8 [n]", "written as U8 [n]")
    if raw.endswith(b"\0"):
        raw = raw.rstrip(b"\0")
        found.add("NUL padding", "comfy_quant ends in NUL bytes: ComfyUI refuses it", "NUL bytes removed")
    try:
        config = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        found.add("comfy_quant JSON", f"comfy_quant is not valid JSON ({e})", "written anew")
        return None
    if not isinstance(config, dict):
        found.add("comfy_quant JSON", f"comfy_quant is not a JSON object: {shown(config)}", "written anew")
        return None
    return _flat(config, "comfy_quant", found)


def _flat(config: Mapping[str, Any], where: str, found: _Findings) -> dict[str, Any]:
    if "params" in config:
        text = f"{where} nests keys in 'params', where not every reader looks"
        found.add("nested params", text, "flattened", fatal=False)
    flat = flattened(config)
    if "format" in flat and "format" not in config:
        found.add("no format", f"{where} has its 'format' in 'params': ComfyUI refuses it", "flattened")
    return flat
