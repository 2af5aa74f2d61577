"""Ctrl-C that cannot be lost: Python drops what is raised inside a finalizer, an interrupt among it."""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_S = 0.02
"""How long after a lost interrupt it is raised once more: the finalizer has returned by then."""


@contextlib.contextmanager
def heard_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt again in the main thread each time that one was dropped in it, until the end.

    A signal's handler runs between any two bytecodes of the main thread. Where these belong to a finalizer,
    a weak reference's callback or a callback from C, nothing stands above it that could catch what it raises:
    Python hands it to ``sys.unraisablehook`` and goes on as if nobody had asked it to stop.
    """
    before = sys.unraisablehook
    open_, lock = True, threading.Lock()

    def again() -> None:
        with lock:
            if open_:
                _thread.interrupt_main()

    def hook(dropped: UnraisableHookArgs, /) -> None:
        if dropped.exc_type is None or not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        timer = threading.Timer(_AGAIN_S, again)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        with lock:
            open_ = False
