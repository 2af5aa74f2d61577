"""What the INT8 formats share: how a stored layer is told and put right.

The scale's shape tells more than the label: files in the wild carry the wrong one, or none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from . import bank
from .base import FLOATS, FORMATS, Format, Report
from .config import flag, shown, whole_number
from .convrot import DEFAULT_GROUP, GROUPS
from .names import PRE_QUANT_SCALE, SCALE, WEIGHT
from .tensors import Tensors

DEFAULT_BLOCK = 128
"""Edge of a block where ``comfy_quant`` gives none; the scale's shape must agree."""

LARGEST_BLOCK = 1 << 15
"""No weight has blocks this large; a larger edge in a file would ask the kernels for absurd padding."""

_EDGES = tuple(1 << e for e in range(4, 11))


@dataclass(frozen=True, kw_only=True)
class Int8(Format):
    """Integers -127 to 127 with float32 scales."""

    weight_dtype: ClassVar[str] = "I8"
    largest_first: ClassVar[bool] = False  # a tenth of LDLQ's time, for 0.03 dB
    fold_balance: ClassVar[float] = 0.45  # its int8 inputs lose more than its weights

    @classmethod
    def put_right(
        cls, config: dict[str, Any] | None, tensors: Tensors, report: Report, reported: bool = False
    ) -> tuple[dict[str, Any] | None, Tensors]:
        """Label the layer by its scale's shape; give the scale the dtype and shape that load everywhere."""
        shape = tensors[WEIGHT].shape
        if experts := bank.experts_in(config or {}, tensors):
            return cls._bank_put_right(experts, config, tensors, report, reported)
        if len(shape) != 2:
            report("weight shape", f"INT8 of shape {list(shape)}: only [N, K] can be used")
            return config, tensors
        told, edge = _told_by_scale(config or {}, tensors, report)
        right = _labelled(config, told, edge, tensors, report, reported)
        if right is None:
            return None, tensors
        if told != "block":
            right = _group_as_number(right, report)
            _check_rotation(right, shape[1], report)
        elif flag(right, "convrot"):
            report("rotation", f"it says convrot, and {right['format']} has no rotation")
        return right, _scale_put_right(told, tensors, report)

    @classmethod
    def _bank_put_right(
        cls, experts: int, config: dict[str, Any] | None, tensors: Tensors, report: Report, reported: bool
    ) -> tuple[dict[str, Any] | None, Tensors]:
        """Put a bank of experts right as the matrix of all their rows."""
        text = f"a bank of {experts} experts: ComfyUI reads it since {bank.SINCE}"
        report("expert bank", text, fatal=False)
        given = None if config is None else {**config, bank.KEY: experts}
        if config is not None and config.get(bank.KEY) != experts:
            text = f"num_experts is {shown(config.get(bank.KEY))}, its weight has {experts}"
            report("num_experts", text, f"num_experts {experts}", fatal=False)
        rows = bank.matrix(tensors, experts)
        right, found = cls.put_right(given, rows, report, reported)
        if right is not None:
            right = {**right, bank.KEY: experts}
        n = rows[WEIGHT].shape[0]
        return right, {s: bank.taken_apart(t, n, experts) for s, t in found.items()}

    @classmethod
    def config_faults(cls, config: Mapping[str, Any], before: Mapping[str, Any], columns: int) -> list[str]:
        """Return faults: another block edge, or a rotation that the layer cannot have."""
        edge = before.get("group_size")
        if config.get("group_size") != edge and config["format"] == _name("block"):
            return [f"its scale has blocks of {edge}: group_size stays"]
        return list(rotation_faults(config, columns))


def given_edge(config: Mapping[str, Any]) -> Any:
    """Return what a flattened config gives as the edge of a block, whatever it is; else the default."""
    sizes = (config.get(k) for k in ("group_size", "block_size"))
    return next((s for s in sizes if s is not None), DEFAULT_BLOCK)


def edge_of(config: Mapping[str, Any]) -> int:
    """Read the edge of a block: a power of two; 0 where what is given is none."""
    edge = whole_number(given_edge(config))
    return edge if 0 < edge <= LARGEST_BLOCK and not edge & (edge - 1) else 0


def rotation_faults(config: Mapping[str, Any], columns: int) -> Iterator[str]:
    """Yield what is wrong with a config's rotation for a layer of so many columns."""
    if not flag(config, "convrot"):
        return
    if bank.KEY in config:
        yield "a bank of experts that is rotated: stock ComfyUI does not un-rotate it, which gives noise"
    group = config.get("convrot_groupsize", DEFAULT_GROUP)
    if type(group) is not int or group not in GROUPS:
        yield f"convrot_groupsize {group!r} is not one of {', '.join(map(str, GROUPS))}"
    elif columns % group:
        yield f"convrot_groupsize {group} does not divide its {columns} columns: the first forward fails"


def _name(granularity: str) -> str:
    """Return the name on disk of the INT8 format with that granularity."""
    return next(f.name for f in FORMATS.values() if issubclass(f, Int8) and granularity in f.granularities)


def _told_by_scale(config: Mapping[str, Any], tensors: Tensors, report: Report) -> tuple[str, int]:
    """Tell (granularity, edge of a block) by the scale's shape; ("", 0) when it fits nothing."""
    scale, (n, k) = tensors.get(SCALE), tensors[WEIGHT].shape
    if scale is None:
        report("scale missing", f"it has no {SCALE}: ComfyUI refuses it")
        return "", 0
    labelled = config.get("format") == _name("block")
    size = edge_of(config) if labelled or "group_size" in config else 0
    fits = [b for b in sorted({*_EDGES, size} - {0}) if scale.shape == (-(-n // b), -(-k // b))]
    if labelled and size in fits:
        return "block", size
    if scale.numel == 1:
        return "tensor", 0
    if scale.per_row(n):
        return "row", 0
    whole = [b for b in fits if n % b == 0 and k % b == 0]
    chosen = [size] if size in fits else whole if len(whole) == 1 else fits
    if len(chosen) == 1:
        return "block", chosen[0]
    why = f"blocks of {' or '.join(map(str, fits))} fit" if fits else f"[{n}, 1] is expected"
    report("scale shape", f"a scale of shape {list(scale.shape)} beside a weight [{n}, {k}]: {why}")
    return "", 0


def _labelled(
    config: dict[str, Any] | None, told: str, edge: int, tensors: Tensors, report: Report, reported: bool
) -> dict[str, Any] | None:
    """Return the config with the format, and the group_size, that the scale's shape tells.

    None where there is nothing to read a layer by: nothing is made up.
    """
    absent = config is None and not reported
    right = dict(config or {})
    if not told:
        right.setdefault("format", _name("row"))
        if absent:
            report(
                "no comfy_quant", "no comfy_quant: ComfyUI takes its integers for weights, which gives noise"
            )
        return None if absent else right
    label, shape, old = _name(told), list(tensors[SCALE].shape), right.get("format")
    smooth = FORMATS[label].smoothed_as
    if smooth and PRE_QUANT_SCALE in tensors:
        label = smooth
    elif smooth and old == smooth:
        report("pre_quant_scale", f"it has no {PRE_QUANT_SCALE}, which {old} layers are multiplied by")
        return right
    if absent:
        text = "no comfy_quant: ComfyUI takes its integers for weights, which gives noise"
        report("no comfy_quant", text, f"written as {label}, by the scale's shape {shape}")
    elif old is None and config is not None:
        fix = f"{label}, by the scale's shape {shape}"
        report("no format", "its config has no 'format': ComfyUI refuses it", fix)
    elif label == smooth and old == _name(told) and config is not None:
        text = f"{old} with a {PRE_QUANT_SCALE}, which stock ComfyUI ignores: it shows noise"
        report("smoothed", text, f"labelled {label}, which it refuses and the node pack reads")
    elif old != label and config is not None:
        text = f"labelled {old!r}, but its scale of shape {shape} is {label}"
        report("wrong format", text, f"labelled {label}")
    if old != label:
        right = {"format": label, **{k: v for k, v in right.items() if k not in ("format", "group_size")}}
    if told == "block":
        _check_edge(right, edge, old == label, report)
    elif label == smooth:
        _needs_pack("smoothed", label, report)
    return right


def _needs_pack(kind: str, label: str, report: Report) -> None:
    text = f"{label}: stock ComfyUI refuses this format; it needs a node pack that knows it"
    report(kind, text, fatal=False)


def _check_edge(config: dict[str, Any], edge: int, labelled: bool, report: Report) -> None:
    given = config.get("group_size")
    if labelled and (type(given) is not int or given != edge):
        text = f"group_size {given!r}, but its scale has blocks of {edge}"
        report("group size", text, f"group_size {edge}")
    config["group_size"] = edge
    _needs_pack("block-wise", config["format"], report)


def _group_as_number(config: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return the config with a rotation group written as text, as some tools do, made a number."""
    given = config.get("convrot_groupsize")
    group = whole_number(given)
    if not flag(config, "convrot") or not isinstance(given, str) or group not in GROUPS:
        return config
    report("rotation", f"convrot_groupsize is the text {given!r}", f"convrot_groupsize {group}")
    return {**config, "convrot_groupsize": group}


def _check_rotation(config: Mapping[str, Any], columns: int, report: Report) -> None:
    for text in rotation_faults(config, columns):
        report("rotation", text)
    if "convrot_groupsize" in config and "convrot" not in config:
        text = (
            f"convrot_groupsize {config['convrot_groupsize']} without convrot: it is not un-rotated; "
            f"if the flag was lost this is noise, and add-keys with convrot true puts it right"
        )
        report("rotation flag", text, fatal=False)


def _scale_put_right(told: str, tensors: Tensors, report: Report) -> Tensors:
    scale = tensors.get(SCALE)
    if scale is None:
        return tensors
    n, shape, dtype = tensors[WEIGHT].shape[0], scale.shape, scale.dtype
    if dtype not in FLOATS:
        report("scale dtype", f"its scale is {dtype}, not F32")
    elif dtype != "F32":
        text = f"its scale is {dtype}, not F32: ComfyUI loads it and fails when it runs"
        report("scale dtype", text, "converted to F32")
        dtype = "F32"
    if told == "row" and shape != (n, 1):
        text = f"its row scale has shape {list(shape)}, not [{n}, 1]: LoRAs crash, or rows swap scales"
        report("scale shape", text, f"reshaped to [{n}, 1]")
        shape = (n, 1)
    if told == "tensor" and len(shape) > 2:
        report("scale shape", f"its scale has shape {list(shape)}, not [1, 1]", "reshaped to [1, 1]")
        shape = (1, 1)
    return {**tensors, SCALE: replace(scale, dtype=dtype, shape=shape)}
