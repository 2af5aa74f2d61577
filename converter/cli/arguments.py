"""A conversion's command line, as typed options: what is said on it, over what a recipe says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...files.regular import parse_json, read_text
from ...formats.errors import ConversionError
from ..options.command import CommandOptions
from ..options.recipe import read_recipe
from ..options.settings import Settings
from ..options.translate import translated
from .parser import ConvertParser

_MOST = 1 << 20
"""Bytes that a recipe file may have: one with every option has some thousand."""


@dataclass(frozen=True)
class Arguments:
    """What a command line says. inputs: all models, of which settings name the first. notes: for the user."""

    settings: Settings
    command: CommandOptions
    inputs: list[str]
    notes: list[str]


def parsed(parser: ConvertParser, argv: Sequence[str]) -> Arguments:
    """Parse a command line. SystemExit(2), with the reason, for a wrong one; ConversionError for a recipe."""
    given = vars(parser.parse_args(argv))
    peer, inputs = given.pop("peer", {}), given.pop("input_file")
    try:
        values, notes = translated(peer, given)
        command = CommandOptions(
            **{f.name: values.pop(f.name) for f in fields(CommandOptions) if f.name in values}
        )
    except ValueError as e:
        parser.error(str(e))
    recipe = recipe_in(command.recipe) if command.recipe else {}
    try:
        settings = Settings(input_file=inputs[0], **{**recipe, **values})
    except ValueError as e:
        parser.error(str(e))
    return Arguments(settings, command, inputs, notes)


def recipe_in(path: str) -> dict[str, Any]:
    """Return the options in a recipe file: JSON where its name ends with .json, else YAML.

    ConversionError, naming the file, for what is no recipe or too large for one, and where no package reads
    YAML.
    """
    text = read_text(path, _MOST)
    if path.endswith(".json"):
        return read_recipe(parse_json(text, path), path)
    try:
        import yaml
    except ImportError:
        raise ConversionError(
            f"{path}: reading YAML needs a package: pip install pyyaml; or write JSON, in a file named *.json"
        ) from None
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ConversionError(f"{path}: is not YAML: {' '.join(str(e).split())[:200]}") from e
    return read_recipe(value, path)
