"""The plan: what happens to every tensor of a checkpoint, decided from its header alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ...files.checkpoint import TensorInfo
from ...files.header import OutputTensor
from ...formats import Format
from ...formats.bank import matrix_shape
from ...formats.config import encode_config
from ...formats.names import CONFIG, tensor_name
from ..lora.merge import Merge, MergedLora
from .calibration import NONE, Calibration
from .mix import Mix

if TYPE_CHECKING:
    from ...folding.factors import Folds
    from ...folding.inputs import FoldedInput
    from ...quant.placement import Placement


LEFT_OVER = "left over from an earlier quantization, beside a weight of floats"
"""Why a companion of a float weight is not carried over: the layer gets its own."""


@dataclass(frozen=True)
class Step:
    """What happens to one source tensor, under the name it has in the output (see `naming`).

    action: "quantize" it as `format` with `algorithm`; "dequantize" it; "cast" it to its output's dtype;
    "keep" its bytes (under the output's name); "write" `data`, which came from the header; "drop" it.
    outputs: what it leaves in the file. companions: the source tensors its values depend on, by role
    ("scale": the scale of an FP8 weight; "bias": the bias that is corrected with it).
    merges: LoRA changes added to it first; a kept tensor with any is written anew in its dtype, not copied.
    bias_merges: the same for the bias among the companions.
    placement: in what parts its algorithm computes on `device`, None for rounding.
    folded: whether a fold changes it, after its merges (see `fold`); a kept tensor is then written anew.
    """

    source: TensorInfo
    action: Literal["quantize", "dequantize", "cast", "keep", "write", "drop"]
    reason: str
    outputs: tuple[OutputTensor, ...] = ()
    format: Format | None = None
    algorithm: str = ""
    companions: Mapping[str, TensorInfo] = field(default_factory=dict)
    data: bytes = b""
    merges: tuple[Merge, ...] = ()
    bias_merges: tuple[Merge, ...] = ()
    placement: Placement | None = None
    device: str = "cpu"
    folded: bool = False

    @property
    def changed(self) -> bool:
        """Whether its values change before they are stored: by LoRAs or folds."""
        return bool(self.merges) or self.folded

    @property
    def name(self) -> str:
        """The source tensor's name in the output."""
        return self.source.name

    @property
    def layer_name(self) -> str:
        """The module's name: the weight's without ``.weight``."""
        return self.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight of a layer; of a bank [E, N, K], [E N, K]."""
        return matrix_shape(self.source.shape)

    @property
    def output_bytes(self) -> int:
        """Bytes it leaves in the file."""
        return sum(o.nbytes for o in self.outputs)


@dataclass(frozen=True)
class Plan:
    """All steps, in source order, the metadata of the output, and what was recognised on the way.

    notes: lines worth telling a person (the preset and why, layers that cannot rotate, ...).
    loras: what became of each LoRA file that is merged. calibration: what is known of the layers' inputs.
    mix: how the formats were chosen for a target size, None without one.
    inputs: what is folded. folds: its factors, None until `quantize.measure` has read them off the weights.
    """

    steps: tuple[Step, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    loras: tuple[MergedLora, ...] = ()
    calibration: Calibration = NONE
    mix: Mix | None = None
    inputs: tuple[FoldedInput, ...] = ()
    folds: Folds | None = None

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @property
    def quantized(self) -> list[Step]:
        """The steps that quantize a layer."""
        return [s for s in self.steps if s.action == "quantize"]

    @property
    def outputs(self) -> list[OutputTensor]:
        """Every output tensor, in source order."""
        return [o for s in self.steps for o in s.outputs]

    @property
    def output_bytes(self) -> int:
        """Bytes of tensor data in the output."""
        return sum(s.output_bytes for s in self.steps)

    @property
    def largest_layer(self) -> int:
        """Elements of the largest quantized weight."""
        return max((s.source.numel for s in self.quantized), default=0)


def layer_outputs(layer: str, shape: tuple[int, int], form: Format) -> tuple[OutputTensor, ...]:
    """Return the tensors of a quantized layer in the file, its ``comfy_quant`` after those it always has."""
    size = len(encode_config(form.config()))
    made = [OutputTensor(tensor_name(layer, t.suffix), t.dtype, t.shape) for t in form.stored(shape)]
    always = len(form.tensors(shape))
    return (*made[:always], OutputTensor(tensor_name(layer, CONFIG), "U8", (size,)), *made[always:])


def kinds(layers: Iterable[Any]) -> str:
    """Name the formats of layers, the most frequent first: ``INT8 and FP8``. Each has a `kind`."""
    found = Counter(layer.kind for layer in layers if layer.kind)
    return " and ".join(kind for kind, _ in found.most_common()) or "no format"
