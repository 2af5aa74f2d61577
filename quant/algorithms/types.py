"""What goes into an algorithm and what comes out: statistics, options, result."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ...formats import Format
from ...formats.algorithms import ALGORITHMS, ROUNDING, canonical
from ...formats.choose import default_format
from ...formats.work import DAMPING
from ..tensor import QuantizedTensor


@dataclass(frozen=True)
class LayerStats:
    """Calibration of one layer, in the space its weight is stored in (not rotated, not smoothed).

    samples: tokens [n, K], any float dtype. channel_max: max |x| per channel [K]. channel_mean: E[x] [K].
    input_scale: absmax of the inputs / 127, as a static activation scale for an unrotated layer.
    extra_directions: weighted rows [r, K] that join the Hessian (`converter.lora.directions`).
    synthetic: the numbers come from made-up inputs: they may set a scale, never steer a rounding.
    kept: where factors stay for the next call with these statistics, None to keep none ([K, K] floats each).
    """

    samples: torch.Tensor | None = None
    channel_max: torch.Tensor | None = None
    channel_mean: torch.Tensor | None = None
    input_scale: float | None = None
    extra_directions: torch.Tensor | None = None
    synthetic: bool = False
    kept: dict[tuple, Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class QuantizeOptions:
    """Everything an algorithm may need to know; one object serves all layers.

    algorithm: "rtn"; "ldlq" (alias "gptq"); "quip" (ldlq of a rotated weight); "original", "adamw"
        or "radam" (learned rounding with that optimiser).
    format: how the layer is stored, rotation included (`convert_to_quant.formats`).
    scale_search: the scale that minimises the squared weight error instead of the one from the peak.
    actorder: quantize columns by descending diag(H) (None: where the format is worth it). damping:
        share of H's mean diagonal added to it.
    passes: of coordinate descent after LDLQ, at most (None: what the format is worth); learned rounding
        takes its own. seed: draws tokens when
        there are more than `max_tokens`, and starts the singular vectors.
    row_chunk: rows held as float at a time (None: all). Never changes a bit of the result.
    in_place: factor H in its own memory; the tokens are then read again should damping have to rise.
    bf16_compute: bf16 operands in the Hessian's and the feedback's GEMM; "auto" means on GPUs that
        have it. The Cholesky factor is float32 always.
    steps, learning_rate, schedule: of learned rounding (None: the optimiser's own rate).
    bias_correction: return b + (W - Wq) E[x]. smoothquant: migration strength alpha, or None.
    static_activations: return an `input_scale`. lora_weight: trace(D^T D) / trace(H) for the
        extra directions D.
    device: where to compute (None: where the weight is); results return to the weight's device.
    """

    algorithm: str = ROUNDING
    format: Format = field(default_factory=default_format)
    scale_search: bool = False
    actorder: bool | None = None
    passes: int | None = None
    seed: int = 0
    damping: float = DAMPING
    max_tokens: int | None = None
    row_chunk: int | None = None
    in_place: bool = False
    bf16_compute: Literal["auto", "on", "off"] = "auto"
    steps: int = 100
    learning_rate: float | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    bias_correction: bool = False
    smoothquant: float | None = None
    static_activations: bool = False
    lora_weight: float = 0.1
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that no layer could be quantized with."""
        try:
            canonical(self.algorithm)
        except KeyError:
            known = ", ".join(ALGORITHMS)
            raise ValueError(f"algorithm must be one of {known}, not {self.algorithm!r}") from None
        if not self.damping > 0:
            raise ValueError(f"damping must be positive, not {self.damping}")
        if self.row_chunk is not None and self.row_chunk < 1:
            raise ValueError(f"row_chunk must be positive, not {self.row_chunk}")
        if self.smoothquant is not None and not 0 <= self.smoothquant <= 1:
            raise ValueError(f"smoothquant must lie between 0 and 1, not {self.smoothquant}")
        if self.bf16_compute not in ("auto", "on", "off"):
            raise ValueError(f"bf16_compute must be auto, on or off, not {self.bf16_compute!r}")
        if self.passes is not None and self.passes < 0:
            raise ValueError(f"passes must not be negative, not {self.passes}")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, not {self.steps}")

    @property
    def descent_passes(self) -> int:
        """Passes of coordinate descent after LDLQ: those asked for, or the format's own."""
        return self.format.passes(self.passes)

    @property
    def largest_first(self) -> bool:
        """Whether columns are quantized by descending diag(H): as asked for, or the format's own order."""
        return self.format.actorder(self.actorder)


@dataclass(frozen=True)
class LayerResult:
    """A quantized layer.

    weight: stands for the float weight (times 1 / pre_quant_scale when that is given).
    bias: the corrected bias, in the given one's dtype, when bias correction was asked for and could
        be done; else None: keep the original. pre_quant_scale: float32 [K] that multiplies the input.
    input_scale: float32 [] static activation scale. note: one line for the report, or None.
    """

    weight: QuantizedTensor
    bias: torch.Tensor | None = None
    pre_quant_scale: torch.Tensor | None = None
    input_scale: torch.Tensor | None = None
    note: str | None = None
