"""Which layers of a model are quantized while it is loaded, as what; and one layer's rounding."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..converter.model import preset_rule
from ..formats import Format
from ..formats.choose import chosen
from ..quant import QuantizedTensor
from ..quant.runtime.quantizing import LayerSettings, quantize_weight, statistics
from ..quant.runtime.selecting import select_layers
from .config import CtqConfig

logger = logging.getLogger(__name__)


@dataclass
class LayerPlan:
    """The layers to quantize and those that are left, by module name, each with the format or the reason.

    Made from a model whose parameters may be on the meta device; a weight is rounded when it arrives.
    """

    forms: dict[str, Format] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    settings: LayerSettings | None = None
    records: Any = None

    @classmethod
    def of(cls, model: nn.Module, config: CtqConfig, floats: Iterable[str] = ()) -> "LayerPlan":
        """Plan `model`. floats: names of modules that stay in float32, wherever they stand in a name.

        ValueError for a preset that does not exist, a pattern that matches nothing, a calibration that does.
        """
        found = chosen(config.format, config.scaling_mode)
        settings = LayerSettings(found.name, config.rotation, config.scaling_mode, config.block_size)
        rule = preset_rule(config.preset, config.preset_strict)
        todo, skipped = select_layers(model, config.skip or None, config.include or None, rule, empty=True)
        kept = set(floats)
        forms: dict[str, Format] = {}
        for name, module in todo.items():
            if kept & set(name.split(".")):
                skipped[name] = "kept in float32 by the model's class"
                continue
            form = settings.form(module.weight.shape[1])
            assert form is not None
            if why := settings.why_not(module.weight):
                skipped[name] = why
            else:
                forms[name] = form
        records = statistics(config.calibration, list(forms)) if forms else None
        logger.info("%d linear layers are quantized, %d left as they are", len(forms), len(skipped))
        return cls(forms, skipped, settings, records)

    def __contains__(self, parameter: str) -> bool:
        """Tell whether the parameter of that name is a weight to quantize."""
        layer, _, leaf = parameter.rpartition(".")
        return leaf == "weight" and layer in self.forms

    def quantize(self, parameter: str, weight: torch.Tensor) -> QuantizedTensor:
        """Round the weight [N, K] of that name, where it is; ValueError, naming it, for NaN or Inf."""
        layer = parameter.rpartition(".")[0]
        record = self.records(layer) if self.records is not None else None
        assert self.settings is not None
        return quantize_weight(layer, weight, record, self.settings)[0]


def bytes_per_weight(model: nn.Module, layers: Iterable[str], plan: LayerPlan) -> float:
    """Return the bytes that a quantized weight takes per element on average; 1 where nothing is known."""
    from ..files.dtypes import nbytes

    stored = elements = 0
    for name in layers:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        shape = (weight.shape[0], weight.shape[1])
        form = plan.forms.get(name)
        if form is not None:
            stored += sum(nbytes(t.dtype, t.shape) for t in form.stored(shape))
            elements += shape[0] * shape[1]
    return stored / elements if elements else 1.0
