"""Times of one call from a cold L2 cache, and what the device could do at best."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

L2 = 256 << 20
"""Bytes overwritten before each timed call: more than any GPU's L2 (H100 50 MB, B200 126 MB)."""

INT8_TOPS = {"H100": 1979, "H200": 1979, "A100": 624, "L40": 362, "4090": 660, "B200": 4500}
"""Dense int8 datasheet rates, by a part of the GPU's name; others have no compute floor."""


@dataclass(frozen=True)
class Time:
    """Microseconds: median, and the spread as the 10th and 90th percentile."""

    median: float
    low: float
    high: float


class Timer:
    """Times calls on one device: `rounds` times each after `warmup` untimed ones."""

    def __init__(self, device: str, rounds: int, warmup: int = 3):
        self.device, self.rounds, self.warmup = torch.device(device), rounds, warmup
        self._cold = torch.empty(L2 if device != "cpu" else 1, dtype=torch.int8, device=device)

    def __call__(self, call: Callable[[], object]) -> Time:
        for _ in range(self.warmup):
            call()
        times = sorted(self._once(call) for _ in range(self.rounds))
        if len(times) < 2:
            return Time(times[0], times[0], times[0])
        tenths = quantiles(times, n=10, method="inclusive")
        return Time(median(times), tenths[0], tenths[-1])

    def _once(self, call: Callable[[], object]) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        module = torch.get_device_module(self.device)
        start, stop = module.Event(enable_timing=True), module.Event(enable_timing=True)
        self._cold.zero_()
        start.record()
        call()
        stop.record()
        module.synchronize()
        return start.elapsed_time(stop) * 1e3


def copy_bandwidth(timer: Timer, size: int) -> float:
    """GB/s of a plain copy of `size` bytes: read once, written once."""
    source = torch.empty(size, dtype=torch.int8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * size / timer(lambda: target.copy_(source)).median / 1e3


def int8_tops(name: str) -> float | None:
    """The datasheet's dense int8 rate of a GPU, if its name is known."""
    return next((rate for part, rate in INT8_TOPS.items() if part in name), None)
