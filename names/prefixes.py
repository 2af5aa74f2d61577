"""Prefixes: what stands before a layer's own name, and who puts it there.

One table. Who uses it says which of its prefixes apply: a checkpoint puts one before all names of a model
(`CHECKPOINT`), programs that run or train a model put theirs before the names they report (`RUNNING`), and
makers of LoRA files add what says which part of a model a LoRA is for (`lora_readings`).
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Prefix(NamedTuple):
    """One prefix.

    places: where it is met: "checkpoint", "running", "lora". part: the part of an all-in-one checkpoint that
    it tells of, "" where it tells nothing. parts: the parts that it tells of in a LoRA file, empty likewise.
    """

    text: str
    places: str
    part: str = ""
    parts: str = ""


_PREFIXES = (
    # Before all names of one model. In order of preference, and a longer one before its own beginning.
    Prefix("model.diffusion_model.", "checkpoint running lora", "model", "model"),
    Prefix("diffusion_model.", "checkpoint running lora", "model", "model"),
    Prefix("transformer.", "checkpoint running lora", "", "model"),
    Prefix("model.", "checkpoint running lora"),
    Prefix("net.", "checkpoint running lora"),
    Prefix("unet.", "checkpoint running lora", "", "model"),
    Prefix("module.", "checkpoint running lora"),
    # Around a model while it runs: torch.compile, PEFT, and the libraries of text encoders.
    Prefix("_orig_mod.", "running"),
    Prefix("base_model.model.", "running lora"),
    Prefix("base_model.", "running"),
    Prefix("text_model.", "running"),
    Prefix("text_encoder.", "running lora", "", "te te1"),
    Prefix("0.auto_model.", "running"),
    Prefix("auto_model.", "running"),
    Prefix("bert.", "running"),
    # In LoRA files only.
    Prefix("text_encoder_2.", "lora", "", "te te2 te3"),
    Prefix("text_encoder_3.", "lora", "", "te te3"),
    Prefix("pipe.dit.", "lora", "", "model"),
    # kohya's, which flatten what follows: an underscore there may have been a dot.
    Prefix("lora_unet_", "lora", "", "model"),
    Prefix("lora_prior_unet_", "lora", "", "model"),
    Prefix("lora_transformer_", "lora", "", "model"),
    Prefix("lycoris_", "lora", "", "model"),
    Prefix("lora_te1_", "lora", "", "te te1"),
    Prefix("lora_te2_", "lora", "", "te te2 te3"),  # the second encoder is CLIP-G or T5
    Prefix("lora_te3_", "lora", "", "te te3"),
    Prefix("lora_te_", "lora", "", "te te1 te2 te3"),
)

_COMPONENTS = (
    (r"text_encoders\.clip_l\.(?:transformer\.)?", "te1"),
    (r"text_encoders\.clip_g\.(?:transformer\.)?", "te2"),
    (r"text_encoders\.t5xxl\.(?:transformer\.)?", "te3"),
    (r"text_encoders\.[^.]+\.(?:transformer\.)?", "te"),
    (r"(?:conditioner\.embedders\.0|cond_stage_model)\.transformer\.", "te1"),
    (r"conditioner\.embedders\.1\.(?:model\.|transformer\.)?", "te2"),
)
"""What stands before the text encoders of an all-in-one checkpoint, and which part each is."""


def _at(place: str) -> tuple[Prefix, ...]:
    return tuple(p for p in _PREFIXES if place in p.places.split())


CHECKPOINT = ("", *(p.text for p in _at("checkpoint")))
"""What checkpoints put before all names of a model, in order of preference; nothing is one of them."""

DIFFUSION_MODEL = tuple(p.text for p in _at("checkpoint") if p.parts == "model")
"""Those of `CHECKPOINT` that stand before diffusion models."""

RUNNING = tuple(p.text for p in _at("running"))
"""What loaders, trainers and wrappers put before a layer's name, in any order and number."""

_LORA = tuple((p.text, frozenset(p.parts.split())) for p in _at("lora"))
_FLATTENED = tuple(text for text, _ in _LORA if text.endswith("_"))
_BEFORE_LAYERS = tuple(
    (re.compile(pattern), part)
    for pattern, part in (*_COMPONENTS, *((re.escape(p.text), p.part) for p in _at("checkpoint")))
)


def prefix_of(name: str, prefixes: Iterable[str]) -> str:
    """Return the first of `prefixes` that stands before something in `name`, or ""."""
    return next((p for p in prefixes if p and name.startswith(p) and len(name) > len(p)), "")


def strip(name: str, prefixes: Iterable[str]) -> str:
    """Return `name` without any of `prefixes`, however many stand before it."""
    prefixes = tuple(prefixes)
    while prefix := prefix_of(name, prefixes):
        name = name[len(prefix) :]
    return name


def checkpoint_forms(layer: str) -> Iterator[tuple[str, str]]:
    """Yield a layer's name in a checkpoint and what is left of it without known prefixes, longest first.

    Each with the part of an all-in-one checkpoint that is known by then: "model", "te", "te1", "te2", "te3",
    or "".
    """
    yield layer, ""
    for pattern, part in _BEFORE_LAYERS:
        found = pattern.match(layer)
        if found and found.end() < len(layer):
            rest = layer[found.end() :]
            yield rest, part
            yield from ((form, part or inner) for form, inner in checkpoint_forms(rest) if form != rest)
            return


def lora_readings(module: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield a LoRA module's name and what is left of it without known prefixes, longest first.

    Each with the parts of a model that it may be for; empty where the prefixes do not tell.
    """
    parts: frozenset[str] = frozenset()
    known = True
    while known:
        known = False
        for prefix, told in _LORA:
            if module.startswith(prefix) and len(module) > len(prefix):
                yield module, parts | told
                module, parts, known = module[len(prefix) :], parts | told, True
                break
    yield module, parts


def is_flattened(module: str) -> bool:
    """Return whether a LoRA module's name has a prefix of kohya's, below which dots became underscores."""
    return module.startswith(_FLATTENED)
