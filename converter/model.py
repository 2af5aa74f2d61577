"""Quantizing a model that is in memory, with what the presets know of its family."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..quant import runtime
from .layers.selection import select
from .presets import Match, Shapes, assume, detect

if TYPE_CHECKING:
    from torch import nn

    from ..quant.algorithms import QuantizeOptions
    from ..quant.runtime.quantizing import Calibration, Keep, Layers, QuantizeReport

logger = logging.getLogger(__name__)


def quantize_model(
    model: nn.Module,
    layout: str | None = None,
    *,
    preset: str = "auto",
    preset_strict: bool = False,
    skip: Layers = None,
    include: Layers = None,
    calibration: Calibration = None,
    rotation: int | str = "auto",
    scaling: str | None = None,
    block_size: int = 128,
    options: QuantizeOptions | None = None,
) -> QuantizeReport:
    """Replace the weights of `model`'s ``nn.Linear`` layers by QuantizedTensors, in place::

        report = quantize_model(transformer, skip=["proj_out"])
        print(report.summary(), report.skipped)

    Which layers, is decided as in a conversion: a model that is recognised follows its preset, any other the
    general rule (the linear layers of the repeated blocks, or all where there are none).
    preset: "auto" recognises the model by names and shapes; a preset's name; "none" is the general rule.
    preset_strict: also keep the modulation layers of every block.
    skip: more layers to leave; include: layers to quantize whatever the preset says (``"*"`` for all). Both
        are patterns on module names (fnmatch; one that matches a module stands for all layers inside it), or
        functions ``(name, module) -> bool``.

    layout, calibration, rotation, scaling, block_size, options and the errors: as
    `quant.runtime.quantize_model`. ValueError also for an unknown preset.
    """
    return runtime.quantize_model(
        model,
        layout,
        skip=skip,
        include=include,
        keep=preset_rule(preset, preset_strict),
        calibration=calibration,
        rotation=rotation,
        scaling=scaling,
        block_size=block_size,
        options=options,
    )


def preset_rule(preset: str = "auto", strict: bool = False) -> Keep:
    """Return the rule that says which weights of a model stay as they are, by the names and shapes of all.

    preset, strict: as in `quantize_model`. The rule raises ValueError for an unknown preset.
    """

    def keep(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        matches = _matches(preset, shapes)
        for match in matches:
            logger.info("recognised %s: %s", match.label, ", ".join(match.evidence))
        decisions = select(shapes, matches, strict, force=True)  # nothing here goes to ComfyUI
        return {name: d.reason for name, d in decisions.items() if d.action != "quantize"}

    return keep


def _matches(preset: str, shapes: Shapes) -> list[Match]:
    if preset == "none":
        return []
    return detect(shapes) if preset == "auto" else [assume(preset, shapes)]
