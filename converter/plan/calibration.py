"""The calibration of a conversion, and what it allows for each layer: an algorithm, extra tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...formats import Format
from ...formats.algorithms import ALGORITHMS, ROUNDING, calibrated
from ...formats.errors import ConversionError
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE
from ..options.settings import Settings

if TYPE_CHECKING:
    import torch

    from ...quant.algorithms import LayerStats
    from ...quant.calibration import CalibrationData


@dataclass(frozen=True)
class Calibration:
    """The calibration of a conversion: an opened file, and the record that each layer has.

    data: None when only a LoRA is given. records: layer -> record. directions: layer -> the weighted input
    directions [r, K] of a LoRA. influence: layer -> what part of its error arrives at the model's output, of
    layers that this was measured of. notes: what matched.
    """

    data: CalibrationData | None
    records: Mapping[str, str]
    directions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    influence: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """Tell whether there are records of real inputs."""
        return self.data is not None and not self.data.synthetic

    def has(self, layer: str, *fields: str) -> bool:
        """Tell whether the layer's record holds one of the fields."""
        record = self.records.get(layer)
        return (
            self.data is not None
            and record is not None
            and bool(set(fields) & set(self.data.records[record]))
        )

    def steers(self, layer: str) -> bool:
        """Tell whether real inputs of the layer are known: what a Hessian is made of."""
        return (self.measured and self.has(layer, "samples")) or layer in self.directions

    def tokens(self, layer: str, most: int | None = None) -> int:
        """Return how many inputs a layer's Hessian is made of: recorded ones, at most `most`, or a LoRA's."""
        if self.measured and self.has(layer, "samples"):
            assert self.data is not None
            count = self.data.count(self.records[layer])
            return count if most is None else min(count, most)
        return self.directions[layer].shape[0] if layer in self.directions else 0

    def stats(self, layer: str) -> LayerStats | None:
        """Read the layer's LayerStats from the files, now; None when it has none."""
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
        influence: dict[str, float] = {}
        notes: list[str] = []
        if settings.calibration_data is not None:
            data = CalibrationData.load(settings.calibration_data)
            records, report = data.match(layers)
            notes.append(report.summary())
            _require_widths(data, records, shapes)
            influence = _influence(data, layers)
            if data.synthetic:
                notes.append("the calibration is synthetic: it may set scales, it steers no rounding")
        if settings.calibration_lora is not None:
            found = lora_directions(settings.calibration_lora, shapes)
            directions = {layer: rows for layer, rows in found.items() if layer in set(layers)}
            notes.append(f"calibration LoRA: its directions weigh {len(directions)} layers")
    except (ValueError, OSError) as e:
        raise ConversionError(str(e)) from e
    return Calibration(data, records, directions, influence, tuple(notes))


def _influence(data: CalibrationData, layers: Sequence[str]) -> dict[str, float]:
    """Return the influence of each layer that one is known of.

    That of a layer which ComfyUI fuses is the sum of its parts'; parts of a fused one share it.
    """
    from ...quant.calibration.names import owners

    found = owners(layers, data.influence)
    shares = Counter(name for names in found.values() for name in names)
    return {layer: sum(data.influence[n] / shares[n] for n in names) for layer, names in found.items()}


def _require_widths(
    data: CalibrationData, records: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise ValueError where a record is for other columns than its layer has: it is of another model."""
    for layer, record in records.items():
        width, shape = data.width(record), shapes.get(f"{layer}.weight")
        if width and shape is not None and shape[-1] != width:
            raise ValueError(
                f"calibration file {data.path}: {record!r} was recorded for {width} columns, and {layer} has "
                f"{shape[-1]}: it is of another model"
            )


def _refuse_without_calibration(settings: Settings) -> None:
    wants = {
        "--bias-correction": settings.bias_correction,
        "--static-activations": settings.static_activations,
        "--smoothquant": settings.smoothquant,
    }
    asked = [flag for flag, on in wants.items() if on]
    if asked:
        raise ConversionError(
            f"{' and '.join(asked)} need measured inputs: give --calibration-data (record it with "
            "ctq calibrate, the ComfyUI node or convert_to_quant.calibrate)"
        )


def default_algorithm(layer: str, rotated: bool, calibration: Calibration) -> str:
    """Return the best that a layer's calibration allows: what it gets where nothing else is asked."""
    return calibrated(rotated) if calibration.steers(layer) else ROUNDING


def layer_algorithm(asked: str | None, layer: str, rotated: bool, calibration: Calibration) -> str:
    """Return what is asked for (None: nothing), as far as the calibration allows."""
    if asked is None or ALGORITHMS[asked].needs_hessian:
        return default_algorithm(layer, rotated, calibration)
    return asked


def layer_extras(layer: str, form: Format, calibration: Calibration, settings: Settings) -> Format:
    """Return the layer's format with the tensors that calibration adds."""
    # Only samples can tell the largest rotated input.
    tells = ("samples",) if form.rotation else ("input_scale", "samples", "channel_max")
    static = settings.static_activations and calibration.has(layer, *tells)
    smooth = settings.smoothquant and calibration.measured
    smooth = smooth and calibration.has(layer, "samples", "channel_max")
    wanted = [name for name, on in ((INPUT_SCALE, static), (PRE_QUANT_SCALE, smooth)) if on]
    return form.having(tuple(name for name in wanted if name in form.extras))


def algorithm_notes(asked: Mapping[str, str | None], calibration: Calibration) -> Iterator[str]:
    """Say what a person should know about the algorithms: above all where one could not help.

    asked: the algorithm asked for each layer to quantize, None for nothing in particular.
    """
    yield from calibration.notes
    steered = [layer for layer, name in asked.items() if name and ALGORITHMS[name].needs_hessian]
    blind = [layer for layer in steered if not calibration.steers(layer)]
    if blind:
        yield (
            f"{len(blind)} of {len(asked)} layers have no calibration: without measured inputs LDLQ equals "
            f"rounding to nearest, so they are rounded ({blind[0]}, ...)"
        )
    guessed = [n for n, a in asked.items() if a and ALGORITHMS[a].optimizes and not calibration.steers(n)]
    if guessed:
        yield (
            f"{len(guessed)} of {len(asked)} layers have no calibration: learned rounding fits the weights' "
            "own directions there, for 0.1 dB over rounding to nearest where it was measured; leave "
            f"--optimizer out, or give --calibration-data ({guessed[0]}, ...)"
        )
