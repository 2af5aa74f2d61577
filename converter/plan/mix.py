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
    by what their errors were measured in. at_output: layers that were weighed by their measured influence on
    the model's output. sqnr_db: expected of the model's output where there are any; else of the layers'
    outputs, as the mean over all their weights. gap: how far the sum of errors may lie above the optimum, as
    a share of it. least: bytes of the smallest file. curve: the trade-off, from the smallest to the best.
    """

    target: int
    size: int
    formats: Mapping[str, int]
    metrics: Mapping[str, int]
    sqnr_db: float
    gap: float
    least: int
    curve: tuple[Point, ...]
    at_output: int = 0

    @property
    def subject(self) -> str:
        """Say whose output SQNR is expected."""
        return "the model's output" if self.at_output else "the layers' outputs"

    def lines(self) -> tuple[str, ...]:
        """Say what was chosen, how well, and on what ground."""
        formats = ", ".join(f"{count} {name}" for name, count in self.formats.items())
        ground = ", ".join(f"{count} by {name}" for name, count in self.metrics.items())
        optimum = "the optimum" if not self.gap else f"within {self.gap:.2%} of the optimum"
        layers = sum(self.formats.values())
        weighed = (
            "each weighed by its influence on the model's output, which is known of "
            f"{self.at_output} of {layers}"
            if self.at_output
            else "what arrives at the model's output is not known (ctq calibrate --influence 2 measures it)"
        )
        return (
            f"target {shown(self.target)}: {formats}; {shown(self.size)}, expected SQNR of {self.subject} "
            f"{decibel_text(self.sqnr_db)} ({optimum})",
            f"layers measured: {ground}; {weighed}",
        )


def decibel_text(value: float) -> str:
    """Return ``31.4 dB``; without noise ``no loss``."""
    return "no loss" if math.isinf(value) else f"{value:.1f} dB"
