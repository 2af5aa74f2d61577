"""Which pattern of the user's decides for which layer.

First --exclude-layers, then --custom-layers (both searched in the layer's name), then the patterns of
--layer-config in their order (matched against the whole name). The first that fits decides alone; where
none does, the model's preset and the options for all layers hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...formats.algorithms import ROUNDING
from ...formats.errors import ConversionError
from ..options.settings import Settings
from ..options.values import FLOAT16, closest
from .config import LayerOverride, compile_pattern, read_layer_config

_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")
_ANY_NUMBER = re.compile(r"(?:\\d|\[0-9\])(?:[+*?]|\{[^}]*\})?")
_PATTERN_SIGNS = re.compile(r"\\[AbBZ]|\\(?=\W)|\.[*+]\??|[][()^$*+?|{}]")


@dataclass(frozen=True)
class Rule:
    """One pattern, where it came from, and what it asks for the layers it matches.

    whole: it must match a whole name. heuristic: the option for which layers that INT8 makes no faster stay
    as they are though it asks for them; "" for none.
    """

    source: str
    pattern: str
    override: LayerOverride
    whole: bool = False
    heuristic: str = ""

    @property
    def where(self) -> str:
        """The pattern and its source, for reasons and messages."""
        return f"{self.source} {self.pattern!r}"

    def matches(self, layers: Iterable[str]) -> list[str]:
        """Return the layers that it fits. ConversionError when it is no regular expression."""
        compiled = compile_pattern(self.pattern, self.where)
        test = compiled.fullmatch if self.whole else compiled.search
        return [name for name in layers if test(name)]


@dataclass(frozen=True)
class LayerRules:
    """The deciding rule of each layer that has one, and lines worth telling a person."""

    by_layer: Mapping[str, Rule] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def layer_rules(settings: Settings, layers: Iterable[str]) -> LayerRules:
    """Find the deciding rule of every layer.

    layers: the names (without ``.weight``) of all layers that could be quantized. ConversionError, naming
    the nearest layer, for a pattern that matches none of them, and whatever `read_layer_config` raises.
    """
    names = dict.fromkeys(layers)
    by_layer: dict[str, Rule] = {}
    idle = []
    rules = _rules(settings)
    for rule in rules:
        found = _literal(rule, names) or rule.matches(names)
        if not found:
            raise ConversionError(_matches_nothing(rule, list(names)))
        fresh = [name for name in found if name not in by_layer]
        by_layer.update(dict.fromkeys(fresh, rule))
        if not fresh:
            idle.append(rule)
    notes = [f"{rule.where} changes nothing: earlier patterns decide for all its layers" for rule in idle]
    return LayerRules(by_layer, (*_counts(rules, by_layer), *notes))


def _rules(settings: Settings) -> list[Rule]:
    rules = []
    _require_fallback(settings)
    if settings.exclude_layers is not None:
        rules.append(Rule("--exclude-layers", settings.exclude_layers, LayerOverride(skip=True)))
    custom = _custom(settings)
    if custom is not None and settings.custom_layers is not None:
        heuristic = "--custom-heur" if settings.custom_heur else ""
        rules.append(Rule("--custom-layers", settings.custom_layers, custom, heuristic=heuristic))
    if settings.layer_config is not None:
        entries = read_layer_config(settings.layer_config)
        rules += [Rule("--layer-config", pattern, entry, whole=True) for pattern, entry in entries.items()]
    return rules


def _require_fallback(settings: Settings) -> None:
    given = {
        "--fallback-block-size": settings.fallback_block_size is not None,
        "--fallback-simple": settings.fallback_simple,
    }
    asked = [flag for flag, on in given.items() if on]
    if asked and settings.fallback is None:
        raise ConversionError(f"{asked[0]} needs --fallback FORMAT")


def _custom(settings: Settings) -> LayerOverride | None:
    """Gather what the --custom options ask. ConversionError where they contradict or name no layers."""
    given = {
        "--custom-type": settings.custom_type,
        "--custom-scaling-mode": settings.custom_scaling_mode,
        "--custom-block-size": settings.custom_block_size,
        "--custom-simple": settings.custom_simple or None,
        "--custom-convrot": settings.custom_convrot,
        "--custom-convrot-group-size": settings.custom_convrot_group_size,
        "--custom-heur": settings.custom_heur or None,
        "--custom-full-precision-mm": settings.custom_full_precision_mm or None,
    }
    asked = [flag for flag, value in given.items() if value is not None]
    if settings.custom_layers is None:
        if asked:
            raise ConversionError(f"{asked[0]} needs --custom-layers REGEX: the layers it is for")
        return None
    if settings.custom_type == FLOAT16 and asked != ["--custom-type"]:
        raise ConversionError(
            f"{asked[1]} does not apply to --custom-type {FLOAT16}, which has no integers; leave it out"
        )
    return LayerOverride(
        format=settings.custom_type or settings.format,
        scaling_mode=settings.custom_scaling_mode,
        block_size=settings.custom_block_size,
        convrot=settings.custom_convrot,
        convrot_group_size=settings.custom_convrot_group_size,
        optimizer=ROUNDING if settings.custom_simple else None,
        full_precision_matrix_mult=settings.custom_full_precision_mm or None,
    )


def _literal(rule: Rule, names: Mapping[str, None]) -> list[str]:
    """Return the one layer that an escaped name stands for: a template has thousands of them."""
    if not rule.whole:
        return []
    name = re.sub(r"\\(\W)", r"\1", rule.pattern)
    return [name] if name in names and re.escape(name) == rule.pattern else []


def _counts(rules: list[Rule], by_layer: Mapping[str, Rule]) -> list[str]:
    lines = []
    for source in dict.fromkeys(rule.source for rule in rules):
        layers = sum(rule.source == source for rule in by_layer.values())
        lines.append(f"{source} decides for {layers} layers")
    return lines


def _matches_nothing(rule: Rule, layers: list[str]) -> str:
    how = "must match a whole layer name" if rule.whole else "is searched in layer names"
    near = nearest_layer(rule.pattern, layers)
    hint = f"the nearest is {near!r}" if near else "this model has none"
    return f"{rule.where} matches no layer; it {how} (which end before .weight), and {hint}"


def nearest_layer(pattern: str, layers: list[str]) -> str:
    """Return the layer that a pattern most likely meant; "" where there is no layer.

    Names are compared with their numbers set aside first, then among those of the nearest form.
    """
    if not layers:
        return ""
    plain = pattern.removesuffix("$").removesuffix(r"\.weight").removesuffix(".weight")
    forms: dict[str, list[str]] = {}
    for name in layers:
        forms.setdefault(_NUMBER.sub("N", name), []).append(name)
    wanted = _PATTERN_SIGNS.sub("", _ANY_NUMBER.sub("0", plain))
    form = closest(re.sub("[0-9]+", "N", wanted), forms)
    return closest(wanted, forms[form])
