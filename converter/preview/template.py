"""A plan as a layer configuration that, fed back with --layer-config, gives the same plan."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..layers.config import LayerOverride
from ..layers.selection import could_be_linear
from ..options.settings import Settings
from ..options.values import FLOAT16
from ..plan.calibration import default_algorithm
from ..plan.steps import Plan, Step

_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


def layer_steps(plan: Plan) -> list[Step]:
    """List the steps of layers: weights that could be quantized, whether they are or not."""
    return [s for s in plan if s.action not in ("write", "drop") and could_be_linear(s.name, s.source.shape)]


def layer_template(plan: Plan, settings: Settings) -> dict[str, LayerOverride]:
    r"""Make an entry for every layer of a plan made with `settings`, in the plan's order.

    Layers that differ in their numbers only and are stored alike share an entry (``blocks\.[0-9]+\.qkv``).
    The algorithm stands in it where it is not what the layer would get by itself, so that a template made
    without calibration data does not keep a later conversion from using them. What is not about layers
    (calibration, LoRAs, removed tensors, the header's metadata) is not in it: those options are given again.
    """
    steps = layer_steps(plan)
    full = any(s.format.full_precision_matrix_mult for s in steps if s.format)
    asked = settings.algorithm is not None
    entries = {s.layer_name: _entry(s, full, asked or _chosen(s, plan)) for s in steps}
    forms: dict[str, list[str]] = {}
    for name in entries:
        forms.setdefault(_form(name), []).append(name)
    template: dict[str, LayerOverride] = {}
    for form, names in forms.items():
        if _alike(entries[name] for name in names):
            template[form] = entries[names[0]]
        else:
            template |= {re.escape(name): entries[name] for name in names}
    return template


def _form(name: str) -> str:
    """Return a pattern for the name with its numbers left open. No other name's form matches it."""
    return r"[0-9]+".join(re.escape(part) for part in _NUMBER.split(name))


def _alike(entries: Iterable[LayerOverride]) -> bool:
    return len(set(entries)) == 1


def _chosen(step: Step, plan: Plan) -> bool:
    """Tell whether a layer has another algorithm than it would get by itself."""
    if step.format is None:
        return False
    return step.algorithm != default_algorithm(step.layer_name, step.format.rotation > 0, plan.calibration)


def _entry(step: Step, full_precision: bool, algorithm: bool) -> LayerOverride:
    if step.action == "keep":
        return LayerOverride(skip=True)
    if step.action == "cast":
        return LayerOverride(format=FLOAT16)
    form = step.format
    assert form is not None
    return LayerOverride(
        format=form.asked_as(),
        **form.words(),
        convrot=form.rotation > 0 if form.rotates else None,
        convrot_group_size=form.rotation or None,
        optimizer=step.algorithm if algorithm else None,
        full_precision_matrix_mult=form.full_precision_matrix_mult if full_precision else None,
    )
