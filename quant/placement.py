"""Where a layer is quantized: whole on the device, in chunks of rows, or on the CPU.

Decided from shapes alone, so that a plan can show it before a byte is read.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..formats.algorithms import ALGORITHMS, Algorithm, canonical
from .algorithms.types import QuantizeOptions

Kind = Literal["device", "chunks", "cpu"]

SHARES = {"minimal": 0.85, "balanced": 0.6, "aggressive": 0.3, "auto": 0.8}
"""Streaming mode -> share of the free device memory that one layer may use."""

CHECKPOINT_THRESHOLD = 8192
"""in_features from which the Hessian is factored in place: four [K, K] matrices would pass 1 GiB."""

CPU_ROWS = 1024
"""Rows at a time on the CPU, where more buy no speed."""

_LEAST_ROWS = 256


@dataclass(frozen=True)
class Placement:
    """The decision for one layer, and the memory it was made with.

    row_chunk: rows at a time, or None for all. in_place: factor the Hessian in its own memory.
    bytes: estimated peak on the device (of the CPU's memory for "cpu").
    """

    kind: Kind
    row_chunk: int | None
    in_place: bool
    bytes: int

    def options(self, options: QuantizeOptions, device: torch.device | str) -> QuantizeOptions:
        """Return `options` placed: computing on `device`, or on the CPU where that was decided."""
        where = "cpu" if self.kind == "cpu" else device
        return replace(options, device=where, row_chunk=self.row_chunk, in_place=self.in_place)


def device_budget(mode: str, free: int) -> int | None:
    """Return the bytes of the device's `free` memory that one layer may use; None, no limit, for mode "off".

    ValueError for a mode that is neither "off" nor one of SHARES.
    """
    if mode == "off":
        return None
    if mode not in SHARES:
        raise ValueError(f"streaming mode must be off or one of {', '.join(SHARES)}, not {mode!r}")
    return int(free * SHARES[mode])


def place(
    shape: tuple[int, int],
    algorithm: str,
    device_memory_budget: int | None,
    *,
    checkpointed: bool | None = None,
    threshold: int = CHECKPOINT_THRESHOLD,
    segments: int | None = None,
    passes: int = 0,
) -> Placement:
    """Place a layer of `shape` [N, K] so that its peak stays within the budget.

    device_memory_budget: bytes; None without limit; 0 when there is no device.
    checkpointed: factor in place and take rows in `segments` (default 4) chunks; None decides by
        K >= threshold, False never. The result is the same to the bit either way.
    passes: of coordinate descent.
    Tries: whole; whole with the factor in place; rows halved down to 256, in place; the CPU.
    """
    n, k = shape
    record = ALGORITHMS[canonical(algorithm)]
    calibrated = record.factors
    forced = calibrated and (k >= threshold if checkpointed is None else checkpointed)
    segment = -(-n // (segments or 4)) if forced else None
    if device_memory_budget == 0:
        rows = min(CPU_ROWS, segment or CPU_ROWS) if calibrated else None
        return _placement("cpu", shape, record, rows, forced, passes)
    tries = [(segment, forced)]
    if calibrated and checkpointed is not False:
        tries.append((segment, True))
    in_place = calibrated and checkpointed is not False
    rows = (segment or n) // 2
    while rows >= _LEAST_ROWS:
        tries.append((rows, in_place))
        rows //= 2
    for rows, inside in tries:
        kind: Kind = "device" if rows is None else "chunks"
        need = record.memory(shape, rows, inside, passes)
        if device_memory_budget is None or need <= device_memory_budget:
            return _placement(kind, shape, record, rows, inside, passes)
    return _placement("cpu", shape, record, CPU_ROWS if calibrated else None, forced, passes)


def _placement(
    kind: Kind, shape: tuple[int, int], record: Algorithm, rows: int | None, in_place: bool, passes: int
) -> Placement:
    return Placement(kind, rows, in_place, record.memory(shape, rows, in_place, passes))
