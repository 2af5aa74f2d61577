"""Whole commands, measured by the operating system's own accounting."""

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """One finished process: seconds of wall clock and of CPU (user + system), peak memory in MiB."""

    wall: float
    cpu: float
    peak_mib: float


def run(command: Sequence[str]) -> Usage:
    """Run a command to its end; RuntimeError with its stderr when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}: {errors.decode()[-2000:]}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(usages: Sequence[Usage]) -> Usage:
    """Return the median of each figure, and the peak of the peaks."""
    return Usage(
        statistics.median(u.wall for u in usages),
        statistics.median(u.cpu for u in usages),
        max(u.peak_mib for u in usages),
    )
