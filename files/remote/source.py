"""Positioned reads of one object elsewhere, tried again when the connection fails."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from ...formats.errors import CheckpointError
from .address import RemoteFile

TRIES = 6
"""Failures in a row, with no byte between them, after which a read is given up."""

FIRST_WAIT = 1.0
"""Seconds before the second try; each further wait is twice as long: 31 s in all."""

LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer pause is not waited for."""


class Trouble(Exception):
    """What may be over at the next try. wait: the seconds that the other side asks for, None if it does not.

    got: the bytes that came before it.
    """

    def __init__(self, why: str, wait: float | None = None, got: int = 0):
        super().__init__(why)
        self.wait, self.got = wait, got


class Patience:
    """How often and how long a reader tries again, until somebody interrupts it."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def interrupt(self) -> None:
        """End the waits of every thread, now and in future: each raises CheckpointError."""
        self._over.set()

    def wait(self, place: RemoteFile, trouble: Trouble, failures: int) -> None:
        """Wait before the next try. CheckpointError when there have been enough."""
        seconds = FIRST_WAIT * 2 ** (failures - 1) if trouble.wait is None else trouble.wait
        if failures >= TRIES or seconds > LONGEST_WAIT:
            raise CheckpointError(
                f"{place}: {trouble}; given up after {failures} {'try' if failures == 1 else 'tries'}: "
                "run the same command again later, a conversion goes on where it stopped"
            )
        if self._over.wait(seconds):
            raise CheckpointError(f"{place}: reading it was interrupted")


class RangeSource(ABC):
    """The bytes of one object.

    size: how many there are. version: what tells them from those of a changed object (an ETag, a digest, a
    commit), "" where the other side tells nothing. Any thread may read.
    """

    def __init__(self, place: RemoteFile, size: int = 0, version: str = ""):
        self.place, self.size, self.version = place, size, version
        self._patience = Patience()

    @abstractmethod
    def fetch(self, offset: int, buffer: memoryview) -> int:
        """Ask once for the bytes from `offset` on; return how many of them came, from 1 on.

        `Trouble` for a failure that may pass, CheckpointError for one that will not, and for an object that
        is not the one whose size and version are known.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `offset` on, in as many requests as it takes.

        CheckpointError when the object ends before, has changed, or is out of reach.
        """
        if offset + len(buffer) > self.size:
            raise CheckpointError(f"{self.place}: ends at byte {self.size}, before what is to be read of it")
        failures, patience = 0, self._patience
        while len(buffer):
            try:
                got = self.fetch(offset, buffer)
                failures = 0
            except Trouble as trouble:
                got = trouble.got
                failures = 1 if got else failures + 1
                patience.wait(self.place, trouble, failures)
            buffer, offset = buffer[got:], offset + got

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on; CheckpointError as `read_into`."""
        data = bytearray(count)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def interrupt(self) -> None:
        """Stop every read that waits or will wait, until `close`: it raises CheckpointError."""
        self._patience.interrupt()
        self.disconnect()

    def close(self) -> None:
        """Stop every read that is under way, as `interrupt`; reading again begins anew."""
        self.interrupt()
        self._patience = Patience()

    @abstractmethod
    def disconnect(self) -> None:
        """Close its connections, also under threads that wait for bytes."""


def changed(place: RemoteFile) -> CheckpointError:
    """Return the error for an object that is not what it was."""
    return CheckpointError(
        f"{place}: was changed, replaced or removed while it was read; nothing was written: run again"
    )
