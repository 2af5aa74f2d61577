"""How every command ends: with its exit code, and one line on stderr when it is not 0."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

from ..failures import in_words
from .interrupt import heard_interrupts
from .text import say

_LOST = "standard output cannot be written: "
READER_GONE = 141
"""What a shell shows for a program whose reader went away (``| head``): 128 + SIGPIPE."""


RESUMES = "no output was written; the same command resumes where it stopped"


def guarded(command: Callable[[], int], name: str = "error") -> int:
    """Run a command and return its exit code, whatever happens in it.

    0 done, 1 refused or failed (one line on stderr says why), 130 interrupted, 141 when the reader of its
    output went away. A KeyboardInterrupt's own text, if any, says what becomes of work that is not resumed.
    SystemExit, of a wrong command line or of --help, passes through. With
    CONVERT_TO_QUANT_TRACEBACK=1 the trace of a failure is shown before its line.
    """
    _open_standard_streams()
    try:
        try:
            with heard_interrupts():
                code = command()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as e:
        _tell(f"interrupted: {e if str(e) else RESUMES}")
        return 130
    except BrokenPipeError:
        _stdout_failure()
        return READER_GONE
    except Exception as e:
        if os.environ.get("CONVERT_TO_QUANT_TRACEBACK") == "1":
            traceback.print_exc()
        reason = _stdout_failure() or (f"{_LOST}{e.strerror}" if _was_showing(e) else in_words(e))
        _tell(f"{name}: {reason}")
        return 1


def _tell(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody is left to be told
        say(" ".join(line.splitlines()), file=sys.stderr, flush=True)


def _stdout_failure() -> str:
    """Return why standard output cannot be written, "" when it can. Silence it then: the exit flushes it."""
    try:
        sys.stdout.flush()
        return ""
    except (OSError, ValueError) as e:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)
        return f"{_LOST}{getattr(e, 'strerror', None) or e}"


def _was_showing(error: Exception) -> TypeGuard[OSError]:
    """Tell an error of standard output, which names no file: it came up through what prints."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(f.filename).parent.name == "rich" or Path(f.filename).name == "text.py" for f in frames)


def _open_standard_streams() -> None:
    """Take up the places of standard streams that were closed, before a file of ours gets one of them.

    Else what any library prints would land in a checkpoint. What is written to a closed stdout still fails;
    a closed stderr is silent.
    """
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
