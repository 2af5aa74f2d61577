"""``ctq doctor``: the command line of a look at this machine."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from .suggest import SuggestingParser
from .text import say


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        "ctq doctor",
        description="Show versions, devices and ComfyUIs found here, and what will run how; the exit code is "
        "1 where something should be mended.",
    )
    p.add_argument(
        "--comfyui",
        action="append",
        default=[],
        metavar="PATH",
        help="a ComfyUI folder to look at, besides the usual places (may be given several times)",
    )
    p.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return p


def main(argv: Sequence[str]) -> int:
    """Examine the machine and print what was found; returns 1 where something should be mended, else 0."""
    args = parser().parse_args(argv)
    from .examine import examine  # torch is loaded only once the command line is known to be right

    found = examine(args.comfyui)
    if args.json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        width = max(len(f.topic) for f in found)
        for f in found:
            say(f"{f.topic:<{width}}  {'FAULT: ' if f.fault else ''}{f.text}")
    return int(any(f.fault for f in found))
