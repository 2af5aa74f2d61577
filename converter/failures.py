"""What goes wrong outside the program (files, memory, limits), in one line for a person."""

from __future__ import annotations

import errno
import os
import traceback
from itertools import pairwise
from pathlib import Path

from ..formats.errors import ConversionError

_HINTS = {
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "the system has no more open files to give; close other programs",
    errno.ENOMEM: "--low-memory takes less",
    errno.ENOSPC: "free some room on that disk",
}
_MEMORY = (
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "can't allocate memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
_ROOT = Path(__file__).parents[1]


def in_words(error: BaseException) -> str:
    """Return one line that says what failed and, where that is known, what to do."""
    if isinstance(error, ConversionError):
        return str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, MemoryError) or any(m in str(error).lower() for m in _MEMORY):
        return f"not enough memory{_asked_for(error)}; --low-memory takes less"
    return _unexpected(error)


def _of_the_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hint = _HINTS.get(error.errno or 0)
    return f"{where}{reason}" + (f"; {hint}" if hint else "")


def _asked_for(error: BaseException) -> str:
    """Return torch's figure of what was asked for, where it gives one."""
    words = str(error).replace(".", " ").split()
    asked = next((w for w, unit in pairwise(words) if unit == "bytes" and w.isdigit()), "")
    return f" for {int(asked) / 2**20:,.0f} MiB more" if asked else ""


def _unexpected(error: BaseException) -> str:
    """Name the line that failed: what a report of it needs. The whole trace is shown on request."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(_ROOT)] or list(frames)
    at = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    text = " ".join(str(error).split())[:300]
    return (
        f"unexpected {type(error).__name__}{at}: {text}; please report it, with what "
        f"CONVERT_TO_QUANT_TRACEBACK=1 shows"
    )
