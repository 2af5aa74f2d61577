"""The command line's parser, made from the fields of Settings."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from ...namesake import message as namesake_message
from ...version import DISTRIBUTION, VERSION
from ..options.command import CommandOptions
from ..options.peer import HELP_TOPICS, PEER_OPTIONS
from ..options.settings import GROUPS, Settings
from ..presets import keep_set
from .suggest import SuggestingParser

DESCRIPTION = "Quantize a safetensors checkpoint to INT8 or another format that ComfyUI loads."
EPILOG = """\
other commands:
{commands}

examples:
  %(prog)s -i model.safetensors --comfy_quant
  %(prog)s -i shards/model.safetensors.index.json -o model-int8.safetensors

more help: --help {topics} or all
"""


class _Help(argparse.Action):
    """``--help [TOPIC]``: the short page, or the page with one topic's options, or all."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if values not in (None, "all", *GROUPS):
            parser.error(f"no help topic {values!r}: one of {', '.join(GROUPS)} or all")
        parser.show(values)
        parser.exit()


class _Topic(argparse.Action):
    """One of the other tool's help flags: shows the page of a topic here."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        parser.show(HELP_TOPICS[option_string])
        parser.exit()


class _Peer(argparse.Action):
    """An option of the other tool: kept in ``namespace.peer`` by its name, with the spelling used."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        given = {
            **getattr(namespace, "peer", {}),
            self.dest: (option_string, True if self.nargs == 0 else values),
        }
        namespace.peer = given


class ConvertParser(SuggestingParser):
    """Parser of a conversion. Raises SystemExit(2) on a wrong command line, with the reason.

    Its namespace holds only what was given; ``peer`` holds the options of the other tool
    (`options.peer`).
    """

    def __init__(self, prog: str, commands: Sequence[tuple[str, str]]):
        listed = "\n".join(f"  ctq {name:<14} {text}" for name, text in commands)
        topics = ", ".join(name for name in GROUPS if name not in ("main", "format"))
        super().__init__(
            prog=prog,
            add_help=False,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=100),
            usage="%(prog)s -i PATH [-o FILE] [options]",
            description=DESCRIPTION,
            epilog=EPILOG.format(commands=listed, topics=topics),
        )
        self._hidden: dict[str, list[tuple[argparse.Action, str]]] = {}
        for key, title in GROUPS.items():
            group = self.add_argument_group(title)
            for f in (*fields(Settings), *fields(CommandOptions)):
                if f.metadata["group"] == key:
                    self._add(group, key, f)
        general = self.add_argument_group("General")
        general.add_argument(
            "-h",
            "--help",
            nargs="?",
            metavar="TOPIC",
            action=_Help,
            default=argparse.SUPPRESS,
            help="show this page, or with a topic the options of that topic",
        )
        general.add_argument(
            "--version", action="version", version=_version(), help="show the version and exit"
        )

        self._add_peers(general)

    def _add_peers(self, group: Any) -> None:
        for peer in PEER_OPTIONS:
            nargs, hidden = None if peer.value else 0, argparse.SUPPRESS
            group.add_argument(
                *peer.flags, dest=peer.name, action=_Peer, nargs=nargs, default=hidden, help=hidden
            )
        hidden = argparse.SUPPRESS
        group.add_argument(*HELP_TOPICS, action=_Topic, nargs=0, dest=hidden, default=hidden, help=hidden)

    def _add(self, group: Any, key: str, f: Any) -> None:
        extra = dict(f.metadata["argparse"])
        if extra.get("type") is not None:
            extra["type"] = _reported(extra["type"])
        if extra.get("action") == "boolean":
            extra["action"] = argparse.BooleanOptionalAction
        elif "action" not in extra:
            extra.setdefault("metavar", f.name.upper())
        extra["default"] = argparse.SUPPRESS
        if extra.get("action") == "append_const":
            self._add_sets(group, key, f)
            return
        action = group.add_argument(*f.metadata["flags"], dest=f.name, help=f.metadata["help"], **extra)
        self._hidden.setdefault(key, []).append((action, f.metadata["help"]))

    def _add_sets(self, group: Any, key: str, f: Any) -> None:
        """Add one flag per set; each adds its name to the field."""
        for flag in f.metadata["flags"]:
            text = f"keep {keep_set(flag).title}"
            action = group.add_argument(
                flag, dest=f.name, action="append_const", const=flag[2:], default=argparse.SUPPRESS, help=text
            )
            self._hidden.setdefault(key, []).append((action, text))

    def show(self, topic: str | None) -> None:
        """Print the help with the options of "main" and of `topic` ("all" for every topic).

        Options are listed under their first spelling; the others still work.
        """
        shown = set(GROUPS) if topic == "all" else {"main", "format", topic}
        spellings = []
        for key, actions in self._hidden.items():
            for action, text in actions:
                spellings.append((action, action.option_strings))
                action.help = text if key in shown else argparse.SUPPRESS
                action.option_strings = shown_spellings(action)
        self.print_help()
        for action, names in spellings:
            action.option_strings = names


def _version() -> str:
    """Return what ``--version`` prints, with a line on the other tool where its files are found."""
    namesake = namesake_message()
    return f"convert_to_quant {VERSION} ({DISTRIBUTION})" + (f"\nwarning: {namesake}" if namesake else "")


def shown_spellings(action: argparse.Action) -> list[str]:
    """Return the spellings of an option that help shows: short ones, the first long one, and its negative."""
    short = [s for s in action.option_strings if not s.startswith("--")]
    first = next(s for s in action.option_strings if s.startswith("--"))
    negative = [s for s in action.option_strings if s == f"--no-{first[2:]}"]
    return [*short, first, *negative]


def _reported(convert: Any) -> Any:
    """Make a ValueError an ArgumentTypeError: only of that does argparse show the text."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from e

    return parse
