"""Times of one call from a cold L2 cache, and what the device could do at best."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

L2 = 256 << 20
"""Bytes overwritten at once: more than any GPU's L2 (H100 50 MB, B200 126 MB)."""

QUEUED = 1.0
"""Milliseconds of overwriting queued before each timed call: more than the host takes to submit it."""

INT8_TOPS = {"H100": 1979, "H200": 1979, "A100": 624, "L40": 362, "4090": 660, "B200": 4500}
"""Dense int8 datasheet rates, by a part of the GPU's name; others have no compute floor."""


@dataclass(frozen=True)
class Time:
    """Microseconds of the device: median, and the spread as the 10th and 90th percentile.

    host: median microseconds until the call returned, its work submitted but not done.
    """

    median: float
    low: float
    high: float
    host: float = 0.0


class Timer:
    """Times calls on one device: `rounds` times each after `warmup` untimed ones."""

    def __init__(self, device: str, rounds: int, warmup: int = 3):
        self.device, self.rounds, self.warmup = torch.device(device), rounds, warmup
        self._cold = torch.empty(L2 if device != "cpu" else 1, dtype=torch.int8, device=device)
        self._passes = 1
        if device != "cpu":
            self._cold.zero_()
            self._passes = min(32, 1 + int(QUEUED * 1e3 / self._once(self._cold.zero_)[0]))

    def __call__(self, call: Callable[[], object]) -> Time:
        for _ in range(self.warmup):
            call()
        pairs = [self._once(call) for _ in range(self.rounds)]
        times, host = sorted(t for t, _ in pairs), median(h for _, h in pairs)
        if len(times) < 2:
            return Time(times[0], times[0], times[0], host)
        tenths = quantiles(times, n=10, method="inclusive")
        return Time(median(times), tenths[0], tenths[-1], host)

    def _once(self, call: Callable[[], object]) -> tuple[float, float]:
        """Return microseconds of the device and of the host."""
        if self.device.type == "cpu":
            begun = time.perf_counter()
            call()
            taken = (time.perf_counter() - begun) * 1e6
            return taken, taken
        module = torch.get_device_module(self.device)
        start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
        for _ in range(self._passes):
            self._cold.zero_()
        start.record()
        begun = time.perf_counter()
        call()
        host = (time.perf_counter() - begun) * 1e6
        stop.record()
        module.synchronize()
        return start.elapsed_time(stop) * 1e3, host


def copy_bandwidth(timer: Timer, size: int) -> float:
    """Return GB/s of a plain copy of `size` bytes: read once, written once."""
    source = torch.empty(size, dtype=torch.int8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * size / timer(lambda: target.copy_(source)).median / 1e3


def int8_tops(name: str) -> float | None:
    """Return the datasheet's dense int8 TOP/s of a GPU, if its name is known."""
    return next((rate for part, rate in INT8_TOPS.items() if part in name), None)
