"""Text for a terminal: what comes from a file is shown as it is, never obeyed as markup or as an escape."""

import sys
from typing import TextIO


def plain(text: str) -> str:
    r"""Return `text` with what a terminal would act on written out: ``\x1b`` for an escape.

    Line breaks stay; every other character that is not printable is escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def say(text: object = "", *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print a line of `plain` text on stdout, or on `file`."""
    print(plain(str(text)), file=file or sys.stdout, end=end, flush=flush)
