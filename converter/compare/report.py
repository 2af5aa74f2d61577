"""What ``ctq compare`` measured. No torch here: the command line takes its choices from this file."""

from dataclasses import dataclass, field

from ...formats.errors import ConversionError

DTYPES = ("fp32", "bf16", "fp16")
"""The dtypes that a model can be run in, by their names on the command line."""


@dataclass
class CaseResult:
    """One case: output SQNR in dB and cosine against the reference, or why it did not run; median seconds."""

    name: str
    sqnr: float | None = None
    cosine: float | None = None
    reference_seconds: float | None = None
    candidate_seconds: float | None = None
    note: str = ""


@dataclass
class Side:
    """One checkpoint: bytes of its file and of the loaded weights, seconds to load, peak bytes on a GPU."""

    path: str
    file_bytes: int
    weight_bytes: int = 0
    load_seconds: float = 0.0
    int8_weights: int = 0
    peak_bytes: int | None = None


@dataclass
class TextResult:
    """A text run through both: perplexities of language models, or cosines of encoders' embeddings.

    An embedding is the mean of a window's last hidden states. None where the model gives the other.
    """

    tokens: int
    windows: int
    reference: float | None = None
    candidate: float | None = None
    cosine: float | None = None
    worst_cosine: float | None = None


@dataclass
class Comparison:
    """Everything `compare` measured."""

    reference: Side
    candidate: Side
    device: str
    seed: int
    cases: list[CaseResult] = field(default_factory=list)
    layers: list[CaseResult] = field(default_factory=list)
    text: TextResult | None = None

    def worst(self) -> float:
        """Return the lowest output SQNR of all cases that ran, in dB; ConversionError when none did."""
        ran = [c.sqnr for c in self.cases if c.sqnr is not None]
        if not ran:
            raise ConversionError("no case could be run on both checkpoints; the table says why for each")
        return min(ran)
