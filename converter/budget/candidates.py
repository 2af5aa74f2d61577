"""The ways in which each layer could be stored, for a choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.header import OutputTensor
from ...formats.choose import mixable
from ...formats.errors import ConversionError
from ..layers.rules import layer_rules
from ..options.settings import Settings
from ..options.values import KEEP
from ..plan.build import build_plan, layer_names
from ..plan.naming import name_for_output
from ..plan.steps import Plan, Step


@dataclass(frozen=True)
class Candidate:
    """A layer and the ways to store it, smallest plan first.

    formats: a format's name for each way, or "keep". steps: what each does.
    """

    name: str
    formats: tuple[str, ...]
    steps: tuple[Step, ...]


def candidates(checkpoint: Checkpoint, settings: Settings) -> tuple[list[Candidate], Plan]:
    """Return every layer to quantize with its ways, and the plan in which all have the smallest format.

    The ways are the formats that mix with the settings' (`formats.choose.mixable`) and that these allow,
    within their bounds; ways that store a layer alike are one. ConversionError where the bounds leave no
    format.
    """
    plain = replace(settings, target_size=None, min_format=None, max_format=None)
    plans = {settings.format: build_plan(checkpoint, plain)}
    for name in mixable(settings.format):
        with suppress(ConversionError):  # a format that these settings rule out, as --no-convrot does
            plans[name] = build_plan(checkpoint, replace(plain, format=name))
    allowed = _allowed({name: plan.output_bytes for name, plan in plans.items()}, settings)
    ways: dict[str, dict[str, Step]] = {}
    for name in allowed:
        for step in plans[name].quantized:
            known = ways.setdefault(step.layer_name, {})
            if all(step.format != other.format for other in known.values()):
                known[name] = step
    if settings.max_format == KEEP:
        named = name_for_output(checkpoint, settings).checkpoint
        rules = layer_rules(settings, layer_names(named)).by_layer
        for layer, steps in ways.items():
            if layer not in rules or rules[layer].override.format is None:
                steps[KEEP] = _kept(next(iter(steps.values())).source)
    found = [Candidate(layer, tuple(steps), tuple(steps.values())) for layer, steps in ways.items()]
    return found, plans[allowed[0]]


def _allowed(sizes: Mapping[str, int], settings: Settings) -> Sequence[str]:
    """Return the formats within the bounds, smallest first."""
    for flag, name in (("--min-format", settings.min_format), ("--max-format", settings.max_format)):
        if name not in (None, KEEP, *sizes):
            raise ConversionError(
                f"{flag} {name}: with --format {settings.format} the formats to choose from are "
                f"{', '.join(sorted(sizes, key=lambda n: sizes[n]))}"
            )
    low = sizes.get(settings.min_format or "", 0)
    high = sizes.get(settings.max_format or "", max(sizes.values()))
    allowed = sorted((n for n in sizes if low <= sizes[n] <= high), key=lambda n: (sizes[n], n))
    if not allowed:
        raise ConversionError(
            f"--min-format {settings.min_format} is larger than --max-format {settings.max_format}"
        )
    return allowed


def _kept(source: TensorInfo) -> Step:
    return Step(source, "keep", "", (OutputTensor(source.name, source.dtype, source.shape),))
