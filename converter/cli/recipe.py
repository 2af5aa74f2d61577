"""``ctq recipe``: the options of a run, or of the run that made a file, as a recipe for ``--recipe``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ...files.checkpoint import open_checkpoint
from ...files.regular import parse_json
from ...formats.errors import ConversionError
from ..options.recipe import KEY, read_recipe, recipe_of, recipe_text
from .arguments import parsed
from .parser import ConvertParser
from .text import say

_USAGE = """\
usage: ctq recipe FILE.safetensors    the recipe that a file carries (--save-recipe)
       ctq recipe [options]           the options as a recipe, for --recipe

The recipe is printed as YAML: ctq recipe --format w4a8 --convrot > small.yaml
"""


def main(argv: Sequence[str]) -> int:
    """Print a recipe; returns 0. SystemExit(2) for a wrong command line, ConversionError for a wrong file."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if argv else 2
    if not argv[0].startswith("-"):
        if len(argv) > 1:
            print("error: a file carries one recipe; name one", file=sys.stderr)
            return 2
        return _show(recipe_carried(argv[0]))
    parser = ConvertParser("ctq recipe", [])
    return _show(recipe_of(parsed(parser, ["-i", "MODEL", *argv]).settings))


def _show(recipe: dict[str, Any]) -> int:
    say(recipe_text(recipe), end="")
    return 0


def recipe_carried(path: str) -> dict[str, Any]:
    """Return the recipe in a checkpoint's header. ConversionError where there is none, or none that holds."""
    with open_checkpoint(path) as checkpoint:
        where = f"{checkpoint.path}: {KEY}"
        if KEY not in checkpoint.metadata:
            raise ConversionError(
                f"{checkpoint.path}: carries no recipe; --save-recipe writes one into a file"
            )
        found = read_recipe(parse_json(checkpoint.metadata[KEY], where), where)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
