"""Quantizing the linear layers of a model in place."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...formats import FORMATS, Asked, Format
from ...formats.choose import chosen, default_format, names
from ...formats.convrot import largest_group
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE
from ..layouts import weight_layout
from ..tensor import QuantizedTensor
from .selecting import Keep, Layers, select_layers
from .stored import as_parameter

if TYPE_CHECKING:
    from ..algorithms import LayerStats, QuantizeOptions
    from ..calibration import CalibrationData

    Calibration = str | os.PathLike[str] | CalibrationData | Mapping[str, LayerStats] | None

logger = logging.getLogger(__name__)


@dataclass
class QuantizeReport:
    """What became of every linear layer: quantized with what, or left and why; notes of the algorithm.

    skipped also lists weights that no ``nn.Linear`` holds (``in_proj_weight`` of an attention module).
    """

    quantized: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Return one line: how many layers were quantized, and how many not."""
        return f"{len(self.quantized)} linear layers quantized, {len(self.skipped)} left as they are"


def quantize_model(
    model: nn.Module,
    layout: str | None = None,
    *,
    skip: Layers = None,
    include: Layers = None,
    keep: Keep | None = None,
    calibration: "Calibration" = None,
    rotation: int | str = "auto",
    scaling: str | None = None,
    block_size: int = 128,
    options: "QuantizeOptions | None" = None,
) -> QuantizeReport:
    """Replace the weights of `model`'s ``nn.Linear`` layers (and subclasses) by QuantizedTensors, in place.

    The modules stay what they are, so hooks and adapters keep working; weights get requires_grad=False.
    Layer after layer, so memory never holds two copies of more than one weight.
    layout: a layout's class name, a format's name in ``comfy_quant`` or a value of ``--format``, or the name
        of a layout of your own; None is the format that is written when nothing is asked.
    skip: layers to leave; include: layers to quantize whatever `keep` says; see `Layers`.
    keep: the rule for all other layers; None quantizes them. `convert_to_quant.runtime.quantize_model`
        gives the rules of the presets.
    calibration: a file made by `calibrate`, an opened CalibrationData, or ``{layer: LayerStats}``; layers
        with a record use LDLQ (in the rotated space), the others round to nearest and are noted.
    rotation: "auto" takes the largest of 256, 64, 16 that divides in_features; or a group, or 0.
    scaling: what one scale is for, a word of ``--scaling_mode``; None is the format's own. block_size: of
        the block-wise layout.
    options: QuantizeOptions to start from (algorithm, smoothquant, bias_correction, seed, ...); their
        format is set from the arguments.

    ValueError for an unknown layout or option, a pattern that matches no layer, NaN or Inf in a layer, a
    calibration that matches nothing.
    """
    report = QuantizeReport()
    todo, report.skipped = select_layers(model, skip, include, keep)
    stats = statistics(calibration, list(todo))
    settings = LayerSettings(layout or default_format().layout, rotation, scaling, block_size, options)
    for name, module in todo.items():
        if why := settings.why_not(module.weight):
            report.skipped[name] = why
            continue
        record = stats(name) if stats is not None else None
        if stats is not None and record is None:
            report.notes[name] = "no calibration record: rounded to nearest"
        weight, bias, note = quantize_weight(name, module.weight, record, settings, module.bias)
        module.weight = as_parameter(weight)
        if bias is not None:
            module.bias = nn.Parameter(bias, requires_grad=False)
        report.quantized[name] = repr(weight)
        if note:
            report.notes[name] = note
    logger.info(report.summary())
    return report


@dataclass(frozen=True)
class LayerSettings:
    """How layers are stored and rounded; see `quantize_model`."""

    layout: str
    rotation: int | str = "auto"
    scaling: str | None = None
    block_size: int = 128
    options: "QuantizeOptions | None" = None

    def form(self, in_features: int) -> Format | None:
        """Return the format of a layer; None for a layout that belongs to no format."""
        known = (f for f in FORMATS.values() if self.layout in (f.name, f.layout, *names(f)))
        found = next(known, None)
        if found is None:
            return None
        if self.scaling is not None:
            found = chosen(found.name, self.scaling)
        own = self.scaling is None or found.granularities[:1] == (self.scaling,)
        group = largest_group(in_features) if own else 0
        if self.rotation != "auto":
            group = int(self.rotation)
        group = group if found.rotates else 0
        return found.make(Asked(self.scaling or "", group, self.block_size, option=self.layout))

    def why_not(self, weight: torch.Tensor) -> str:
        """Return why a weight [N, K] cannot be stored so; "" if it can."""
        form = self.form(weight.shape[1])
        why = form.why_not((weight.shape[0], weight.shape[1])) if form is not None else ""
        return f"{form.name} cannot hold it: {why}" if form is not None and why else ""


def statistics(calibration: "Calibration", names: list[str]) -> "Callable[[str], LayerStats | None] | None":
    """Return what finds a layer's record by its name; None without a calibration.

    ValueError where no layer of `names` has a record.
    """
    if calibration is None:
        return None
    if isinstance(calibration, Mapping):
        if not any(n in calibration for n in names):
            raise ValueError(
                "the calibration holds no record of any layer to quantize; its keys are names of modules"
            )
        return calibration.get
    if isinstance(calibration, (str, os.PathLike)):
        from ..calibration import CalibrationData

        calibration = CalibrationData.load(calibration)
    found, match = calibration.match(names)
    logger.info(match.summary())
    return lambda name: calibration.stats(found[name]) if name in found else None


def quantize_weight(
    name: str,
    weight: torch.Tensor,
    record: "LayerStats | None",
    settings: LayerSettings,
    bias: torch.Tensor | None = None,
) -> tuple[QuantizedTensor, torch.Tensor | None, str | None]:
    """Return the quantized weight [N, K] of layer `name`, its corrected bias or None, and a note or None.

    record: its calibration; None rounds to nearest unless the settings name an algorithm. bias: read for bias
    correction only. ValueError, naming the layer, for NaN or Inf and for what the format cannot have.
    """
    weight = weight.detach()
    form = settings.form(weight.shape[1])
    if form is None:
        return QuantizedTensor.from_float(weight, settings.layout), None, None
    try:
        if record is None and settings.options is None:
            return _nearest(weight, form), None, None
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
    from ..algorithms import QuantizeOptions, quantize_layer

    base = settings.options or QuantizeOptions(algorithm="ldlq")
    result = quantize_layer(weight, record, replace(base, format=form), bias, name)
    return _with(result.weight, result.pre_quant_scale, result.input_scale), result.bias, result.note


def _nearest(weight: torch.Tensor, form: Format) -> QuantizedTensor:
    if not all(torch.isfinite(end) for end in weight.aminmax()):
        raise ValueError("the weight holds NaN or Inf")
    layout = weight_layout(form.layout)
    return QuantizedTensor.of(layout.round(weight, form), layout)


def _with(
    weight: QuantizedTensor, smooth: torch.Tensor | None, static: torch.Tensor | None
) -> QuantizedTensor:
    """Return `weight` carrying the activation scales of its layer that its format has."""
    extras = weight_layout(weight._layout_type).form(weight._layout_params).extras
    given = {PRE_QUANT_SCALE: smooth, INPUT_SCALE: static}
    extra = {k: v for k, v in given.items() if v is not None and k in extras}
    return QuantizedTensor(weight._qdata, weight._layout_type, {**weight._layout_params, **extra})
