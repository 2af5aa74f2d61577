"""How an option is declared, and the values that several options share."""

from collections.abc import Iterable
from dataclasses import field
from difflib import SequenceMatcher
from math import isfinite
from typing import Any

from ...formats.algorithms import ALGORITHMS, canonical
from ...formats.choose import options, writable
from ...formats.convrot import GROUPS

FLOAT16 = "fp16"
"""What a layer can be stored as beside the formats."""


KEEP = "keep"
"""The word for layers that stay as they are in the input, where a format can be named."""


def option(default: Any, *flags: str, help: str, group: str, **argparse: Any) -> Any:
    """Declare a field of Settings: its default, its flags (the first is shown first), its help and topic."""
    return field(
        default=default, metadata={"flags": flags, "help": help, "group": group, "argparse": argparse}
    )


def closest(word: str, words: Iterable[str], least: float = 0.0) -> str:
    """Return the most similar of `words`, the first among equals; "" if none reaches `least` (0 to 1)."""
    matcher = SequenceMatcher(None, "", word)

    def similarity(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.ratio()

    near = max(words, key=similarity, default="")
    return near if similarity(near) >= least else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?``, or the names there are, for the end of a message."""
    names = list(known)
    near = closest(name, names, 0.5)
    return f"did you mean {near!r}?" if near else f"the names are: {', '.join(names)}"


def rotation_group(text: str | int) -> str | int:
    """Return a ConvRot group: "auto" or a power of four from 4 to 1024; else ValueError."""
    if text == "auto":
        return "auto"
    if str(text) not in [str(g) for g in GROUPS]:
        known = f"{', '.join(map(str, GROUPS[:-1]))} or {GROUPS[-1]}"
        raise ValueError(f"the ConvRot group size must be auto, {known}, not {text!r}")
    return int(text)


def switch(value: str | bool) -> bool:
    """Read on or off as people write it: true, 1, yes, on; false, 0, no, off; else ValueError."""
    text = str(value).lower()
    if text not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ValueError(f"true or false is expected, not {value!r}")
    return text in ("true", "1", "yes", "on")


def finite(value: str | float) -> float:
    """Return a number that is neither NaN nor infinite; else ValueError."""
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"a finite number is expected, not {value!r}")
    return number


def block_edge(value: str | int) -> int:
    """Return the edge of a block: a power of two from 16 to 1024; else ValueError."""
    edge = int(value)
    if not 16 <= edge <= 1024 or edge & (edge - 1):
        raise ValueError(f"the block size must be a power of two from 16 to 1024, not {value}")
    return edge


def algorithm_name(text: str) -> str:
    """Return the algorithm that a person named, by its name or an alias; ValueError names the nearest."""
    try:
        return canonical(text)
    except KeyError:
        raise ValueError(f"there is no algorithm {text!r}; {nearest(text, ALGORITHMS)}") from None


def format_name(text: str) -> str:
    """Return a value of ``--format``, or a format's name on disk; ValueError names the nearest."""
    if text not in writable():
        raise ValueError(f"there is no format {text!r}; {nearest(text, writable())}")
    return text


def stored_format(text: str) -> str:
    """Return what a layer is stored as: a format's option or name on disk, or fp16 (also float16)."""
    name = {"float16": FLOAT16, "f16": FLOAT16}.get(text, text)
    known = (*writable(), FLOAT16)
    if name not in known:
        raise ValueError(f"there is no format {text!r}; {nearest(text, known)}")
    return name


def plain_format(text: str) -> str:
    """Return a value of ``--format``, or fp16, for options whose granularity is set apart."""
    name, known = stored_format(text), (*options(), FLOAT16)
    if name not in known:
        raise ValueError(
            f"must be {' or '.join(known)}, not {text!r}; the scaling mode is an option of its own"
        )
    return name


def format_option(text: str) -> str:
    """Return a value of ``--format``; ValueError names the nearest."""
    if text not in options():
        raise ValueError(f"there is no format {text!r}; {nearest(text, options())}")
    return text


def largest_format(text: str) -> str:
    """Return a value of ``--format``, or "keep" for layers as they are; ValueError names the nearest."""
    return KEEP if text == KEEP else format_option(text)
