"""What is wrong with a stored layer by ComfyUI's contract, and what it is when put right.

`examine` is the one judge: verification shows the problems, editing writes the layer as examined.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...files.checkpoint import TensorInfo
from ...files.header import OutputTensor
from ..contract import BLOCKWISE, FLOAT8_FORMATS, GROUPS, INPUT_SCALE, SCALE, TENSORWISE, LayerFormat
from ..layers.selection import names_embedding
from .layers import StoredLayer, flattened

_BLOCK_SIZES = tuple(1 << e for e in range(4, 11))
_FLOATS = ("F64", "F32", "F16", "BF16")


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

    config: its ``comfy_quant``; None for a plain FP8 layer that has and needs none. scale and input_scale:
    the tensors as they should stand in a file; None where there are none. rotation_unknown: nothing in the
    file says whether the layer was rotated.
    """

    layer: StoredLayer
    config: dict[str, Any] | None
    scale: OutputTensor | None
    input_scale: OutputTensor | None
    problems: tuple[Problem, ...] = ()
    rotation_unknown: bool = False

    def format(self) -> LayerFormat | None:
        """How an INT8 layer is to be read; None when its scale or its rotation fits nothing."""
        if not self.layer.int8 or self.scale is None or self.config is None:
            return None
        if any(p.kind in _UNREADABLE and not p.fix for p in self.problems):
            return None
        config = self.config
        full = bool(config.get("full_precision_matrix_mult", False))
        if config["format"] == BLOCKWISE:
            return LayerFormat("block", 0, config["group_size"], full)
        group = config.get("convrot_groupsize", 256) if config.get("convrot") else 0
        count = self.scale.nbytes // 4
        scaling = "tensor" if count == 1 else "row"
        return LayerFormat(scaling, group, full_precision_matrix_mult=full)


_EMBEDDING = (
    "an INT8 embedding: ComfyUI reads it since July 2026 (noise before), and fails where it offloads it (No "
    "backend can handle 'dequantize_int8_embedding'); ctq edit --dequantize '^{name}$' makes it float again"
)
"""ComfyUI pull request 15035 and issues 15291, 15545."""

_NO_CONFIG = "no comfy_quant: ComfyUI takes its integers for weights, which gives noise"
_UNREADABLE = ("expert bank", "scale missing", "scale dtype", "scale shape", "rotation", "weight shape")


@dataclass
class _Findings:
    """Problems of one layer as they are found."""

    layer: StoredLayer
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: str, text: str, fix: str = "", fatal: bool = True) -> None:
        self.problems.append(Problem(kind, self.layer.name, text, fix, fatal))


def examine(layer: StoredLayer, marker: TensorInfo | None = None) -> Examined:
    """Judge one layer. marker: the ``scaled_fp8`` tensor, with which ComfyUI loads FP8 layers under their
    old names; of two elements, it turns on full_precision_matrix_mult for them."""
    found = _Findings(layer)
    config = _config(layer, found)
    if layer.int8:
        return _examine_int8(layer, config, found)
    if layer.float8:
        return _examine_float8(layer, config, found, marker)
    if config is not None and "format" not in config:
        found.add("no format", "its comfy_quant has no 'format': ComfyUI refuses it")
    return Examined(layer, config, _same(layer.scale), _same(layer.input_scale), tuple(found.problems))


def _examine_int8(layer: StoredLayer, config: dict[str, Any] | None, found: _Findings) -> Examined:
    shape = layer.weight.shape
    if len(shape) != 2:
        if len(shape) == 3 and layer.scale is not None and layer.scale.shape[:1] == shape[:1]:
            text = f"a bank of {shape[0]} experts in one tensor: a ComfyUI that knows such banks reads it"
            found.add("expert bank", text, fatal=False)
        else:
            found.add("weight shape", f"INT8 of shape {list(shape)}: only [N, K] can be used")
        return Examined(layer, config, _same(layer.scale), _same(layer.input_scale), tuple(found.problems))
    if names_embedding(layer.name):
        found.add("INT8 embedding", _EMBEDDING.format(name=layer.name), fatal=False)
    scaling, edge = _scaling(layer, config or {}, found)
    missing = config is None
    config = dict(config or {})
    _check_label(layer, config, scaling, edge, missing, found)
    if missing and not scaling and layer.config is None:  # nothing to read it by: nothing is made up
        return Examined(layer, None, _same(layer.scale), _same(layer.input_scale), tuple(found.problems))
    if scaling != "block":
        _check_rotation(layer, config, found)
    return Examined(
        layer,
        config,
        _scale(layer, scaling, found),
        _input_scale(layer, found),
        tuple(found.problems),
        missing,
    )


def _config(layer: StoredLayer, found: _Findings) -> dict[str, Any] | None:
    """The config that holds: the header's where it lists the layer, as in ComfyUI; else the tensor's."""
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
    """A config with the values that ComfyUI assumes, so that equal meanings compare equal."""
    out = {k: v for k, v in config.items() if k not in ("convrot", "full_precision_matrix_mult") or v}
    if out.get("convrot"):
        out.setdefault("convrot_groupsize", 256)
    else:
        out.pop("convrot_groupsize", None)
    return out


def _stored_config(layer: StoredLayer, found: _Findings) -> dict[str, Any] | None:
    """The JSON object in the ``comfy_quant`` tensor; None when there is none."""
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
    except ValueError as e:
        found.add("comfy_quant JSON", f"comfy_quant is not valid JSON ({e})", "written anew")
        return None
    if not isinstance(config, dict):
        found.add("comfy_quant JSON", f"comfy_quant is not a JSON object: {config!r}", "written anew")
        return None
    return _flat(config, "comfy_quant", found)


def _flat(config: Mapping[str, Any], where: str, found: _Findings) -> dict[str, Any]:
    if "params" in config:
        text = f"{where} nests keys in 'params', where not every reader looks"
        found.add("nested params", text, "flattened", fatal=False)
    return flattened(config)


def _scaling(layer: StoredLayer, config: Mapping[str, Any], found: _Findings) -> tuple[str, int]:
    """("row" | "tensor" | "block", block size) by the scale's shape; ("", 0) when it fits nothing."""
    if layer.scale is None:
        found.add("scale missing", f"it has no {SCALE.lstrip('.')}: ComfyUI refuses it")
        return "", 0
    shape, (n, k) = layer.scale.shape, layer.weight.shape
    size = config.get("group_size")
    if config.get("format") == BLOCKWISE and shape in [_blocks(n, k, b) for b in _BLOCK_SIZES if b == size]:
        return "block", int(size or 0)
    if layer.scale.numel == 1:
        return "tensor", 0
    if layer.scale.numel == n and n in shape:
        return "row", 0
    fits = [b for b in _BLOCK_SIZES if shape == _blocks(n, k, b)]
    whole = [b for b in fits if n % b == 0 and k % b == 0]
    chosen = [size] if size in fits else whole if len(whole) == 1 else fits
    if len(chosen) == 1:
        return "block", chosen[0]
    why = f"blocks of {' or '.join(map(str, fits))} fit" if fits else f"[{n}, 1] is expected"
    found.add("scale shape", f"a scale of shape {list(shape)} beside a weight [{n}, {k}]: {why}")
    return "", 0


def _blocks(n: int, k: int, edge: int) -> tuple[int, int]:
    return -(-n // edge), -(-k // edge)


def _check_label(
    layer: StoredLayer, config: dict[str, Any], scaling: str, edge: int, missing: bool, found: _Findings
) -> None:
    """Make the config's format, and a block-wise layer's group_size, what the scale's shape says."""
    if not scaling:
        config.setdefault("format", TENSORWISE)
        if missing and layer.config is None:
            found.add("no comfy_quant", _NO_CONFIG)
        return
    label = BLOCKWISE if scaling == "block" else TENSORWISE
    shape = list(layer.scale.shape) if layer.scale else []
    old = config.get("format")
    if missing and layer.config is None:
        found.add("no comfy_quant", _NO_CONFIG, f"written as {label}, by the scale's shape {shape}")
    elif old is None and not missing:
        fix = f"{label}, by the scale's shape {shape}"
        found.add("no format", "its config has no 'format': ComfyUI refuses it", fix)
    elif old != label and not missing:
        text = f"labelled {old!r}, but its scale of shape {shape} is {label}"
        found.add("wrong format", text, f"labelled {label}")
    if old != label:
        rest = {k: v for k, v in config.items() if k not in ("format", "group_size")}
        config.clear()
        config.update({"format": label, **rest})
    if scaling == "block":
        _check_block(config, edge, old == label, found)


def _check_block(config: dict[str, Any], edge: int, labelled: bool, found: _Findings) -> None:
    if labelled and config.get("group_size") != edge:
        text = f"group_size {config.get('group_size')!r}, but its scale has blocks of {edge}"
        found.add("group size", text, f"group_size {edge}")
    config["group_size"] = edge
    text = f"{BLOCKWISE}: stock ComfyUI refuses this format; it needs a node pack that knows it"
    found.add("block-wise", text, fatal=False)


def _check_rotation(layer: StoredLayer, config: Mapping[str, Any], found: _Findings) -> None:
    for text in rotation_faults(config, layer.weight.shape[1]):
        found.add("rotation", text)
    if "convrot_groupsize" in config and "convrot" not in config:
        text = (
            f"convrot_groupsize {config['convrot_groupsize']} without convrot: it is not un-rotated; "
            f"if the flag was lost this is noise, and add-keys with convrot true puts it right"
        )
        found.add("rotation flag", text, fatal=False)


def rotation_faults(config: Mapping[str, Any], columns: int) -> Iterator[str]:
    """What is wrong with a config's rotation for a layer of so many columns."""
    if not config.get("convrot"):
        return
    group = config.get("convrot_groupsize", 256)
    if isinstance(group, bool) or group not in GROUPS:
        yield f"convrot_groupsize {group!r} is not one of {', '.join(map(str, GROUPS))}"
    elif columns % group:
        yield f"convrot_groupsize {group} does not divide its {columns} columns: the first forward fails"


def _scale(layer: StoredLayer, scaling: str, found: _Findings) -> OutputTensor | None:
    """The scale as it should be stored."""
    info = layer.scale
    if info is None:
        return None
    n, shape = layer.weight.shape[0], info.shape
    if info.name != layer.name + SCALE:
        old = info.name.removeprefix(layer.name)
        found.add("scale name", f"its scale is named {old}: ComfyUI refuses it", f"renamed to {SCALE}")
    if info.dtype not in _FLOATS:
        found.add("scale dtype", f"its scale is {info.dtype}, not F32")
    elif info.dtype != "F32":
        text = f"its scale is {info.dtype}, not F32: ComfyUI loads it and fails when it runs"
        found.add("scale dtype", text, "converted to F32")
    if scaling == "row" and shape != (n, 1):
        text = f"its row scale has shape {list(shape)}, not [{n}, 1]: LoRAs crash, or rows swap scales"
        found.add("scale shape", text, f"reshaped to [{n}, 1]")
        shape = (n, 1)
    if scaling == "tensor" and len(shape) > 2:
        found.add("scale shape", f"its scale has shape {list(shape)}, not [1, 1]", "reshaped to [1, 1]")
        shape = (1, 1)
    return OutputTensor(layer.name + SCALE, "F32" if info.dtype in _FLOATS else info.dtype, shape)


def _examine_float8(
    layer: StoredLayer, config: dict[str, Any] | None, found: _Findings, marker: TensorInfo | None
) -> Examined:
    """FP8 layers: only their names and labels; ComfyUI loads them."""
    label = FLOAT8_FORMATS[layer.weight.dtype]
    old = layer.scale is not None and layer.scale.name != layer.name + SCALE
    if config is None and layer.scale is not None:
        text = "an FP8 layer without comfy_quant" + (", told by the scaled_fp8 tensor" if marker else "")
        found.add("no comfy_quant", text, f"written as {label}", fatal=marker is None)
        config = {"format": label}
        if marker is not None and marker.numel == 2:
            config["full_precision_matrix_mult"] = True
    elif config is not None and config.get("format") != label:
        found.add("wrong format", f"labelled {config.get('format')!r}, but is {label}", f"labelled {label}")
        config = {**config, "format": label}
    scale = _same(layer.scale)
    if old and scale is not None and layer.scale is not None:
        name = layer.scale.name.removeprefix(layer.name)
        found.add("scale name", f"its scale is named {name}", f"renamed to {SCALE}", fatal=marker is None)
        scale = OutputTensor(layer.name + SCALE, scale.dtype, scale.shape)
    moved = _input_scale(layer, found)
    return Examined(layer, config, scale, moved, tuple(found.problems))


def _input_scale(layer: StoredLayer, found: _Findings) -> OutputTensor | None:
    info = layer.input_scale
    if info is None:
        return None
    if info.name != layer.name + INPUT_SCALE:
        old = info.name.removeprefix(layer.name)
        found.add(
            "input scale name", f"its input scale is named {old}", f"renamed to {INPUT_SCALE}", fatal=False
        )
    return OutputTensor(layer.name + INPUT_SCALE, info.dtype, info.shape)


def _same(info: TensorInfo | None) -> OutputTensor | None:
    return None if info is None else OutputTensor(info.name, info.dtype, info.shape)
