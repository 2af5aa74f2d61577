"""``ctq inspect``: the command line of a look into a file."""

import argparse
import json
from collections.abc import Sequence

from ..stored.inspect import inspect_file
from .show_inspect import show_inspection
from .suggest import SuggestingParser


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        "ctq inspect",
        description="Show a file's architecture, formats, rotation groups, sizes and contract problems.",
    )
    p.add_argument(
        "file",
        metavar="PATH",
        help="a .safetensors file, an index, or a folder of shards; also org/model or a URL",
    )
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return p


def main(argv: Sequence[str]) -> int:
    """Inspect a file; returns 0, also when it has problems. ConversionError when it cannot be opened."""
    args = parser().parse_args(argv)
    found = inspect_file(args.file)
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        show_inspection(found)
    return 0
