"""What a conversion did, layer by layer."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files.report import save_json
from ..lora.merge import MergedLora
from ..plan.steps import kinds


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer.

    sqnr_db: weight SQNR as checked in the file, None when not checked. output_db: SQNR of its outputs, as it
    runs, for recorded tokens that its rounding has not seen (`quant.calibration.held_back`), None without.
    kind: the format's name in sentences. warn_db: the SQNR below which a person should look at it. zeroed: a
    sentence on weights that became zero, "" where none did.
    """

    name: str
    format: str
    algorithm: str
    shape: tuple[int, int]
    bytes_in: int
    bytes_out: int
    sqnr_db: float | None = None
    note: str | None = None
    kind: str = ""
    warn_db: float = 0.0
    zeroed: str = ""
    output_db: float | None = None

    @property
    def judged_db(self) -> float | None:
        """The SQNR that the layer is judged by: its output's where that is known."""
        return self.sqnr_db if self.output_db is None else self.output_db

    @property
    def judged_by(self) -> str:
        """What `judged_db` is of, as an addition to it in a sentence."""
        return "" if self.output_db is None else " of output"


@dataclass(frozen=True)
class KeptTensor:
    """One tensor that was not quantized, and why. nbytes: in the output; bytes_in: in the input."""

    name: str
    reason: str
    nbytes: int
    bytes_in: int


@dataclass(frozen=True)
class Correction:
    """A layer of an error LoRA: its weight SQNR in dB without it and with it beside the weight."""

    name: str
    without_db: float
    with_db: float


@dataclass(frozen=True)
class ErrorLora:
    """A file of quantization errors (``--extract-lora``): its rank, its bytes, what it regains per layer."""

    path: str
    rank: int
    nbytes: int
    layers: tuple[Correction, ...]

    def summary(self) -> str:
        """Say in one line what it regains where it is applied beside the weights."""
        lossy = [c for c in self.layers if math.isfinite(c.without_db)]
        without = sum(c.without_db for c in lossy) / max(1, len(lossy))
        beside = sum(c.with_db for c in lossy) / max(1, len(lossy))
        return (
            f"{self.path}: error LoRA of rank {self.rank} for {len(self.layers)} layers, "
            f"{self.nbytes / 2**20:,.1f} MiB: mean weight SQNR {without:.2f} -> {beside:.2f} dB beside the "
            "weights (in ComfyUI: Load LoRA (Bypass); an ordinary loader rounds it away)"
        )


@dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion. `warnings` are for people; an empty tuple is good news.

    already_there: nothing was done, because the output is the result of the same conversion, made before.
    Layers have no SQNR then.
    """

    input: str
    output: str
    layers: tuple[LayerReport, ...]
    kept: tuple[KeptTensor, ...]
    bytes_before: int
    bytes_after: int
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    loras: tuple[MergedLora, ...] = ()
    error_lora: ErrorLora | None = None
    already_there: bool = False

    def worst(self, count: int = 5) -> list[LayerReport]:
        """Return the checked layers with the lowest SQNR, worst first; of outputs where that is known."""
        checked = [(r.judged_db, r) for r in self.layers if r.judged_db is not None]
        return [r for _, r in sorted(checked, key=lambda pair: pair[0])[:count]]

    def kept_reasons(self) -> list[tuple[str, int, int, int]]:
        """Return (reason, tensors, bytes in, bytes out) of what was not quantized, most bytes first."""
        count: Counter[str] = Counter()
        before: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for t in self.kept:
            count[t.reason] += 1
            before[t.reason] += t.bytes_in
            size[t.reason] += t.nbytes
        return [(reason, count[reason], before[reason], n) for reason, n in size.most_common()]

    def formats(self) -> list[tuple[str, int, int, int]]:
        """Return (format and algorithm, layers, bytes in, bytes out), most layers first."""
        rows: dict[str, list[int]] = {}
        for r in self.layers:
            named = r.format if r.kind.lower() in r.format else f"{r.kind} {r.format}"
            row = rows.setdefault(f"{named}, {r.algorithm}", [0, 0, 0])
            row[0] += 1
            row[1] += r.bytes_in
            row[2] += r.bytes_out
        return sorted(((k, a, b, c) for k, (a, b, c) in rows.items()), key=lambda t: -t[1])

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Say in one line what became of how much, and how well."""
        if self.already_there:
            return f"{self.output}: already there, made before from the same files with the same options"
        worst = self.worst(1)
        quality = f", worst layer {worst[0].judged_db:.1f} dB{worst[0].judged_by}" if worst else ""
        loras = ""
        if self.loras:
            unmatched = sum(len(lora.unmatched) for lora in self.loras)
            loras = f"LoRAs merged: {len(self.loras)} ({unmatched} keys unmatched), "
        return (
            f"{self.output}: {loras}{len(self.layers)} layers in {kinds(self.layers)}, "
            f"{len(self.kept)} tensors kept, {self.bytes_before / 2**20:,.1f} -> "
            f"{self.bytes_after / 2**20:,.1f} MiB in {self.seconds:.1f} s{quality}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values; an infinite SQNR becomes the text "inf"."""
        return plain_json(asdict(self))

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; over an older report, but over no other file (ConversionError)."""
        save_json(path, self.to_dict())


def plain_json(value: Any) -> Any:
    """Return `value` with lists for tuples and texts for infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {k: plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
