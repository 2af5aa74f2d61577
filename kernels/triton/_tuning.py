"""Choice among a handful of equivalent candidates, measured once a GPU and kept on disk.

Without a measurement the first candidate is used: every table puts its safest entry first.
The file is ``<cache>/convert_to_quant/<GPU name>-triton-<version>.json``, written whole and
renamed, so that two processes can share it.
"""

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Protocol, TypeVar

import torch
import triton

from ._launch import Arch, recording

ROUNDS = 5
"""Timed runs a candidate, each after the L2 cache was overwritten; the median counts."""

_log = logging.getLogger("convert_to_quant.kernels")
_lock = threading.RLock()
_tables: dict[str, dict] = {}


class Candidate(Protocol):
    """Anything to choose from: its label names it in the cache file.

    handicap multiplies its measured time: a candidate with other rounding must win clearly.
    """

    @property
    def label(self) -> str: ...

    @property
    def handicap(self) -> float: ...


C = TypeVar("C", bound=Candidate)


def choose(
    arch: Arch, key: str, candidates: Sequence[C], run: Callable[[C], object], device: torch.device
) -> C:
    """The candidate to use for `key`: remembered, measured now, or the first.

    run: executes one candidate completely, any number of times with the same effect.
    Measures only on a real device, outside graph capture, with CONVERT_TO_QUANT_AUTOTUNE
    (read at each call) not 0. A candidate that does not compile or fit is left out.
    """
    if recording():
        for candidate in candidates:
            run(candidate)
        return candidates[0]
    if len(candidates) == 1 or device.type == "cpu" or os.environ.get("CONVERT_TO_QUANT_AUTOTUNE") == "0":
        return candidates[0]
    with _lock:
        table = _table(arch)
        known = table.get(key)
        by_label = {c.label: c for c in candidates}
        if known and known["choice"] in by_label:
            return by_label[known["choice"]]
        if _capturing(device):
            return candidates[0]
        times = {c.label: _measure(c, run, device) for c in candidates}
        finite = {label: t for label, t in times.items() if t is not None}
        if not finite:
            return candidates[0]
        best = min(finite, key=lambda label: finite[label] * by_label[label].handicap)
        table[key] = {"choice": best, "microseconds": {k: round(v, 2) for k, v in finite.items()}}
        _save(arch, table)
        return by_label[best]


def bucket(m: int) -> int:
    """M as the key of a table: the next of 16, 64, 256, 1024, 4096, 16384 (the last for all above)."""
    return next((b for b in (16, 64, 256, 1024, 4096) if m <= b), 16384)


def cache_path(arch: Arch) -> Path:
    """Where the choices for this GPU and this Triton are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = re.sub(r"[^A-Za-z0-9]+", "-", arch.name).strip("-").lower()
    return Path(root) / "convert_to_quant" / f"{name}-triton-{triton.__version__}.json"


def forget() -> None:
    """Drop the choices held in memory; the next call reads the file again."""
    with _lock:
        _tables.clear()


def _table(arch: Arch) -> dict:
    path = str(cache_path(arch))
    if path not in _tables:
        _tables[path] = _read(path)
    return _tables[path]


def _read(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
    except (OSError, ValueError):
        return {}
    entries = table.items() if isinstance(table, dict) else ()
    return {k: v for k, v in entries if isinstance(v, dict) and isinstance(v.get("choice"), str)}


def _save(arch: Arch, table: dict) -> None:
    """Merge with what others wrote meanwhile and replace the file; a failure costs only a later tuning."""
    path = cache_path(arch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        merged = {**_read(str(path)), **table}
        table.update(merged)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(merged, file, indent=1, sort_keys=True)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        _log.warning("tuning results were not kept: %s", error)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=8)
def _flush(device: torch.device) -> torch.Tensor:
    """A buffer larger than any L2 (H100: 50 MB, B200: 126 MB): writing it makes the next run cold."""
    return torch.empty(256 << 20, dtype=torch.int8, device=device)


def _measure(candidate: C, run: Callable[[C], object], device: torch.device) -> float | None:
    """Median microseconds of one run from a cold cache, or None when it cannot run here."""
    module = torch.get_device_module(device)
    try:
        run(candidate)
        module.synchronize(device)
    except (triton.runtime.errors.OutOfResources, triton.CompilationError, torch.OutOfMemoryError) as error:
        _log.info("candidate %s left out: %s", candidate.label, error)
        return None
    flush = _flush(device)
    times = []
    for _ in range(ROUNDS):
        flush.zero_()
        start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
        start.record()
        run(candidate)
        stop.record()
        module.synchronize(device)
        times.append(start.elapsed_time(stop) * 1e3)
    return median(times)
