"""The plan of an edit: what becomes of every tensor, decided from headers and ``comfy_quant`` alone."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...files.checkpoint import TensorInfo
from ...files.header import OutputTensor
from ...formats import FORMATS
from ...formats.config import encode_config
from ...formats.errors import ConversionError
from ...formats.names import CONFIG, INPUT_SCALE, METADATA_KEY, PRE_QUANT_SCALE, tensor_name
from ..plan.steps import Plan, Step
from ..stored.faults import examine_file
from ..stored.judge import Examined, Problem
from ..stored.layers import StoredFile, StoredLayer
from ..stored.record import KEY as RECORD
from ..stored.record import Record, read_record
from .noise import noise_warnings
from .settings import EditSettings, compile_filter, suggestion

_READ_KEYS = ("format", "convrot", "convrot_groupsize", "full_precision_matrix_mult", "group_size")
_STYLES = ((", ", ": "), (",", ":"))


@dataclass(frozen=True)
class Change:
    """One thing an edit does.

    kind: "repair", "remove key", "add key", "remove tensor", "dequantize" or "header".
    """

    kind: str
    where: str
    text: str


@dataclass
class EditPlan:
    """The steps, what they change, and what stays wrong (`left`), with `warnings` for people.

    examined: the layers as they are read, for the steps that make them float again.
    """

    plan: Plan
    changes: list[Change]
    left: list[Problem]
    warnings: list[str]
    examined: Mapping[str, Examined]


def build_edit_plan(stored: StoredFile, settings: EditSettings) -> EditPlan:
    """Decide what an edit does to every tensor.

    ConversionError for names and filters that match nothing, and for an edit that would leave a layer that
    cannot be read.
    """
    examined, problems = examine_file(stored)
    work = _Work(stored, settings, examined)
    work.remove_tensors()
    work.dequantize()
    work.edit_configs()
    gone = work.dropped | {f"{n}.weight" for n in work.floats}
    alive = [p for p in problems if not (p.where in gone or f"{p.where}.weight" in gone)]
    work.changes[:0] = [Change("repair", p.where, f"{p.text}: {p.fix}") for p in alive if p.fix]
    work.warn_of_rotation()
    work.warnings += noise_warnings(examined, work.configs, work.dropped)
    steps = tuple(work.steps())
    metadata = work.metadata()
    left = [
        p
        for p in alive
        if not (p.fix or (p.where in work.settled and p.kind in ("rotation", "rotation flag")))
    ]
    if not any(s.outputs for s in steps):
        raise ConversionError("--remove-keys: no tensor would be left; name fewer")
    return EditPlan(Plan(steps, metadata), work.changes, left, work.warnings, examined)


@dataclass
class _Work:
    """An edit while it is decided.

    dropped: tensors that go. floats: layers that become floats, each with its dtype. changes, warnings: to
    report. settled: layers whose new config is known to be readable.
    """

    stored: StoredFile
    settings: EditSettings
    examined: Mapping[str, Examined]
    dropped: set[str] = field(default_factory=set)
    floats: dict[str, str] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.configs = {n: dict(e.config) for n, e in self.examined.items() if e.config is not None}
        # scaled_fp8 tensors speak of layers without comfy_quant; here every scaled layer gets one.
        self.strays = {n for n in self.stored.orphans if n.endswith(f".{CONFIG}")} | set(self.stored.markers)

    def remove_tensors(self) -> None:
        """Drop the tensors named, a weight with all that belongs to it."""
        tensors = self.stored.checkpoint.tensors
        named = [k for k in self.settings.remove_keys if k in tensors]
        for name in named:
            self.dropped.add(name)
            self.changes.append(Change("remove tensor", name, "removed"))
            layer = self.stored.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            for companion in layer.companions() if layer else ():
                if companion.name not in named:
                    self.changes.append(Change("remove tensor", companion.name, f"removed with {name}"))
                self.dropped.add(companion.name)
        for name, layer in self.stored.layers.items():
            if layer.weight.name in self.dropped:
                self.configs.pop(name, None)
                continue
            needed = {t.name for t in self._needed(layer)} & set(named)
            if needed:
                raise ConversionError(
                    f"--remove-keys {min(needed)}: {name} is {layer.weight.dtype} and cannot be read without "
                    f"it; remove {layer.weight.name} instead, or nothing of this layer"
                )

    def _needed(self, layer: StoredLayer) -> list[TensorInfo]:
        """List the tensors without which a layer cannot be read."""
        form = self.examined[layer.name].format if layer.name in self.examined else None
        optional = {INPUT_SCALE, PRE_QUANT_SCALE}.difference(form.suffixes if form else ())
        return [t for t in layer.companions() if not t.name.endswith(tuple(optional))]

    def dequantize(self) -> None:
        """Make the layers float that the settings select; what belongs to their integers goes."""
        if self.settings.dequantize is None:
            return
        dtype = _float_dtype(self.stored)
        alive = [n for n, e in self.examined.items() if e.layer.weight.name not in self.dropped]
        for name in sorted(compile_filter(self.settings.dequantize, alive, "--dequantize"), key=alive.index):
            examined = self.examined[name]
            if examined.format is None:
                why = next((p.text for p in examined.problems), f"it is {examined.layer.weight.dtype}")
                raise ConversionError(f"--dequantize: {name} cannot be read as its file describes it: {why}")
            if examined.rotation_unknown:
                self.warnings.append(
                    f"{name}: nothing in the file says whether it is rotated; read as not rotated"
                )
            self.floats[name] = dtype
            self.configs.pop(name, None)
            self.dropped |= {t.name for t in examined.layer.companions()}
            what = f"{examined.layer.weight.dtype} -> {dtype}"
            self.changes.append(Change("dequantize", name, what))

    def edit_configs(self) -> None:
        """Remove and set keys in the layers that the filter selects."""
        settings = self.settings
        tensors = self.stored.checkpoint.tensors
        keys = [k for k in settings.remove_keys if k not in tensors]
        selected = set(self.configs)
        if keys or settings.add_keys or settings.quant_filter is not None:
            selected = compile_filter(settings.quant_filter, self.configs)
        self._require_known(keys, selected)
        self._warn_of_typos()
        for name in self.configs:
            if name in selected:
                self._edit_config(name, keys)

    def _edit_config(self, name: str, keys: list[str]) -> None:
        config, add = self.configs[name], self.settings.add_keys
        for key in keys:
            if key in config:
                text = f"{key} {json.dumps(config.pop(key))} removed"
                self.changes.append(Change("remove key", name, text))
        for key, value in add.items():
            if key in config and config[key] == value and type(config[key]) is type(value):
                continue
            before = f", was {json.dumps(config[key])}" if key in config else ""
            config[key] = value
            self.changes.append(Change("add key", name, f"{key} {json.dumps(value)}{before}"))
        if keys or add:
            self._require_readable(name, config)

    def _require_known(self, keys: list[str], selected: Iterable[str]) -> None:
        there = dict.fromkeys(k for n in self.configs if n in selected for k in self.configs[n])
        for key in keys:
            if key not in there:
                hint = suggestion(key, [*there, *self.stored.checkpoint.tensors])
                raise ConversionError(
                    f"--remove-keys {key}: neither a tensor of {self.stored.checkpoint.path} nor a key in "
                    f"the comfy_quant of the layers selected; {hint}"
                )
        if self.settings.add_keys and not self.configs:
            raise ConversionError(f"--add-keys: {self.stored.checkpoint.path} has no quantized layers")

    def _warn_of_typos(self) -> None:
        for key in self.settings.add_keys:
            near = difflib.get_close_matches(key, _READ_KEYS, 1, 0.75) if key not in _READ_KEYS else []
            if near:
                self.warnings.append(f"--add-keys: ComfyUI reads no key {key!r}; did you mean {near[0]!r}?")

    def _require_readable(self, name: str, config: Mapping[str, Any]) -> None:
        """Require that the edited config still fits the layer's tensors; else ConversionError."""
        examined = self.examined[name]
        if "format" not in config:
            raise ConversionError(f"{name}: its comfy_quant would have no 'format', which ComfyUI refuses")
        before = examined.config or {}
        own = before.get("format")
        if config["format"] != own:
            raise ConversionError(
                f"{name}: format {config['format']!r} does not fit its tensors, which are {own}; "
                "leave 'format' out of --add-keys"
            )
        form = FORMATS.get(str(own))
        if form is None or config == before:
            return
        columns = examined.layer.weight.shape[-1]
        faults = form.config_faults(config, before, columns)
        if faults and not form.config_faults(before, before, columns):
            raise ConversionError(f"{name}: {faults[0]}")
        if not faults:
            self.settled.add(name)

    def warn_of_rotation(self) -> None:
        """Say plainly where a lost rotation flag could not be brought back."""
        blind = [n for n, e in self.examined.items() if e.rotation_unknown and n in self.configs]
        blind = [n for n in blind if "convrot" not in self.configs[n] and _may_rotate(self.examined[n])]
        if blind:
            self.warnings.append(
                f"{len(blind)} layers had no comfy_quant ({blind[0]}, ...) and nothing in the file says "
                f"whether they are rotated: written without rotation. If they were made with ConvRot this "
                f'gives noise; then edit again with --add-keys \'{{"convrot": true, '
                f'"convrot_groupsize": 256}}\' (ctq verify with the original tells which)'
            )

    def steps(self) -> Iterator[Step]:
        """Make a step for every tensor, in source order; new configs follow their weights."""
        roles = self._roles()
        for info in self.stored.checkpoint.tensors.values():
            layer = info.name.removesuffix(".weight")
            if info.name in self.dropped or info.name in self.strays:
                yield Step(info, "drop", "removed")
            elif info.name.endswith(".weight") and layer in self.floats:
                form = self.examined[layer].format
                shape = form.logical(info.shape) if form else info.shape
                output = OutputTensor(info.name, self.floats[layer], shape)
                yield Step(info, "dequantize", "float again", (output,))
            elif info.name in roles:
                yield roles[info.name]
            else:
                yield _keep(info)
            if layer in self.configs and self.examined[layer].layer.config is None and layer != info.name:
                yield self._config_step(layer, info)

    def _roles(self) -> dict[str, Step]:
        """Make the steps of the scales and configs of layers, by source name."""
        roles = {}
        for name, examined in self.examined.items():
            layer = examined.layer
            for suffix, info in layer.tensors.items():
                roles[info.name] = Step(info, "keep", "belongs to a layer", (examined.tensors[suffix],))
            if layer.config is not None and name in self.configs:
                roles[layer.config.name] = self._config_step(name, layer.config)
        return roles

    def _config_step(self, name: str, source: TensorInfo) -> Step:
        layer = self.examined[name].layer
        data = _restyled(layer.raw, self.configs[name])
        output = OutputTensor(tensor_name(name, CONFIG), "U8", (len(data),))
        info = layer.config
        if (
            info is not None
            and data == layer.raw
            and (info.dtype, info.shape) == (output.dtype, output.shape)
        ):
            return _keep(info)
        return Step(source, "write", "format of the layer", (output,), data=data)

    def metadata(self) -> dict[str, str]:
        """Return the header's metadata: everything, and the list of layers made to agree with the tensors."""
        metadata = dict(self.stored.checkpoint.metadata)
        record = (read_record(metadata) or Record(complete=False)).less(self.dropped, self.floats)
        if record or RECORD in metadata:
            metadata[RECORD] = record.text()
        if not (self.stored.listed or self.settings.save_quant_metadata):
            return metadata
        header = dict(self.stored.header or {"format_version": "1.0"})
        layers = [e.layer for n, e in self.examined.items() if n in self.configs]
        by_entry = {layer.listed_as: layer.name for layer in layers if layer.listed_as}
        old = header.get("layers") if not self.stored.header_error else None
        order = [by_entry[n] for n in old or {} if n in by_entry]
        names = dict.fromkeys([*order, *(layer.name for layer in layers)])
        header["layers"] = {n: self.configs[n] for n in names}
        if not self.stored.listed:
            self.changes.append(Change("header", METADATA_KEY, f"lists {len(names)} layers"))
        metadata[METADATA_KEY] = _restyled(metadata.get(METADATA_KEY, "").encode(), header).decode()
        return metadata


def _float_dtype(stored: StoredFile) -> str:
    """Return F16 where more of the file's other elements are F16 than BF16; else BF16."""
    count = {"F16": 0, "BF16": 0}
    owned = {t.name for layer in stored.layers.values() for t in layer.companions()}
    for info in stored.checkpoint.tensors.values():
        if info.dtype in count and info.name not in owned:
            count[info.dtype] += info.numel
    return "F16" if count["F16"] > count["BF16"] else "BF16"


def _may_rotate(examined: Examined) -> bool:
    return examined.format is not None and examined.format.rotates


def _keep(info: TensorInfo) -> Step:
    return Step(info, "keep", "as it is", (OutputTensor(info.name, info.dtype, info.shape),))


def _restyled(old: bytes | None, value: Any) -> bytes:
    """Write JSON in the spacing that `old` has, so that taking an edit back gives the same bytes."""
    try:
        before = json.loads(old or b"")
    except ValueError:
        return encode_config(value)
    if json.dumps(before) == json.dumps(value):
        return old or b""
    for style in _STYLES:
        if json.dumps(before, separators=style).encode() == old:
            return json.dumps(value, separators=style).encode()
    return encode_config(value)
