"""The command line: ``convert_to_quant`` and ``ctq``, one program.

Exit codes: 0 done, 1 refused or failed (one line on stderr says why), 2 a wrong command line,
130 interrupted, 141 the reader of its output went away.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...files.remote.address import is_here
from ..options.peer import EDIT_FLAGS
from ..options.values import nearest
from .arguments import parsed
from .convert import run_many, run_one
from .guard import guarded
from .parser import ConvertParser
from .text import say


def _lazy(module: str) -> Callable[[Sequence[str]], int]:
    """Return a function that imports a module when it is called, and runs its `main`."""

    def run(argv: Sequence[str]) -> int:
        return importlib.import_module(module, __package__).main(argv)

    return run


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "calibrate": ("run a float model on prompts and record what its layers see", _lazy(".record")),
    "edit": ("remove, set and repair what a quantized file says of itself", _lazy(".edit")),
    "verify": ("compare a quantized file with its original, layer by layer", _lazy(".verify")),
    "compare": ("run a model on two checkpoints and compare what comes out", _lazy(".compare")),
    "install-nodes": ("put the node pack into a ComfyUI", _lazy(".install_nodes")),
    "inspect": ("show a file's architecture, formats and problems", _lazy(".inspect")),
    "recipe": ("print options, or those that a file was made with, for --recipe", _lazy(".recipe")),
    "completion": (
        "print a script that completes commands and options in bash, zsh or fish",
        _lazy(".completion"),
    ),
    "doctor": ("show what is installed here, and what will run how", _lazy(".doctor")),
}
"""Other commands by name: what each does, and its main."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name); returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: _command(given))


def _command(argv: Sequence[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]][1](argv[1:])
    if any(flag in argv for flag in EDIT_FLAGS):
        return COMMANDS["edit"][1](argv)
    return _convert(argv)


def _convert(argv: Sequence[str]) -> int:
    prog = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "convert_to_quant"
    parser = ConvertParser(
        "convert_to_quant" if prog.startswith(("__main__", "-c", "pytest")) else prog, _listed()
    )
    if not argv:
        parser.show(None)
        return 2
    if not argv[0].startswith("-"):
        known = Path(argv[0]).exists() or not is_here(argv[0])
        hint = f"an input is given with -i {argv[0]}" if known else nearest(argv[0], COMMANDS)
        parser.error(f"there is no command {argv[0]!r}; {hint}")
    asked = parsed(parser, argv)
    settings, command, inputs = asked.settings, asked.command, asked.inputs
    for line in asked.notes if not command.quiet else ():
        say(f"note: {line}", file=sys.stderr)
    if len(inputs) > 1 or command.pattern or command.lora_map:
        return run_many(inputs, settings, command)
    return run_one(settings, command)


def _listed() -> list[tuple[str, str]]:
    return [(name, text) for name, (text, _) in COMMANDS.items()]
