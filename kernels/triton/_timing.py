"""How long one candidate takes on a device: the tuner's clock."""

import logging
from collections.abc import Callable
from statistics import median

import torch

ROUNDS = 5
"""Timed runs per candidate, each after the L2 cache was overwritten; the median counts."""

FLUSH = 256 << 20
"""Bytes overwritten at once: more than any L2 (H100: 50 MB, B200: 126 MB)."""

QUEUED = 0.5
"""Milliseconds of overwriting queued before each timed run: more than the host takes to submit one,
so that the device's time is measured and not the host's."""

_log = logging.getLogger("convert_to_quant.kernels")


def microseconds(label: str, run: Callable[[], object], device: torch.device) -> float | None:
    """Return the median time of `run` from a cold cache, or None when it cannot run here.

    `device` must be current. Whatever `run` raises makes one candidate less, with a line in the log,
    but for torch.OutOfMemoryError: want of memory says nothing about the candidate, and is raised.
    """
    module = torch.get_device_module(device)
    try:
        run()
        module.synchronize(device)
        flush = torch.empty(FLUSH, dtype=torch.int8, device=device)  # released again: memory is scarce here
        passes = _passes(flush, module, device)
        return median(_timed(run, flush, passes, module, device) for _ in range(ROUNDS))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's, the assembler's, the driver's
        _log.info("candidate %s left out: %s: %s", label, type(error).__name__, error)
        return None


def _passes(flush: torch.Tensor, module, device: torch.device) -> int:
    """Return how often to overwrite `flush` to keep the device busy for QUEUED milliseconds."""
    start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
    start.record()
    flush.zero_()
    stop.record()
    module.synchronize(device)
    return min(32, 1 + int(QUEUED / max(start.elapsed_time(stop), 1e-3)))


def _timed(run: Callable[[], object], flush: torch.Tensor, passes: int, module, device) -> float:
    for _ in range(passes):
        flush.zero_()
    start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    module.synchronize(device)
    return start.elapsed_time(stop) * 1e3
