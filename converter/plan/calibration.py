"""Which algorithm chooses a layer's integers, and which calibration, outputs and memory go with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...files.header import OutputTensor
from ...formats.errors import ConversionError
from ..contract import INPUT_SCALE, PRE_QUANT_SCALE
from ..options.settings import Settings
from .steps import Step

if TYPE_CHECKING:
    import torch

    from ...quant.calibration import CalibrationData


_STEERED = ("quip", "ldlq")
"""Algorithms that are rounding to nearest where no inputs are known."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of a conversion: an opened file, and the record that each layer has.

    data: None when only a LoRA is given. records: layer -> record. directions: layer -> the weighted input
    directions [r, K] of a LoRA. notes: what matched.
    """

    data: CalibrationData | None
    records: Mapping[str, str]
    directions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether there are records of real inputs."""
        return self.data is not None and not self.data.synthetic

    def has(self, layer: str, *fields: str) -> bool:
        """Whether the layer's record holds one of the fields."""
        record = self.records.get(layer)
        return (
            self.data is not None
            and record is not None
            and bool(set(fields) & set(self.data.records[record]))
        )

    def steers(self, layer: str) -> bool:
        """Whether real inputs of the layer are known: what a Hessian is made of."""
        return (self.measured and self.has(layer, "samples")) or layer in self.directions

    def stats(self, layer: str) -> Any:
        """The layer's LayerStats, read from the files now; None when it has none."""
        found = None
        if self.data is not None and layer in self.records:
            found = self.data.stats(self.records[layer])
        if layer in self.directions:
            from ...quant.algorithms import LayerStats

            found = replace(found or LayerStats(), extra_directions=self.directions[layer])
        return found


NONE = Calibration(None, {})


def open_calibration(
    settings: Settings, layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> Calibration:
    """Open the calibration that the settings name and match it with the layers to quantize.

    shapes: every tensor of the checkpoint, for the names in a LoRA.

    ConversionError for a file that is missing or no calibration, when none of its records belongs to a
    layer, and for options that need a calibration when there is none.
    """
    if settings.calibration_data is None and settings.calibration_lora is None:
        _refuse_without_calibration(settings)
        return NONE
    from ...quant.calibration import CalibrationData
    from ..lora.directions import lora_directions

    try:
        data: CalibrationData | None = None
        records: dict[str, str] = {}
        directions: dict[str, torch.Tensor] = {}
        notes: list[str] = []
        if settings.calibration_data is not None:
            data = CalibrationData.load(settings.calibration_data)
            records, report = data.match(layers)
            notes.append(report.summary())
            if data.synthetic:
                notes.append("the calibration is synthetic: it may set scales, it steers no rounding")
        if settings.calibration_lora is not None:
            found = lora_directions(settings.calibration_lora, shapes)
            directions = {layer: rows for layer, rows in found.items() if layer in set(layers)}
            notes.append(f"calibration LoRA: its directions weigh {len(directions)} layers")
    except (ValueError, OSError) as e:
        raise ConversionError(str(e)) from e
    return Calibration(data, records, directions, tuple(notes))


def _refuse_without_calibration(settings: Settings) -> None:
    wants = {
        "--bias-correction": settings.bias_correction,
        "--static-activations": settings.static_activations,
        "--smoothquant": settings.smoothquant,
    }
    asked = [flag for flag, on in wants.items() if on]
    if asked:
        raise ConversionError(
            f"{' and '.join(asked)} need measured inputs: give --calibration-data (record it with the "
            "ComfyUI node or convert_to_quant.calibrate)"
        )


def attach_algorithms(steps: Sequence[Step], calibration: Calibration, settings: Settings) -> Iterator[Step]:
    """The steps with their algorithm, and with the tensors that calibration adds to a layer.

    A bias that will be corrected leaves its own step and becomes an output of its layer's.
    """
    kept = {s.name: s for s in steps if s.action == "keep"}
    done = [_calibrated(s, kept, calibration, settings) if s.action == "quantize" else s for s in steps]
    corrected = {s.companions["bias"] for s in done if "bias" in s.companions}
    yield from (s for s in done if s.name not in corrected)


def _calibrated(step: Step, kept: dict[str, Step], calibration: Calibration, settings: Settings) -> Step:
    layer, outputs, companions = step.layer_name, list(step.outputs), dict(step.companions)
    if settings.static_activations and calibration.has(layer, "input_scale", "samples", "channel_max"):
        outputs.append(OutputTensor(layer + INPUT_SCALE, "F32", ()))
    if settings.smoothquant and calibration.measured and calibration.has(layer, "samples", "channel_max"):
        outputs.append(OutputTensor(layer + PRE_QUANT_SCALE, "F32", (step.source.shape[1],)))
    bias, bias_merges = kept.get(layer + ".bias"), step.bias_merges
    if settings.bias_correction and bias is not None and calibration.has(layer, "samples", "channel_mean"):
        outputs.append(bias.outputs[0])
        companions["bias"], bias_merges = bias.name, bias.merges
    return replace(
        step,
        algorithm=_algorithm(step, calibration, settings),
        outputs=tuple(outputs),
        companions=companions,
        bias_merges=bias_merges,
    )


def _asked(step: Step, settings: Settings) -> str | None:
    """The algorithm asked for: the layer's own, else the one for all, else None."""
    return step.algorithm or ("rtn" if settings.simple else settings.optimizer)


def default_algorithm(step: Step, calibration: Calibration) -> str:
    """The best that a layer's calibration allows: what it gets where nothing else is asked.

    "quip" is LDLQ of a rotated weight; where a layer cannot rotate it is called by its right name.
    """
    assert step.layer is not None
    if not calibration.steers(step.layer_name):
        return "rtn"  # the same integers: without inputs H is the identity
    return "quip" if step.layer.rotation else "ldlq"


def _algorithm(step: Step, calibration: Calibration, settings: Settings) -> str:
    """What is asked for, as far as the calibration allows."""
    asked = _asked(step, settings)
    return default_algorithm(step, calibration) if asked is None or asked in _STEERED else asked


def algorithm_notes(layers: Sequence[Step], calibration: Calibration, settings: Settings) -> Iterator[str]:
    """What a person should know about the algorithms: above all where one could not help.

    layers: the quantize steps before `attach_algorithms`.
    """
    yield from calibration.notes
    asked = [s for s in layers if _asked(s, settings) in _STEERED]
    blind = [s for s in asked if not calibration.steers(s.layer_name)]
    if blind:
        yield (
            f"{len(blind)} of {len(layers)} layers have no calibration: without measured inputs LDLQ equals "
            f"rounding to nearest, so they are rounded ({blind[0].layer_name}, ...)"
        )
