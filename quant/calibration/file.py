"""The calibration file: what was measured of each layer's inputs.

Safetensors: ``<layer>.samples`` [n, K] bf16, ``<layer>.channel_max`` [K] and ``<layer>.channel_mean``
[K] float32, ``<layer>.input_scale`` float32 []; any of them may be missing. The metadata names the
format, the source ("recorded" or "synthetic") and, as JSON, under "shared" layers that use another's
record because one tensor feeds both, and under "influence" what part of each layer's error arrives at the
model's output, where that was measured. JSON: ``{layer: {"channel_max": [...], ...}}``, without samples, or
``{layer: input scale}``.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from ...files.atomic import new_file
from ...files.checkpoint import Checkpoint, open_checkpoint
from ...files.dtypes import QUANTIZABLE
from ...files.header import TensorInfo
from ...files.regular import parse_json, read_json
from ...files.save import save_tensors
from ...files.schema import listing, number, record, table, text
from ...formats.errors import CheckpointError
from ...formats.names import JOB_KEY
from ..algorithms.types import LayerStats
from .names import MatchReport, NothingMatched, match

FORMAT = "convert_to_quant.calibration/1"
FIELDS = ("samples", "channel_max", "channel_mean", "input_scale")


@dataclass(frozen=True)
class CalibrationData:
    """An opened calibration file. Tensors are read when `stats` asks for them, and not kept.

    records: name -> the fields there are. shared: layer -> the record it uses. synthetic: whether the
    numbers come from made-up inputs. influence: layer -> what part of its error arrives at the model's
    output (`influence.influences`). values: the content of a JSON file; file: a safetensors one.
    """

    path: Path
    records: Mapping[str, tuple[str, ...]]
    shared: Mapping[str, str] = field(default_factory=dict)
    synthetic: bool = False
    influence: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Any]] | None = None
    file: Checkpoint | None = None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "CalibrationData":
        """Open a safetensors or JSON file. FileNotFoundError; ValueError for what is no calibration."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"calibration file {path} does not exist")
        return _open_json(path) if path.suffix == ".json" else _open_safetensors(path)

    def names(self) -> list[str]:
        """Return every layer that has a record, its own or a shared one."""
        return [*self.records, *self.shared]

    def match(self, layer_names: Iterable[str]) -> tuple[dict[str, str], MatchReport]:
        """Return ``({layer: record}, report)`` for a checkpoint's layers, across the usual prefixes.

        NothingMatched (a ValueError) when no layer has a record.
        """
        found, report = match(layer_names, self.names())
        return {layer: self.shared.get(name, name) for layer, name in found.items()}, report

    def stats(self, layer: str) -> LayerStats:
        """Read the statistics of a record or a layer from the file; KeyError when it has none."""
        record = self.shared.get(layer, layer)
        if record not in self.records:
            try:
                record = self.match([layer])[0][layer]
            except NothingMatched:
                raise KeyError(f"no calibration record for {layer}") from None
        values = self.values[record] if self.values is not None else self._read(record)
        try:
            tensors = {
                name: torch.as_tensor(values[name], dtype=None if name == "samples" else torch.float32)
                for name in FIELDS[:3]
                if name in self.records[record]
            }
        except ValueError as e:  # rows of different lengths
            raise CheckpointError(f"calibration file {self.path}: {record!r}: samples: {e}") from e
        scale = float(values["input_scale"]) if "input_scale" in self.records[record] else None
        most = tensors.get("channel_max")
        if scale is not None and not (isfinite(scale) and scale > 0):
            raise CheckpointError(self._damaged(record, f"an input_scale of {scale:g}"))
        if most is not None and not bool(((most >= 0) & most.isfinite()).all()):
            raise CheckpointError(self._damaged(record, "a channel_max that is NaN, infinite or negative"))
        samples, channel_max, channel_mean = (tensors.get(name) for name in FIELDS[:3])
        if samples is not None and samples.dtype not in _COMPUTED:
            samples = samples.float()  # FP8 and float64, which kernels do not take
        return LayerStats(samples, channel_max, channel_mean, scale, synthetic=self.synthetic)

    def _damaged(self, record: str, what: str) -> str:
        return f"calibration file {self.path}: {record!r} has {what}; record it again"

    def width(self, layer: str) -> int:
        """Return the columns K that a record is for, 0 where it does not tell."""
        record = self.shared.get(layer, layer)
        for name in (n for n in FIELDS[:3] if n in self.records[record]):
            if self.file is not None:
                return self.file.tensors[f"{record}.{name}"].shape[-1]
            assert self.values is not None
            value = self.values[record][name]
            return len(value[0] if name == "samples" else value)
        return 0

    def count(self, layer: str) -> int:
        """Return how many samples the record of a layer has, 0 where it has none."""
        record = self.shared.get(layer, layer)
        if "samples" not in self.records[record]:
            return 0
        if self.file is not None:
            return self.file.tensors[f"{record}.samples"].shape[0]
        assert self.values is not None
        return len(self.values[record]["samples"])

    def _read(self, record: str) -> dict[str, torch.Tensor]:
        assert self.file is not None
        with self.file.reopen() as f:
            return {name: f.read(f"{record}.{name}") for name in self.records[record]}


def _open_safetensors(path: Path) -> CalibrationData:
    try:
        file = open_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"calibration file {path} is not a safetensors file: {error}") from error
    records: dict[str, tuple[str, ...]] = {}
    for key, info in file.tensors.items():
        name, _, kind = key.rpartition(".")
        if name and kind in FIELDS:
            _require_field(info, kind, path)
            records.setdefault(name, ())
            if info.numel:
                records[name] = (*records[name], kind)
    if not any(records.values()):
        wanted = f"<layer>.{{{','.join(FIELDS)}}}"
        raise ValueError(f"calibration file {path} holds no {wanted} tensor among its {len(file.tensors)}")
    where = f"calibration file {path}: 'shared' in its metadata"
    shared = _SHARED(parse_json(file.metadata.get("shared", "{}"), where), where)
    where = f"calibration file {path}: 'influence' in its metadata"
    influence = _INFLUENCE(parse_json(file.metadata.get("influence", "{}"), where), where)
    synthetic = file.metadata.get("source") == "synthetic"
    full = _full(records)
    return CalibrationData(path, full, _known(shared, records), synthetic, influence, file=file)


def _require_field(info: TensorInfo, kind: str, path: Path) -> None:
    """Raise CheckpointError unless a tensor can be what its name says."""
    axes = {"samples": (2,), "input_scale": tuple(range(9))}.get(kind, (1,))
    one = kind != "input_scale" or info.numel == 1
    if info.dtype not in QUANTIZABLE or len(info.shape) not in axes or not one:
        wanted = {"samples": "floats [n, K]", "input_scale": "one float"}.get(kind, "floats [K]")
        raise CheckpointError(
            f"calibration file {path}: {info.name!r} is {info.dtype} {list(info.shape)}, not {wanted}"
        )


_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)
_SHARED = table(text())
_INFLUENCE = table(number(least=0))
_RECORD = record(
    {
        "samples": listing(listing(number())),
        "channel_max": listing(number(least=0)),
        "channel_mean": listing(number()),
        "input_scale": number(above=0),
    },
    others=True,
)
"""One layer of a JSON file."""


def _layer(value: Any, where: str) -> dict[str, Any]:
    """Read a layer: an object of fields, or the number that is its input scale."""
    return _RECORD({"input_scale": value} if isinstance(value, int | float) else value, where)


def _open_json(path: Path) -> CalibrationData:
    where = f"calibration file {path}"
    try:
        content = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"calibration file {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} is not JSON of {{layer: {{field: ...}}}}")
    whole = "layers" in content
    layers = content["layers"] if whole else {k: v for k, v in content.items() if not isinstance(v, str)}
    values = table(_layer)(layers, where)
    records = {name: tuple(k for k, v in entry.items() if v != []) for name, entry in values.items()}
    if not any(records.values()):
        raise ValueError(f"calibration file {path} holds no layer with any of {', '.join(FIELDS)}")
    shared = _SHARED(content.get("shared", {}), f"{where}: 'shared'") if whole else {}
    influence = _INFLUENCE(content.get("influence", {}), f"{where}: 'influence'") if whole else {}
    synthetic = content.get("source") == "synthetic"
    return CalibrationData(path, _full(records), _known(shared, records), synthetic, influence, values)


def _full(records: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the records that hold something: a layer that no token reached has empty ones."""
    return {name: fields for name, fields in records.items() if fields}


def _known(shared: Mapping[str, str], records: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the shared records that are there: a recorder that was stopped early lists some that are not."""
    return {layer: record for layer, record in shared.items() if records.get(record)}


def save(
    path: str | os.PathLike,
    records: Mapping[str, LayerStats],
    shared: Mapping[str, str] | None = None,
    synthetic: bool = False,
    job: str = "",
    overwrite: bool = True,
    influence: Mapping[str, float] | None = None,
) -> Path:
    """Write a calibration file, JSON when the name ends so (samples are then left out).

    It appears under its name only when it is whole. job: what tells this result from others (`job_of`).
    influence: of layers on the model's output.
    ConversionError for a place that no file may be written to, and for a file that is there when `overwrite`
    is False.
    """
    path = Path(path)
    source, shared = "synthetic" if synthetic else "recorded", dict(shared or {})
    if path.suffix == ".json":
        layers = {name: _plain(stats) for name, stats in records.items()}
        content = {"format": FORMAT, "source": source, "shared": shared, "layers": layers}
        if influence:
            content["influence"] = dict(influence)
        if job:
            content[JOB_KEY] = job
        with new_file(path, overwrite=overwrite) as f:
            f.write(json.dumps(content).encode("utf-8"))
    else:
        tensors = {f"{name}.{k}": v for name, stats in records.items() for k, v in _tensors(stats).items()}
        metadata = {"format": FORMAT, "source": source, "shared": json.dumps(shared)}
        if influence:
            metadata["influence"] = json.dumps(dict(influence))
        save_tensors(path, tensors, metadata | ({JOB_KEY: job} if job else {}), overwrite)
    return path


def job_of(path: str | os.PathLike) -> str:
    """Return the job that `save` recorded in a file, "" for any other file and for none."""
    path = Path(path)
    try:
        found = read_json(path) if path.suffix == ".json" else open_checkpoint(path).metadata
    except CheckpointError:
        return ""
    job = found.get(JOB_KEY, "") if isinstance(found, dict) else ""
    return job if isinstance(job, str) else ""


def _tensors(stats: LayerStats) -> dict[str, torch.Tensor]:
    out = {name: getattr(stats, name) for name in FIELDS[:3] if getattr(stats, name) is not None}
    if stats.input_scale is not None:
        out["input_scale"] = torch.tensor(stats.input_scale, dtype=torch.float32)
    return out


def _plain(stats: LayerStats) -> dict[str, Any]:
    return {k: v.tolist() for k, v in _tensors(stats).items() if k != "samples"}
