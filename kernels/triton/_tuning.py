"""Choice among a handful of equivalent candidates, measured once per GPU and kept on disk (`_stored`).

Without a measurement the first candidate is used: every table begins with the entry that the static
model of its family puts first.
"""

import os
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from . import _kept, _proof, _stored
from ._arch import Arch
from ._launch import on
from ._timing import microseconds

BUCKETS = (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536)
ABOVE = 131072
"""Rows that share a measurement, up to each and above all. Video models have 30,000 to 130,000 rows: the best
candidate for 5,000 need not be theirs."""

RETRY = 60.0
"""Seconds until a choice that want of memory prevented is tried again."""

_lock = threading.RLock()
_tables: dict[Path, dict] = {}
_chosen: dict[tuple, Any] = {}
_waiting: dict[tuple, tuple[float, Any]] = {}
"""What to take until when, for choices that could not be made."""


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
) -> tuple[C, bool]:
    """Return the candidate to use for `key`, and whether that is settled: remembered, measured or given.

    Not settled, so for this call only, is a choice inside graph capture, where nothing may be
    measured, and one that want of memory prevented. run: executes one candidate completely, any number
    of times with the same effect.
    Measures only on a real device, outside graph capture, with CONVERT_TO_QUANT_AUTOTUNE
    (read at each call) not 0. A candidate that fails is left out.
    """
    if len(candidates) == 1 or device.type == "cpu" or os.environ.get("CONVERT_TO_QUANT_AUTOTUNE") == "0":
        return candidates[0], True
    # Which candidates there are is part of the key: alignment and the workspace limit change them
    # within one bucket of M, and two sets sharing an entry would measure again at every change.
    memo = (arch, key, tuple(candidates))
    found = _chosen.get(memo)
    if found is not None:
        return found, True
    with on(device):  # its stream is timed, and asked whether it is captured
        return _settle(memo, run, device)


def _settle(memo: tuple, run: Callable, device: torch.device) -> tuple[Any, bool]:
    arch, key, candidates = memo
    with _lock:
        found = _remembered(arch, key, candidates)
        if found is None:
            if _capturing(device):
                return candidates[0], False
            until, meanwhile = _waiting.get(memo, (0.0, None))
            if meanwhile is not None and time.monotonic() < until:
                return meanwhile, False
            found, settled = _tune(arch, key, candidates, run, device)
            if not settled:
                _waiting[memo] = time.monotonic() + RETRY, found
                return found, False
        _chosen[memo] = found
        return found, True


def _tune(arch: Arch, key, candidates: Sequence[C], run, device: torch.device) -> tuple[C, bool]:
    """Return the fastest candidate, and whether all were given their chance; then the choice is kept."""
    times: dict[C, float] = {}
    short = False
    for candidate in candidates:
        if not _proof.may_run(arch, candidate, device):
            continue
        try:
            taken = microseconds(candidate.label, partial(run, candidate), device)
        except torch.OutOfMemoryError:
            short = True
            continue
        if taken is not None:
            times[candidate] = taken
    if not times:  # the launch itself will say why
        return candidates[0], False
    best = min(times, key=lambda c: times[c] * c.handicap)
    if short:
        return best, False
    measured = {c.label: round(t, 2) for c, t in times.items()}
    entry = {_entry(key, candidates): {"choice": best.label, "microseconds": measured}}
    path = _stored.cache_path(arch)
    _tables[path] = _stored.add(path, {**_table(arch), **entry})
    return best, True


def _remembered(arch: Arch, key: str | tuple, candidates: Sequence[C]) -> C | None:
    known = _table(arch).get(_entry(key, candidates))
    return next((c for c in candidates if known and c.label == known["choice"]), None)


def _entry(key: str | tuple, candidates: Sequence[C]) -> str:
    """Return the name of an entry in the file: the key, and which candidates it chose from."""
    if isinstance(key, tuple):
        key = key[0].format(*key[1:])
    labels = "|".join(c.label for c in candidates)
    return f"{key} #{zlib.crc32(labels.encode()):08x}"


def _table(arch: Arch) -> dict:
    path = _stored.cache_path(arch)
    if path not in _tables:
        _tables[path] = _stored.read(path)
    return _tables[path]


def bucket(m: int) -> int:
    """Return the key of M in a table: the next of `BUCKETS`, or `ABOVE`."""
    return next((b for b in BUCKETS if m <= b), ABOVE)


def forget() -> None:
    """Drop the choices held in memory, and the plans made with them; the next call reads the file again."""
    with _lock:
        _tables.clear()
        _chosen.clear()
        _waiting.clear()
    _kept.forget()


def _capturing(device: torch.device) -> bool:
    """Return whether the current stream of `device`, which is current, is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
