"""A recipe: the options of a conversion that say how it is done, by their keywords, apart from any model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path, PureWindowsPath
from typing import Any

from ...formats.errors import ConversionError
from .settings import KEEP_SET_NAMES, Settings
from .values import nearest

KEY = "convert_to_quant.recipe"
"""The header's metadata key under which an output carries its recipe."""

_ELSEWHERE = ("input_file", "output_file", "overwrite", "json", "comfy_quant", "save_recipe")
"""What is said on the command line: about these files, not about how."""


def recipe_of(settings: Settings, with_folders: bool = True) -> dict[str, Any]:
    """Return the options that are not the defaults, as plain JSON values by keyword.

    with_folders: files as they are named; without, only their last part, for what leaves this machine.
    """
    plain = Settings(input_file=settings.input_file)
    found = {}
    for f in _options():
        value = getattr(settings, f.name)
        if value == getattr(plain, f.name):
            continue
        if _is_file(f) and not with_folders:
            value = [_name(v) for v in value] if isinstance(value, tuple) else _name(value)
        found[f.name] = list(value) if isinstance(value, tuple) else value
    return found


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as YAML, an option a line; every value is also JSON."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in recipe.items())


def as_flags(settings: Settings) -> list[str]:
    """Return the options as on a command line; files without their folders."""
    recipe, words = recipe_of(settings, with_folders=False), []
    for f in _options():
        if f.name not in recipe:
            continue
        value, how = recipe[f.name], f.metadata["argparse"]
        flag = next(flag for flag in f.metadata["flags"] if flag.startswith("--"))
        if how.get("action") == "append_const":
            words += [f"--{name}" for name in value]
        elif how.get("action") == "boolean":
            words.append(flag if value else f"--no-{flag[2:]}")
        elif how.get("action") in ("store_true", "store_false"):
            words.append(flag)
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


def read_recipe(value: Any, where: str) -> dict[str, Any]:
    """Return the options of a recipe, checked: from a file that anybody may have made.

    ConversionError, beginning with `where`, for what is no recipe, an option that there is not or that says
    nothing of how, and a value that an option cannot have.
    """
    if not isinstance(value, Mapping):
        raise ConversionError(f"{where}: a recipe is a table of options, as format: w4a8")
    known = {f.name: f for f in _options()}
    found = {}
    for given, content in value.items():
        name = str(given).replace("-", "_")
        if name in _ELSEWHERE:
            raise ConversionError(f"{where}: {name} is said on the command line, not in a recipe")
        if name not in known:
            raise ConversionError(f"{where}: there is no option {str(given)[:60]!r}; {nearest(name, known)}")
        found[name] = _checked(known[name], content, f"{where}: {name}")
    for name in found.get("keep_sets", ()):
        if name not in KEEP_SET_NAMES:
            raise ConversionError(f"{where}: keep_sets: {name[:60]!r}: {nearest(name, KEEP_SET_NAMES)}")
    try:
        Settings(input_file="", **found)
    except (ValueError, TypeError) as e:
        raise ConversionError(f"{where}: {e}") from e
    return found


def _checked(f: Field[Any], value: Any, where: str) -> Any:
    """Return a value of the kind that an option takes; a list as a tuple."""
    how = f.metadata["argparse"]
    if how.get("action") in ("store_true", "store_false", "boolean"):
        wanted, fits = "true or false", isinstance(value, bool)
    elif how.get("nargs") == "+" or how.get("action") == "append_const":
        wanted = "a list of texts"
        fits = isinstance(value, list) and all(isinstance(v, str) for v in value)
    elif how.get("type") is None:
        wanted, fits = "a text", isinstance(value, str)
    else:
        wanted, fits = "a text, a number, true or false", isinstance(value, str | int | float)
    if not fits:
        raise ConversionError(f"{where}: must be {wanted}, not {type(value).__name__}")
    return tuple(value) if isinstance(value, list) else value


def _options() -> list[Field[Any]]:
    return [f for f in fields(Settings) if f.name not in _ELSEWHERE]


def _is_file(f: Field[Any]) -> bool:
    return f.metadata["argparse"].get("metavar") == "FILE"


def _name(path: str) -> str:
    return PureWindowsPath(Path(path).name).name
