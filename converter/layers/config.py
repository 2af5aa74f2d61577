r"""The layer configuration: a JSON file that says, by patterns on layer names, how layers are stored.

::

    {
      "blocks\\.0\\..*":         {"skip": true},
      "blocks\\.\\d+\\.mlp\\..*": {"format": "int8_blockwise", "block_size": 64},
      ".*\\.qkv":               {"convrot_group_size": 64, "optimizer": "ldlq"}
    }

A key is a regular expression that must match a *whole* layer name: the weight's name without ``.weight``,
prefix included (Python's ``re.fullmatch``). The first pattern that matches a layer decides for it alone;
later ones are not mixed in. A field that is left out has the value the command line gives. ``format``
stores the layer so even where the model's preset would keep it, and so does ``"skip": false``; an entry
with neither only changes *how* a layer is quantized, not *whether*.

fields: ``format`` as ``--format``, a name in ``comfy_quant``, or fp16; ``scaling_mode`` as the option;
``block_size``; ``convrot``; ``convrot_group_size`` a number or "auto"; ``optimizer`` (also ``algorithm``)
one of `formats.algorithms`; ``skip`` keeps the layer as it is, whatever else stands beside it;
``full_precision_matrix_mult`` is written into comfy_quant, where ComfyUI ignores it for INT8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...formats.choose import DEFAULT, chosen, granularity_name
from ...formats.errors import ConversionError
from ..options.values import FLOAT16, algorithm_name, block_edge, nearest, rotation_group, stored_format


@dataclass(frozen=True)
class LayerOverride:
    """What is asked for some layers; None where nothing is asked. See the module for the meanings."""

    format: str | None = None
    scaling_mode: str | None = None
    block_size: int | None = None
    convrot: bool | None = None
    convrot_group_size: str | int | None = None
    optimizer: str | None = None
    skip: bool | None = None
    full_precision_matrix_mult: bool | None = None

    @property
    def decides(self) -> bool:
        """Tell whether its layers are to be stored in a format, also those that would be kept."""
        return self.format is not None or self.skip is False

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


def read_layer_config(path: str | Path) -> dict[str, LayerOverride]:
    """Read the patterns of a layer configuration file, in its order.

    ConversionError, naming the file, the pattern and the nearest valid name, for a file that is not such a
    JSON object, a pattern that stands twice or is no regular expression, an unknown field, or a value
    that a field cannot have.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise ConversionError(f"--layer-config {path}: cannot be read: {reason}") from e
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except ValueError as e:
        raise ConversionError(f"--layer-config {path}: not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise ConversionError(f"--layer-config {path}: an object of patterns is expected, not {found!r:.60}")
    where = f"--layer-config {path}"
    return {pattern: _override(entry, f"{where}: {pattern!r}") for pattern, entry in found.items()}


def write_layer_config(entries: dict[str, LayerOverride]) -> str:
    """Write the text of a layer configuration: one pattern per line, for people to edit."""
    lines = [
        f"  {json.dumps(pattern, ensure_ascii=False)}: {json.dumps(entry.to_json())}"
        for pattern, entry in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """Compile an expression; ConversionError names `where` it came from, and the place of the fault."""
    try:
        return re.compile(pattern)
    except re.error as e:
        at = f" at character {e.pos + 1}" if e.pos is not None else ""
        raise ConversionError(f"{where}: not a regular expression: {e.msg}{at}") from e


def _unique(pairs: list[tuple[str, Any]], path: str | Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConversionError(f"--layer-config {path}: {twice!r} stands twice in one object")
    return found


def _override(entry: Any, where: str) -> LayerOverride:
    if not isinstance(entry, dict):
        raise ConversionError(f"{where}: an object with settings is expected, not {entry!r}")
    values: dict[str, Any] = {}
    for given, value in entry.items():
        name = {"algorithm": "optimizer"}.get(given, given)
        if name not in _CHECKS:
            raise ConversionError(f"{where}: there is no field {given!r}; {nearest(given, _CHECKS)}")
        if name in values:
            raise ConversionError(f"{where}: 'optimizer' and 'algorithm' are one field; give one of them")
        try:
            values[name] = _CHECKS[name](value)
        except (ValueError, TypeError) as e:
            raise ConversionError(f"{where}: {given}: {e}") from e
    override = LayerOverride(**values)
    if contradiction := _contradiction(override):
        raise ConversionError(f"{where}: {contradiction}")
    return override


def _contradiction(asked: LayerOverride) -> str:
    """Say what in one entry cannot hold together, "" if all can."""
    if asked.format == FLOAT16 or not (asked.format or asked.scaling_mode):
        return ""
    try:
        form = chosen(asked.format or DEFAULT, asked.scaling_mode)
    except ValueError as e:
        return str(e)
    rotated = asked.convrot or (asked.convrot is None and asked.convrot_group_size is not None)
    named = asked.format != DEFAULT or asked.scaling_mode
    if named and rotated and not form.rotates:
        return f"{form.name} has no rotation; leave convrot out"
    return ""


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _text(check: Callable[[str], str]) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be a text, not {value!r}")
        return check(value)

    return checked


def _whole(check: Callable[[Any], Any], *words: str) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if value not in words and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"must be a whole number{''.join(f' or {w}' for w in words)}, not {value!r}")
        return check(value)

    return checked


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "format": _text(stored_format),
    "scaling_mode": _text(granularity_name),
    "block_size": _whole(block_edge),
    "convrot": _truth,
    "convrot_group_size": _whole(rotation_group, "auto"),
    "optimizer": _text(algorithm_name),
    "skip": _truth,
    "full_precision_matrix_mult": _truth,
}
