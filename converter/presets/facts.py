"""The shapes of the preset table: facts about a header, presets, variants, matches.

Nothing here reads a file or imports torch; a header is a mapping from tensor
name to shape. Names in facts and patterns are written without the prefix that a
checkpoint may put in front of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from .folds import BlockFolds

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fact:
    """One statement about a header: a tensor is there, is not there, or has a size."""

    op: Literal["has", "lacks", "dim", "ndim"]
    key: str
    axis: int = 0
    value: int = 0

    def holds(self, shapes: Shapes, prefix: str = "") -> bool:
        """Tell whether the statement is true of ``shapes`` when names carry ``prefix``."""
        shape = shapes.get(prefix + self.key)
        if self.op == "lacks":
            return shape is None
        if shape is None:
            return False
        if self.op == "dim":
            return self.axis < len(shape) and shape[self.axis] == self.value
        return self.op == "has" or len(shape) == self.value

    def text(self, prefix: str = "") -> str:
        """Return the statement in words, with the name as it stands in the file."""
        name = prefix + self.key
        if self.op == "dim":
            axis = {0: "rows", 1: "columns"}.get(self.axis, f"on axis {self.axis}")
            return f"{name} has {self.value} {axis}"
        return {"has": f"{name} present", "lacks": f"{name} absent", "ndim": f"{name} is {self.value}-D"}[
            self.op
        ]


def has(key: str) -> Fact:
    """State that the tensor is there."""
    return Fact("has", key)


def lacks(key: str) -> Fact:
    """State that the tensor is not there."""
    return Fact("lacks", key)


def dim(key: str, axis: int, value: int) -> Fact:
    """State that the tensor has this size on this axis."""
    return Fact("dim", key, axis, value)


def ndim(key: str, value: int) -> Fact:
    """State that the tensor has this many axes."""
    return Fact("ndim", key, value=value)


@dataclass(frozen=True)
class Naming:
    """One way the tensors of an architecture are named; ``facts`` must all hold.

    The first fact that needs a tensor to exist is the anchor: detection looks for
    that name at the end of the names in the file, which gives the prefix.
    """

    name: str
    facts: tuple[Fact, ...]

    @property
    def anchor(self) -> str:
        """The key of the first fact that needs its tensor to exist."""
        return next(fact.key for fact in self.facts if fact.op != "lacks")


@dataclass(frozen=True)
class Variant:
    """A release of an architecture that its header tells apart: any of ``ways`` holds."""

    name: str
    ways: tuple[tuple[Fact, ...], ...]

    def holds(self, shapes: Shapes, prefix: str = "") -> bool:
        """Tell whether all facts of one way are true of ``shapes`` when names carry ``prefix``."""
        return any(all(fact.holds(shapes, prefix) for fact in way) for way in self.ways)


@dataclass(frozen=True)
class Preset:
    """One architecture family: how to recognise it and which weights stay as they are.

    Patterns are regular expressions searched in the name without its prefix.
    A 2-D Linear weight is quantized when ``blocks`` matches and none of ``keep``
    (and, if asked, ``strict``) does. ``keep`` names the embedders and output layers
    as well, although ``blocks`` already leaves them out, so that the reason shown
    to the user can name them. ``remove`` lists tensors that the output drops.
    ``aliases`` are other names people type for it. ``stock_since`` is the first
    ComfyUI that reads a quantized file of it without a node pack, once it knows the
    model at all; "" if none does: it is then left as it is. ``folds`` says what
    stands before the inputs of its layers, by ComfyUI's names; ``fold_unasked`` that
    these are folded where nobody asks: in models onto which nobody loads LoRAs,
    for stock ComfyUI adds a LoRA to a folded file as to any other, which is wrong.
    """

    name: str
    title: str
    namings: tuple[Naming, ...]
    blocks: tuple[str, ...]
    keep: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    aliases: tuple[str, ...] = ()
    kind: Literal["diffusion", "text encoder"] = "diffusion"
    stock_since: str = "0.29"
    folds: tuple[BlockFolds, ...] = ()
    fold_unasked: bool = False


@dataclass(frozen=True)
class KeepSet:
    """Extra patterns a user can add by name to whatever was detected.

    The patterns are searched in the whole tensor name. Those of ``ends`` have a group for a block's number:
    the first and the last block that a file has of them are kept.
    """

    name: str
    title: str
    keep: tuple[str, ...]
    remove: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def within(self, names: Iterable[str]) -> KeepSet:
        """Return the set for a file of these tensor names: its ``ends`` as patterns of ``keep``."""
        found: dict[str, set[int]] = {}
        for name in names if self.ends else ():
            for match in (m for pattern in self.ends if (m := re.search(pattern, name))):
                found.setdefault(name[: match.start(1)], set()).add(int(match.group(1)))
        numbers = ((before, n) for before, blocks in found.items() for n in {min(blocks), max(blocks)})
        blocks = tuple(f"^{re.escape(before)}{n}\\." for before, n in sorted(numbers))
        return replace(self, keep=(*self.keep, *blocks), ends=())


@dataclass(frozen=True)
class Match:
    """A preset found in (a part of) a checkpoint.

    ``prefix`` is what stands before the preset's names there, ``evidence`` the
    facts that were found, as lines for the user. ``named``: the user named it, for a
    file that has not the facts: sizes may be others than the family's.
    """

    preset: Preset
    prefix: str = ""
    naming: str = "native"
    variant: str | None = None
    evidence: tuple[str, ...] = ()
    named: bool = False

    @property
    def label(self) -> str:
        """The most exact name the header allows: the variant, else the preset."""
        return self.variant or self.preset.name


@cache
def compiled(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    """Compile one expression that finds any of ``patterns``; None for an empty tuple."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None
