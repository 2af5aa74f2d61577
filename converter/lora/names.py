"""The checkpoint's layers, found by any name a LoRA file may use for them.

A LoRA names a layer as the checkpoint does, or with another prefix, or with underscores for dots (kohya),
or as diffusers does. All of these lead to one index made from the checkpoint's own names; a name that could
mean two layers is an error, never a guess.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ...formats.errors import ConversionError
from .aliases import ALIASES

_TE = frozenset({"te", "te1", "te2", "te3"})

# What a LoRA's prefix says of the part of the model it is for; an empty set: nothing.
_LORA_PREFIXES: tuple[tuple[str, frozenset[str]], ...] = (
    ("lora_unet_", frozenset({"model"})),
    ("lora_prior_unet_", frozenset({"model"})),
    ("lora_transformer_", frozenset({"model"})),
    ("lycoris_", frozenset({"model"})),
    ("lora_te1_", frozenset({"te", "te1"})),
    ("lora_te2_", frozenset({"te", "te2", "te3"})),  # the second encoder is CLIP-G or T5
    ("lora_te3_", frozenset({"te", "te3"})),
    ("lora_te_", _TE),
    ("base_model.model.", frozenset()),
    ("model.diffusion_model.", frozenset({"model"})),
    ("diffusion_model.", frozenset({"model"})),
    ("transformer.", frozenset({"model"})),
    ("unet.", frozenset({"model"})),
    ("pipe.dit.", frozenset({"model"})),
    ("text_encoder_2.", frozenset({"te", "te2", "te3"})),
    ("text_encoder_3.", frozenset({"te", "te3"})),
    ("text_encoder.", frozenset({"te", "te1"})),
    ("module.", frozenset()),
    ("model.", frozenset()),
    ("net.", frozenset()),
)

_FLATTENED = tuple(prefix for prefix, _ in _LORA_PREFIXES if prefix.endswith("_"))

# Prefixes of layers in checkpoints, and which part they are; "" where the prefix does not tell.
_CHECKPOINT_PREFIXES: tuple[tuple[str, str], ...] = (
    (r"model\.diffusion_model\.", "model"),
    (r"diffusion_model\.", "model"),
    (r"text_encoders\.clip_l\.(?:transformer\.)?", "te1"),
    (r"text_encoders\.clip_g\.(?:transformer\.)?", "te2"),
    (r"text_encoders\.t5xxl\.(?:transformer\.)?", "te3"),
    (r"text_encoders\.[^.]+\.(?:transformer\.)?", "te"),
    (r"(?:conditioner\.embedders\.0|cond_stage_model)\.transformer\.", "te1"),
    (r"conditioner\.embedders\.1\.(?:model\.|transformer\.)?", "te2"),
    (r"transformer\.", ""),
    (r"unet\.", ""),
    (r"net\.", ""),
    (r"module\.", ""),
    (r"model\.", ""),
)
_PREFIX = [(re.compile(pattern), part) for pattern, part in _CHECKPOINT_PREFIXES]
_NUMBER = re.compile(r"(?<![^_])\d+(?![^_])")
_NOT_LAYERS = (".bias", ".weight_scale", ".scale_weight", ".input_scale", ".scale_input", ".comfy_quant")


@dataclass(frozen=True)
class Place:
    """A layer of the checkpoint under one of its names.

    layer: its own name, without ``.weight``. rows: which of its rows, by a name in `aliases.ROWS`.
    part: "model", "te", "te1", "te2", "te3", or "" where the checkpoint does not tell.
    """

    layer: str
    rows: str = ""
    part: str = ""


def normal(name: str) -> str:
    """A name as kohya writes it: underscores for dots."""
    return name.replace(".", "_")


class LayerIndex:
    """Every layer of a checkpoint by every name. names: its tensors' names."""

    def __init__(self, names: Mapping[str, object]):
        self._exact: dict[str, set[Place]] = {}
        self._normal: dict[str, set[Place]] = {}
        self._aliased: dict[str, set[Place]] = {}
        for name in names:
            if name.endswith(_NOT_LAYERS):
                continue
            layer = name.removesuffix(".weight")
            forms = list(_forms(layer))
            part = next((part for _, part in forms if part), "")
            place = Place(layer, part=part)
            for form, _ in forms:
                self._exact.setdefault(form, set()).add(place)
                self._normal.setdefault(normal(form), set()).add(place)
                for alias, rows in _aliases_of(normal(form)):
                    self._aliased.setdefault(alias, set()).add(Place(layer, rows, part))

    def find(self, module: str) -> Place | None:
        """The layer that a LoRA calls `module`; None when there is none.

        ConversionError when the name fits more than one layer.
        """
        for form, parts in _readings(module):
            plain = normal(form)
            # Below a kohya prefix an underscore may have been a dot: no spelling is the exact one.
            exact = None if module.startswith(_FLATTENED) and "." not in form else self._exact.get(form)
            for places in (exact, self._normal.get(plain), self._aliased.get(plain)):
                found = [p for p in places or () if not parts or not p.part or p.part in parts]
                if len(found) > 1:
                    layers = " and ".join(sorted(repr(p.layer) for p in found))
                    raise ConversionError(f"LoRA module {module!r} fits more than one layer: {layers}")
                if found:
                    return found[0]
        return None

    def nearest(self, module: str) -> str:
        """The layer whose name is most like `module`'s, "" for an empty checkpoint."""
        wanted = normal(list(_readings(module))[-1][0])
        near = difflib.get_close_matches(wanted, self._normal, 1, 0.0)
        return min(self._normal[near[0]], key=lambda p: p.layer).layer if near else ""


def _forms(layer: str) -> Iterator[tuple[str, str]]:
    """A layer's own name and what is left of it without known prefixes, with the part each tells."""
    yield layer, ""
    for pattern, part in _PREFIX:
        found = pattern.match(layer)
        if found and found.end() < len(layer):
            rest = layer[found.end() :]
            yield rest, part
            yield from ((form, part or inner) for form, inner in _forms(rest) if form != rest)
            return


def _readings(module: str) -> Iterator[tuple[str, frozenset[str]]]:
    """A LoRA module's name and what is left of it without known prefixes, longest first."""
    parts: frozenset[str] = frozenset()
    known = True
    while known:
        known = False
        for prefix, told in _LORA_PREFIXES:
            if module.startswith(prefix) and len(module) > len(prefix):
                yield module, parts | told
                module, parts, known = module[len(prefix) :], parts | told, True
                break
    yield module, parts


@cache
def _alias_table() -> dict[str, list[tuple[str, str]]]:
    table: dict[str, list[tuple[str, str]]] = {}
    for diffusers, ours, rows in ALIASES:
        table.setdefault(normal(ours), []).append((normal(diffusers), rows))
    return table


def _aliases_of(layer: str) -> Iterator[tuple[str, str]]:
    """(alias, rows) of a layer by its normal name. Only the first number is the block's."""
    table = _alias_table()
    for alias, rows in table.get(layer, ()):
        yield alias, rows
    number = _NUMBER.search(layer)
    if number:
        template = f"{layer[: number.start()]}N{layer[number.end() :]}"
        for alias, rows in table.get(template, ()):
            yield alias.replace("_N_", f"_{number.group()}_"), rows
