"""What an edit was asked to do, and how it is read from the command line's texts."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...formats.errors import ConversionError
from ...names.patterns import Pattern, PatternError


@dataclass(frozen=True)
class EditSettings:
    """One edit of a quantized file.

    remove_keys: names of tensors, and of keys in the layers' ``comfy_quant``. add_keys: keys to set there.
    quant_filter: a regular expression searched in layer names; keys are removed and set only where it is
    found. dequantize: the same for layers that become float weights again. save_quant_metadata: list the
    layers in the header too (always done when the input has the list). dry_run: say what would be done,
    and write nothing. overwrite: replace an output that exists.
    """

    input_file: str
    output_file: str | None = None
    remove_keys: tuple[str, ...] = ()
    add_keys: Mapping[str, Any] = field(default_factory=dict)
    quant_filter: str | None = None
    dequantize: str | None = None
    save_quant_metadata: bool = False
    dry_run: bool = False
    overwrite: bool = False


def parse_remove(text: str) -> tuple[str, ...]:
    """Split comma-separated names."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_add(text: str) -> dict[str, Any]:
    """Read a JSON object; the braces may be missing and the quotes may be single, as people type it.

    ValueError for anything else.
    """
    inner = text.strip()
    inner = inner if inner.startswith("{") else "{" + inner + "}"
    for candidate in (inner, inner.replace("'", '"')):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    raise ValueError(f'a JSON object is expected, like {{"convrot": true}}, not {text!r}')


def compile_filter(pattern: str | None, layers: Iterable[str], option: str = "--quant-filter") -> set[str]:
    """Return the layers that the filter of `option` selects, all where `pattern` is None.

    ConversionError for a bad expression or one that selects nothing, with the nearest layer name.
    """
    names = list(layers)
    if pattern is None:
        return set(names)
    try:
        compiled = Pattern(pattern)
    except PatternError as e:
        raise ConversionError(f"{option} {pattern!r}: {e}") from e
    found = {n for n in names if compiled.search(n)}
    if not found:
        hint = suggestion(pattern, names) or "the file has no quantized layers"
        raise ConversionError(f"{option} {pattern!r} matches none of {len(names)} layers; {hint}")
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?``; "" when there is nothing to suggest.

    Names end alike (``.weight``), so the nearest is the one closest in letters, whatever the distance.
    """
    known = list(known)
    if not known:
        return ""
    near = difflib.get_close_matches(name, known, 1, 0.3)
    return f"did you mean {near[0]!r}?" if near else f"there are, for example, {known[0]!r}"
