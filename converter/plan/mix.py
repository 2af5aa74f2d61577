"""What a choice of formats for a target size was made of, for people and programs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..options.size import shown


@dataclass(frozen=True)
class Point:
    """A size of the output, in bytes, and the output SQNR that its best mix is expected to have."""

    bytes: int
    sqnr_db: float


@dataclass(frozen=True)
class Mix:
    """The best mix of formats for a target.

    target: bytes that the file may have. size: bytes that it has. formats: layers by format. metrics: layers
    by what their errors were measured in. sqnr_db: expected of the layers' outputs: their noise over their
    signal, as the mean over all their weights. gap: how far the sum of errors may lie above the optimum, as a
    share of it. least: bytes of the smallest file. curve: the trade-off, from the smallest to the best.
    """

    target: int
    size: int
    formats: Mapping[str, int]
    metrics: Mapping[str, int]
    sqnr_db: float
    gap: float
    least: int
    curve: tuple[Point, ...]

    def lines(self) -> tuple[str, ...]:
        """Say what was chosen, how well, and on what ground."""
        formats = ", ".join(f"{count} {name}" for name, count in self.formats.items())
        ground = ", ".join(f"{count} by {name}" for name, count in self.metrics.items())
        optimum = "the optimum" if not self.gap else f"within {self.gap:.2%} of the optimum"
        return (
            f"target {shown(self.target)}: {formats}; {shown(self.size)}, expected output SQNR "
            f"{decibel_text(self.sqnr_db)} ({optimum})",
            f"layers measured: {ground}",
        )


def decibel_text(value: float) -> str:
    """Return ``31.4 dB``; without noise ``no loss``."""
    return "no loss" if math.isinf(value) else f"{value:.1f} dB"
