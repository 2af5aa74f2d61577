"""What a comparison of pictures measured. No torch here: the command line loads it only for the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from ...formats.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np

DTYPES = ("bf16", "fp16", "fp32")
"""The dtypes that a pipeline can be run in, by their names on the command line."""


@dataclass(frozen=True)
class Case:
    """One call of the pipeline: prompts (several: one batch), seed, and (width, height), None for its own."""

    name: str
    prompts: tuple[str, ...]
    seed: int
    size: tuple[int, int] | None = None


@dataclass
class Picture:
    """One picture of a case, made twice.

    psnr_db: None for equal pictures. ssim: None below 11 pixels. lpips: None where `perceptual` measures
    none. identical: to the bit of what the pipeline returned. frames: of a video; its figures are means over
    them. reference, candidate: [H, W, 3] in 0 to 1, of a video its middle frame.
    """

    case: str
    prompt: str
    seed: int
    width: int
    height: int
    frames: int
    psnr_db: float | None
    ssim: float | None
    lpips: float | None
    identical: bool
    reference: np.ndarray = field(repr=False)
    candidate: np.ndarray = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """Return all but the pixels, as plain JSON values."""
        return {k: v for k, v in self.__dict__.items() if k not in ("reference", "candidate")}


@dataclass(frozen=True)
class Side:
    """One run of all cases: what was run, bytes of the weights exchanged, seconds per step, peak bytes."""

    name: str
    weight_bytes: int
    seconds_per_step: float | None
    peak_bytes: int | None


@dataclass
class PictureComparison:
    """Everything `compare_pictures` measured.

    failed: cases that one side or both could not run, with the reason; `broken` counts those of the candidate
    alone.
    """

    pipeline: str
    component: str
    device: str
    dtype: str
    reference: Side
    candidate: Side
    pictures: list[Picture] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    broken: int = 0

    def worst_db(self) -> float | None:
        """Return the lowest PSNR, None where all pictures are equal; ConversionError without a picture."""
        self._require_pictures()
        return min((p.psnr_db for p in self.pictures if p.psnr_db is not None), default=None)

    def median_db(self) -> float | None:
        """Return the median PSNR of the pictures that differ, None where none does."""
        self._require_pictures()
        differing = [p.psnr_db for p in self.pictures if p.psnr_db is not None]
        return median(differing) if differing else None

    def _require_pictures(self) -> None:
        if not self.pictures:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.failed.items())
            raise ConversionError(f"the pipeline made no picture on both sides: {reasons}")

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values, without the pixels."""
        own = {k: v for k, v in self.__dict__.items() if k not in ("reference", "candidate", "pictures")}
        return {
            **own,
            "reference": self.reference.__dict__,
            "candidate": self.candidate.__dict__,
            "pictures": [p.figures() for p in self.pictures],
        }
