"""Which tensors of a checkpoint are quantized, from names and shapes alone.

A file that holds a known model follows that model's preset. Any other file follows
one general rule: 2-D weights inside the model's repeated, numbered blocks are
quantized; everything outside them and every norm, embedding, bias, 1-D or tiny
tensor keeps its precision and its bytes; a model without repeated blocks has all
its Linear weights quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

from ...formats import Format
from ..presets import NEVER, KeepSet, Match, Preset, Shapes, compiled, keep_set
from .blocks import Blocks, find_blocks

# Smaller layers save nothing worth their error; the published files leave them alone.
MIN_SIDE = 64
MIN_ELEMENTS = 16_384

_NORM = re.compile(r"(?:^|_)(?:layer_?norm|rms_?norm|group_?norm|norm|ln)(?:\d*$|_)|(?:norm|Norm)\d*$")
_EMBEDDING = re.compile(
    r"(?:^|_)(?:embed|embeds|embd|embedding|embeddings)$|^embed_|^(?:wte|wpe|shared|tok_embeddings)$"
    r"|^(?:relative_attention_bias|trainable_cond_mask)$|_table$"
)
_VOCABULARY = re.compile(r"^(?:embed_tokens|shared|tok_embeddings|word_embeddings|wte)$")
# UNets project the time embedding anew in every block.
_TIME_PROJECTION = re.compile(r"(?:^|\.)(?:emb_layers|time_emb_proj)\.")
# Per-block modulation, as the models known so far name it.
_MODULATION = compiled(
    (
        r"modulation",
        r"(?i:ada_?ln)",
        r"_mod\.",
        r"\.mod(?:C|X|CX|_x|_y)?\.",
        r"norm\d?(?:_context)?\.linear(?:_\d)?\.",
    )
)


@dataclass(frozen=True)
class Decision:
    """What happens to one tensor, and why, in words for the user.

    action: "quantize" it as `format` with `algorithm`, "cast" it to `dtype` (as files name it), "keep" its
    bytes or "remove" it.
    The preset and the general rule leave the format open (None); `choice.choose` fills it in. algorithm: the
    layer's own, "" where the one for all layers counts.
    """

    action: Literal["quantize", "cast", "keep", "remove"]
    reason: str
    format: Format | None = None
    algorithm: str = ""
    dtype: str = "F16"


def select(
    shapes: Shapes,
    matches: Sequence[Match] = (),
    strict: bool = False,
    keep_sets: Iterable[str | KeepSet] = (),
    force: bool = False,
    embeddings: bool = False,
) -> dict[str, Decision]:
    """Decide for every tensor of a header, in the order of the header.

    shapes: tensor name -> shape. matches: the presets found in the file
    (``presets.detect``); with any, only the parts under their prefixes are
    quantized, each by its own preset, and a tensor belongs to the longest prefix
    that it starts with. Without, the general rule holds for the whole file.
    strict: per-block modulation, and what else a preset lists as strict, is kept too.
    keep_sets: extra sets to keep, by name or as KeepSet, whatever else holds.
    force: quantize also models that stock ComfyUI reads no quantized file of. embeddings: quantize vocabulary
    tables, in whatever format.

    A VAE, vocoder or projection part of an all-in-one file is never quantized.
    Raises ValueError for a keep-set that does not exist.
    """
    named = (keep_set(item) if isinstance(item, str) else item for item in keep_sets)
    extra = tuple(item.within(shapes) for item in named)
    by_prefix = sorted(matches, key=lambda match: -len(match.prefix))
    experts = {name.split(".experts.")[0] for name in shapes if ".experts." in name}
    blocks = None if matches else _blocks(shapes, experts)
    decisions = {}
    for name, shape in shapes.items():
        match = next((match for match in by_prefix if name.startswith(match.prefix)), None)
        decisions[name] = (
            _removed(name, match, extra)
            or _not_a_linear(name, shape)
            or (_vocabulary(name, match, extra, force) if embeddings else None)
            or _kept_by_name(name, match, extra, strict)
            or (None if force else _not_read(match))
            or _unfit(name, shape, experts)
            or (_general(name, blocks, strict) if blocks is not None else _by_preset(name, match))
        )
    return decisions


def could_be_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor may be a Linear's weight: 2-D, no table, norm or part that stays as it is.

    A bank of experts counts as well.

    These are the layers that a user's pattern can name, whether or not the model's preset keeps them.
    """
    last = name.removesuffix(".weight").rpartition(".")[2]
    named_otherwise = _EMBEDDING.search(last) or _NORM.search(last)
    return _not_a_linear(name, shape) is None and not named_otherwise


def is_bank(name: str, shape: tuple[int, ...]) -> bool:
    """Tell a mixture's weights of all experts in one tensor [E, N, K]: ``mlp.experts.down_proj.weight``."""
    return len(shape) == 3 and ".experts." in name


def names_vocabulary(module: str) -> bool:
    """Tell whether a module's name is that of a table with a row per token."""
    return _VOCABULARY.search(module.rpartition(".")[2]) is not None


def names_embedding(module: str) -> bool:
    """Tell whether a module's name is that of a table of embeddings."""
    return _EMBEDDING.search(module.rpartition(".")[2]) is not None


def _blocks(shapes: Shapes, experts: set[str]) -> Blocks:
    return find_blocks(
        {
            name: prod(shape)
            for name, shape in shapes.items()
            if _not_a_linear(name, shape) is None and _unfit(name, shape, experts) is None
        }
    )


@cache
def _keep(reason: str) -> Decision:
    return Decision("keep", reason)


@cache
def _quantize(reason: str) -> Decision:
    return Decision("quantize", reason)


def _removed(name: str, match: Match | None, extra: tuple[KeepSet, ...]) -> Decision | None:
    if match is not None and _search(match.preset.remove, name[len(match.prefix) :]):
        return Decision("remove", f"not used: {match.preset.title} is read as an encoder only")
    for item in extra:
        if _search(item.remove, name):
            return Decision("remove", f"removed by {item.name}")
    return None


def _not_a_linear(name: str, shape: tuple[int, ...]) -> Decision | None:
    """Say why a tensor cannot be the weight of a Linear, if it cannot."""
    module, _, kind = name.rpartition(".")
    if kind == "bias":
        return _keep("bias")
    if len(shape) < 2 or kind != "weight":
        if _NORM.search(module.rpartition(".")[2]):
            return _keep("norm")
        return _keep("1-D" if len(shape) == 1 else "scalar" if not shape else f"not a weight: {kind}")
    if len(shape) > 2 and not is_bank(name, shape):
        return _keep(f"not 2-D ({len(shape)}-D)")
    if NEVER.match(name):
        return _keep(f"{name.partition('.')[0]} part")
    return None


def _kept_by_name(
    name: str, match: Match | None, extra: tuple[KeepSet, ...], strict: bool
) -> Decision | None:
    if match is not None:
        inner = name[len(match.prefix) :]
        if found := _search(match.preset.keep, inner):
            return _keep(f"kept by preset {match.preset.name}: {found}")
        if strict and (found := _search(match.preset.strict, inner)):
            return _keep(f"kept by strict {match.preset.name}: {found}")
    for item in extra:
        if found := _search(item.keep, name):
            return _keep(f"kept by {item.name}: {found}")
    return None


def _vocabulary(name: str, match: Match | None, extra: tuple[KeepSet, ...], force: bool) -> Decision | None:
    """Quantize a vocabulary table, whatever the preset says, unless the user keeps it or ComfyUI takes its
    integers for weights."""
    asked_to_keep = any(_search(item.keep, name) for item in extra)
    if not names_vocabulary(name.removesuffix(".weight")) or asked_to_keep:
        return None
    return (None if force else _not_read(match)) or _quantize("--embeddings")


def _not_read(match: Match | None) -> Decision | None:
    return None if match is None or match.preset.stock_since else _keep(not_read(match.preset))


def not_read(preset: Preset) -> str:
    """Return why a model without `stock_since` is left as it is."""
    return f"stock ComfyUI reads no quantized {preset.title} and shows noise (--force quantizes it)"


def _unfit(name: str, shape: tuple[int, ...], experts: set[str]) -> Decision | None:
    """Say why the ``.weight`` of a Linear or a bank is left alone in any model, if it is."""
    module = name.removesuffix(".weight")
    parent, _, last = module.rpartition(".")
    if _EMBEDDING.search(last) or _TIME_PROJECTION.search(name):
        return _keep("embedding")
    if last == "lm_head":
        return _keep("output head")
    if _NORM.search(last):
        return _keep("norm")
    if last == "router" or (last == "gate" and parent in experts):
        return _keep("router")
    rows, columns = shape[-2:]
    if min(rows, columns) < MIN_SIDE or rows * columns < MIN_ELEMENTS:
        return _keep(f"too small ({rows}x{columns})")
    return None


def _general(name: str, blocks: Blocks, strict: bool) -> Decision:
    if not blocks.lists:
        return _quantize("Linear; the model has no repeated blocks")
    found = blocks.member.get(name)
    if found is None:
        return _keep("outside the repeated blocks")
    if strict and _MODULATION is not None and (modulation := _MODULATION.search(name, len(found))):
        return _keep(f"kept by strict: {modulation.group().strip('.')}")
    return _quantize(f"block of {found}")


def _by_preset(name: str, match: Match | None) -> Decision:
    if match is None:
        return _keep("outside the recognised models")
    if found := _search(match.preset.blocks, name[len(match.prefix) :]):
        return _quantize(f"{match.preset.name} block: {found}")
    return _keep("outside the repeated blocks")


def _search(patterns: tuple[str, ...], name: str) -> str:
    """Return what the first of ``patterns`` to be found matched in ``name``, without outer dots."""
    pattern = compiled(patterns)
    found = pattern.search(name) if pattern is not None else None
    return found.group().strip(".") if found else ""
