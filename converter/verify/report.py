"""What a verification found, layer by layer and family by family."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ...names.prefixes import DIFFUSION_MODEL, prefix_of
from ..convert.report import plain_json
from ..stored.judge import Problem

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")


@dataclass(frozen=True)
class VerifiedLayer:
    """One quantized layer, compared with its original.

    weight_db: SQNR of its weight over all rows, None when it could not be read. w8a8_db, w8a16_db: SQNR of
    its output on recorded inputs, with INT8 and with exact activations; None without inputs. fault: why it
    fails, "" when it does not. told: what the file's record says was done to it, "" for rounding to nearest.
    static: whether it has an ``input_scale``.
    """

    name: str
    family: str
    format: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    weight_db: float | None = None
    w8a8_db: float | None = None
    w8a16_db: float | None = None
    fault: str = ""
    told: str = ""
    static: bool = False


@dataclass(frozen=True)
class Family:
    """The layers that differ only in their block's number."""

    name: str
    layers: tuple[VerifiedLayer, ...]

    @property
    def values(self) -> list[float]:
        """Weight SQNR of the layers that could be read."""
        return [r.weight_db for r in self.layers if r.weight_db is not None]

    @property
    def worst(self) -> float:
        """The lowest weight SQNR; inf when none could be read."""
        return min(self.values, default=math.inf)

    @property
    def median(self) -> float:
        """The middle weight SQNR; inf when none could be read."""
        return median(self.values) if self.values else math.inf


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    unchanged: number of kept tensors compared byte for byte and found equal. removed: number of tensors that
    a preset leaves out. activations: the file of inputs, None without.
    """

    original: str
    quantized: str
    threshold: float
    layers: tuple[VerifiedLayer, ...]
    problems: tuple[Problem, ...]
    unchanged: int
    removed: int
    bytes_before: int
    bytes_after: int
    seconds: float
    activations: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> list[VerifiedLayer]:
        """The layers that fail."""
        return [r for r in self.layers if r.fault]

    @property
    def violations(self) -> list[Problem]:
        """The problems that ComfyUI stumbles over."""
        return [p for p in self.problems if p.fatal]

    @property
    def ok(self) -> bool:
        """Tell whether nothing fails."""
        return not self.faults and not self.violations

    def worst_first(self) -> list[VerifiedLayer]:
        """Return all layers, failing and unreadable ones first, then by weight SQNR."""
        return sorted(self.layers, key=lambda r: (not r.fault, _order(r.weight_db)))

    def families(self) -> list[Family]:
        """Group the layers by family, the family with the worst layer first."""
        groups: dict[str, list[VerifiedLayer]] = {}
        for r in self.layers:
            groups.setdefault(r.family, []).append(r)
        made = [Family(name, tuple(rows)) for name, rows in groups.items()]
        return sorted(made, key=lambda f: f.worst)

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Say in one line whether all is well, and what was found."""
        worst = min((r.weight_db for r in self.layers if r.weight_db is not None), default=None)
        quality = "" if worst is None else f", worst {worst:.1f} dB"
        verdict = "ok" if self.ok else "FAILED"
        return (
            f"{self.quantized}: {verdict}: {len(self.layers)} quantized layers{quality}, "
            f"{len(self.faults)} below {self.threshold:g} dB or wrong, {len(self.violations)} breaches of "
            f"the contract, {self.unchanged} tensors unchanged"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values; an infinite SQNR becomes the text "inf"."""
        families = [
            {"name": f.name, "layers": len(f.layers), "worst_db": f.worst, "median_db": f.median}
            for f in self.families()
        ]
        return plain_json({**asdict(self), "ok": self.ok, "families": families})


def family_of(layer: str) -> str:
    """Return a layer's name with N for block numbers, less a model's prefix: ``blocks.N.mlp.0``."""
    return _NUMBER.sub("N", layer.removeprefix(prefix_of(layer, DIFFUSION_MODEL)))


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    """Count the values in each of `bins` equal parts of [low, high]; those outside count at the ends."""
    counts = [0] * bins
    width = (high - low) / bins or 1.0
    for v in values:
        at = bins - 1 if v == math.inf else 0 if not math.isfinite(v) else int((v - low) / width)
        counts[min(max(at, 0), bins - 1)] += 1
    return counts


def _order(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
