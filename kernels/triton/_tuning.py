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
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

import torch
import triton

from . import _kept
from ._arch import Arch

ROUNDS = 5
"""Timed runs a candidate, each after the L2 cache was overwritten; the median counts."""

FLUSH = 256 << 20
"""Bytes overwritten at once: more than any L2 (H100: 50 MB, B200: 126 MB)."""

QUEUED = 0.5
"""Milliseconds of overwriting queued before each timed run: more than the host takes to submit one,
so that the device's time is measured and not the host's."""

_log = logging.getLogger("convert_to_quant.kernels")
_lock = threading.RLock()
_tables: dict[str, dict] = {}
_chosen: dict[tuple, Any] = {}


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
    arch: Arch, key: str | tuple, candidates: Sequence[C], run: Callable[[C], object], device: torch.device
) -> C | None:
    """Return the candidate to use for `key`: remembered, measured now, or the first.

    None where it would have to be measured and may not, inside graph capture: the caller then takes
    one for this call only. run: executes one candidate completely, any number of times with the same effect.
    Measures only on a real device, outside graph capture, with CONVERT_TO_QUANT_AUTOTUNE
    (read at each call) not 0. A candidate that does not compile or fit is left out.
    """
    if len(candidates) == 1 or device.type == "cpu" or os.environ.get("CONVERT_TO_QUANT_AUTOTUNE") == "0":
        return candidates[0]
    # Which candidates there are is part of the key: alignment and the workspace limit change them
    # within one bucket of M, and two sets sharing an entry would measure again at every change.
    memo = (arch, key, tuple(candidates))
    if memo not in _chosen:
        found = _remembered(arch, key, candidates)
        if found is None:
            if _capturing(device):
                return None
            found = _tune(arch, key, candidates, run, device)
        _chosen[memo] = found
    return _chosen[memo]


def _entry(key: str | tuple, candidates: Sequence[C]) -> str:
    """Return the name of an entry in the file: the key, and which candidates it chose from."""
    if isinstance(key, tuple):
        key = key[0].format(*key[1:])
    labels = "|".join(c.label for c in candidates)
    return f"{key} #{zlib.crc32(labels.encode()):08x}"


def _remembered(arch: Arch, key: str | tuple, candidates: Sequence[C]) -> C | None:
    with _lock:
        known = _table(arch).get(_entry(key, candidates))
    return next((c for c in candidates if known and c.label == known["choice"]), None)


def _tune(arch: Arch, key: str | tuple, candidates: Sequence[C], run, device: torch.device) -> C:
    """Measure all candidates and keep the choice; the first where none could run."""
    with _lock:
        measured = [(t, c) for c in candidates if (t := _measure(c, run, device)) is not None]
        if not measured:
            return candidates[0]
        best = min(measured, key=lambda pair: pair[0] * pair[1].handicap)[1]
        times = {c.label: round(t, 2) for t, c in measured}
        table = _table(arch)
        table[_entry(key, candidates)] = {"choice": best.label, "microseconds": times}
        _save(arch, table)
        return best


def bucket(m: int) -> int:
    """M as the key of a table: the next of 16, 64, 256, 1024, 4096, 16384 (the last for all above)."""
    return next((b for b in (16, 64, 256, 1024, 4096) if m <= b), 16384)


def cache_path(arch: Arch) -> Path:
    """Where the choices for this GPU and this Triton are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = re.sub(r"[^A-Za-z0-9]+", "-", arch.name).strip("-").lower()
    return Path(root) / "convert_to_quant" / f"{name}-triton-{triton.__version__}.json"


def forget() -> None:
    """Drop the choices held in memory, and the plans made with them; the next call reads the file again."""
    with _lock:
        _tables.clear()
        _chosen.clear()
    _kept.forget()


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


def _passes(flush: torch.Tensor, module, device: torch.device) -> int:
    """How often to overwrite `flush` to keep the device busy for QUEUED milliseconds."""
    start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
    start.record()
    flush.zero_()
    stop.record()
    module.synchronize(device)
    return min(32, 1 + int(QUEUED / max(start.elapsed_time(stop), 1e-3)))


def _measure(candidate: C, run: Callable[[C], object], device: torch.device) -> float | None:
    """Median microseconds of one run from a cold cache, or None when it cannot run here."""
    module = torch.get_device_module(device)
    try:
        run(candidate)
        module.synchronize(device)
        flush = torch.empty(FLUSH, dtype=torch.int8, device=device)  # released again: memory is scarce here
    except (triton.runtime.errors.OutOfResources, triton.CompilationError, RuntimeError) as error:
        _log.info("candidate %s left out: %s", candidate.label, error)
        return None
    passes, times = _passes(flush, module, device), []
    for _ in range(ROUNDS):
        for _ in range(passes):
            flush.zero_()
        start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
        start.record()
        run(candidate)
        stop.record()
        module.synchronize(device)
        times.append(start.elapsed_time(stop) * 1e3)
    return median(times)
