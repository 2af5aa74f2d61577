"""Tables in plain text, as wide as the terminal: words wrap, names are never cut or broken.

Made without rich: a table of two thousand rows takes it longer than planning does.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .text import plain

_GAP = "  "
_INDENT = "    "
_PIPE = 140
_LEAST = 16


def terminal_width() -> int:
    """Return the columns of the terminal; in a file or pipe enough for most names."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE


@dataclass
class Table:
    """Rows of cells under a head. right: the columns that are aligned to the right.

    The first column holds names: where a row is too wide its name stands on a line of its own. The last
    column holds words and wraps.
    """

    title: str
    head: Sequence[str]
    right: Sequence[int] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row; what a terminal would obey is written out."""
        self.rows.append(tuple(plain(str(c)).replace("\n", "\\n") for c in cells))

    def lines(self, width: int | None = None) -> list[str]:
        """Return the table as lines of at most `width` characters, None for the terminal's.

        Only a name, or a word of the last column, that is longer itself makes a longer line.
        """
        width = width or terminal_width()
        rows = [tuple(self.head), *self.rows]
        widths = [max(len(r[i]) for r in rows) for i in range(len(self.head))]
        if sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
            return (
                [self.title, *(self._line(r, widths) for r in rows)]
                if self.title
                else [self._line(r, widths) for r in rows]
            )
        return [*([self.title] if self.title else []), *self._narrow(rows, widths, width)]

    def _line(self, cells: Sequence[str], widths: Sequence[int], first: int = 0) -> str:
        parts = (
            c.rjust(w) if i in self.right else c.ljust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True), first)
        )
        return _GAP.join(parts).rstrip()

    def _narrow(self, rows: Sequence[tuple[str, ...]], widths: list[int], width: int) -> Iterator[str]:
        """Wrap the last column; where that leaves it too little, put the names on lines of their own."""
        others = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
        own = width - others < min(_LEAST, widths[-1])
        if own and len(widths) > 1:
            others += len(_INDENT) - widths[0] - len(_GAP)
        last = max(min(_LEAST, widths[-1]), width - others)
        for cells in rows:
            words = textwrap.wrap(cells[-1], last, break_long_words=False, break_on_hyphens=False) or [""]
            if own and len(widths) > 1:
                yield cells[0]
                start = _INDENT + self._line([*cells[1:-1], words[0]], [*widths[1:-1], last], 1)
            else:
                start = self._line([*cells[:-1], words[0]], [*widths[:-1], last])
            if start.strip():
                yield start.rstrip()
            yield from (" " * others + more for more in words[1:])
