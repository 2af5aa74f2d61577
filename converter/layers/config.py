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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...files.regular import parse_json, read_text
from ...files.schema import record, text, truth, whole
from ...formats.choose import DEFAULT, chosen, granularity_name
from ...formats.config import shown
from ...formats.errors import CheckpointError, ConversionError
from ...names.patterns import Pattern, PatternError
from ..options.values import FLOAT16, algorithm_name, block_edge, rotation_group, stored_format


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
    where = f"--layer-config {path}"
    try:
        found = parse_json(read_text(path), where, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except CheckpointError as e:
        raise ConversionError(_from_option(e, where)) from e
    if not isinstance(found, dict):
        raise ConversionError(f"{where}: an object of patterns is expected, not {shown(found)}")
    return {
        pattern: _override(pattern, entry, f"{where}: {pattern!r:.200}") for pattern, entry in found.items()
    }


def _from_option(error: CheckpointError, where: str) -> str:
    """Return an error's text so that it begins with the option that named the file."""
    text = str(error)
    return text if text.startswith(where) else f"--layer-config {text}"


def write_layer_config(entries: dict[str, LayerOverride]) -> str:
    """Write the text of a layer configuration: one pattern per line, for people to edit."""
    lines = [
        f"  {json.dumps(pattern, ensure_ascii=False)}: {json.dumps(entry.to_json())}"
        for pattern, entry in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def compile_pattern(pattern: str, where: str) -> Pattern:
    """Compile an expression; ConversionError names `where` it came from, and the place of the fault."""
    try:
        return Pattern(pattern)
    except PatternError as e:
        raise ConversionError(f"{where}: {e}") from e


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise CheckpointError(f"{where}: {twice!r:.200} stands twice in one object")
    return found


def _override(pattern: str, entry: Any, where: str) -> LayerOverride:
    if not isinstance(entry, dict):
        raise ConversionError(f"{where}: an object with settings is expected, not {shown(entry)}")
    if pattern == "_default":
        raise ConversionError(
            f"{where}: what holds for all layers are options of the command line; remove it"
        )
    if {"optimizer", "algorithm"} <= entry.keys():
        raise ConversionError(f"{where}: 'optimizer' and 'algorithm' are one field; give one of them")
    values = _ENTRY(entry, where)
    if "algorithm" in values:
        values["optimizer"] = values.pop("algorithm")
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


_ENTRY = record(
    {
        "format": text(stored_format),
        "scaling_mode": text(granularity_name),
        "block_size": whole(block_edge),
        "convrot": truth(),
        "convrot_group_size": whole(rotation_group, "auto"),
        "optimizer": text(algorithm_name),
        "algorithm": text(algorithm_name),
        "skip": truth(),
        "full_precision_matrix_mult": truth(),
    }
)
"""One entry of the file."""
