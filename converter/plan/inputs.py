"""The files that a conversion reads, and what tells its result from that of any other conversion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.remote.address import Location, located
from ...files.shards import files_at
from ...files.stamp import RemoteStamp, Stamp, Stamps, fingerprint, identity, stamp
from ...formats.algorithms import ROUNDING
from ...formats.errors import CheckpointError
from ...formats.names import JOB_KEY
from ...version import VERSION
from ..options.settings import Settings
from .steps import Plan

_PIECE = 256
"""Bytes at the begin, in the middle and at the end of each tensor that tell a model from another."""


def all_inputs(checkpoint: Checkpoint, settings: Settings) -> list[Path]:
    """Return every file and folder here that a conversion reads: none of them may be written."""
    return [*checkpoint.local_files, *other_inputs(settings)]


def inputs_of(settings: Settings) -> list[Path]:
    """Return what `all_inputs` does, and the output where it is named, before the model is opened."""
    output = [Path(settings.output_file)] if settings.output_file else []
    return [*output, *files_named(settings.input_file), *other_inputs(settings)]


def files_named(given: str | Path) -> list[Path]:
    """Return what a person named as a checkpoint, and the files of it, as far as they are here."""
    place = located(given)
    return [place, *files_behind(place)] if isinstance(place, Path) else []


def other_inputs(settings: Settings) -> list[Path]:
    """Return the files that a conversion reads beside its model, in a fixed order."""
    loras = [settings.merge_lora_path, *settings.merge_lora_paths, settings.calibration_lora]
    named = [Path(p) for p in (settings.calibration_data, settings.layer_config) if p]
    return [file for lora in loras if lora for file in files_behind(Path(lora))] + named


def files_behind(path: Path) -> Iterator[Path]:
    """Yield the files that a checkpoint or LoRA consists of: shards, index, and PEFT's settings beside it.

    A path that is no checkpoint is its own only file: whoever reads it says what is wrong with it.
    """
    if path.suffix == ".json":
        yield path
    try:
        files = files_at(path)[0]
    except CheckpointError:
        files = [path]
    for file in files:
        yield file
        beside = file.parent / "adapter_config.json"
        if beside.is_file():
            yield beside


def stamps_of(files: list[Path]) -> Stamps:
    """Take the stamps of files, of those that are there: the others are refused by whoever reads them."""
    found: dict[Location, Stamp | RemoteStamp] = {}
    for file in files:
        try:
            found[file] = stamp(file)
        except CheckpointError:
            continue
    return found


def job_metadata(checkpoint: Checkpoint, plan: Plan, settings: Settings) -> dict[str, str]:
    """Return the header entry by which a later run knows the output as its own.

    It is made from what the plan does with which tensors, samples of their bytes (of files elsewhere their
    versions, as the other side tells them), the files of LoRAs and calibration, and the program's version:
    the same on every machine, whatever the files are called and however the options are spelled.
    """
    steps = [
        [
            s.name,
            s.action,
            s.algorithm,
            s.format.config() if s.format else None,
            sorted(i.name for i in s.companions.values()),
        ]
        for s in plan
        if s.outputs
    ]
    loras = [[lora.scale, lora.tensors] for lora in plan.loras]
    learned = any(s.algorithm not in ("", ROUNDING) for s in plan)
    text = json.dumps([VERSION, steps, loras, _others(plan, settings, learned)], default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    if not checkpoint.is_here:
        digest.update(json.dumps(identity(checkpoint.stamps)).encode("utf-8"))
        return {JOB_KEY: digest.hexdigest()}
    read = {i.name: i for s in plan if s.outputs for i in (s.source, *s.companions.values())}
    for info in read.values():
        digest.update(_sample(checkpoint, info))
    return {JOB_KEY: digest.hexdigest()}


def _others(plan: Plan, settings: Settings, learned: bool) -> list[Any]:
    """Return what the values of layers depend on beside the model: options, and prints of further files."""
    found: list[Any] = [settings.scale_search, settings.smoothquant_alpha]
    if plan.inputs:
        found.append([astuple(one) for one in plan.inputs])
    if plan.loras:
        paths = [settings.merge_lora_path, *settings.merge_lora_paths]
        found += [fingerprint(file) for path in paths if path for file in files_behind(Path(path))]
    if learned or plan.inputs or any("bias" in s.companions or (s.format and s.format.extra) for s in plan):
        paths = [settings.calibration_lora]
        found += [fingerprint(file) for path in paths if path for file in files_behind(Path(path))]
        found += [fingerprint(Path(path)) for path in [settings.calibration_data] if path]
        found += [settings.calib_samples, settings.quip_seed]
    if learned:
        found += [
            settings.quip_actorder,
            settings.quip_passes,
            settings.quip_damping,
            settings.num_iter,
            settings.lr,
        ]
        found += [settings.bf16_compute]
    return found


def _sample(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    size = min(_PIECE, info.nbytes)
    pieces = bytearray(3 * size)
    view = memoryview(pieces)
    for i in range(3):
        start = (info.nbytes - size) * i // 2
        checkpoint.read_into(info, view[i * size : (i + 1) * size], start)
    return f"{info.name} {info.dtype} {info.shape} ".encode("utf-8", "surrogatepass") + pieces
