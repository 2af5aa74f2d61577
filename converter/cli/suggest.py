"""A parser that names the option that a mistyped one was meant to be."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..options.values import closest

_NEAR = 0.6
"""At this likeness (difflib's ratio, 0 to 1) a spelling is worth offering."""


class SuggestingParser(argparse.ArgumentParser):
    """argparse's parser without abbreviations; SystemExit(2) on a wrong command line, with the reason."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse a command line; what no option takes is refused with the nearest that there is."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error("; ".join(self._unknown(word) for word in rest[:3]))
        return found

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"no option takes {word!r}"
        flag = word.partition("=")[0]
        near = closest(flag.replace("_", "-"), self._spellings(), _NEAR)
        return f"there is no option {flag}" + (f"; did you mean {near}?" if near else "")

    def _spellings(self) -> list[str]:
        """Return every spelling that help pages show or may show, dashes before underscores."""
        shown = (a for a in self._actions if a.help is not argparse.SUPPRESS)
        return [f for action in shown for f in action.option_strings]
