"""``<output>.part.journal``: the lock on an output, and which steps of it are whole.

The first line says which job this is, each further one a step that is done, with the digests of its tensors.
Every line begins with the CRC-32 of the rest, so that one that is cut short or damaged counts as absent.
The file is the lock because it is the first to be made and the last to go, and is taken away only by who
holds it: another process that opened it meanwhile sees that its name is gone and begins again.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.errors import OutputBusyError

try:
    import fcntl
except ImportError:  # Windows, where the user minds that one conversion at a time writes an output
    fcntl = None  # type: ignore[assignment]

_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_APPEND
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What a file system without locks answers: one writer at a time is then up to the user."""


@dataclass(frozen=True)
class Entry:
    """A step that is done. note: what the job recorded of it. digests: of its tensors, by name."""

    note: Any
    digests: Mapping[str, str]


class Journal:
    """The journal of one output, locked until `close`.

    OutputBusyError when another process has it. found: whether a journal was there before.
    """

    def __init__(self, path: Path, output: Path):
        self.path = path
        self._fd = _open_locked(path, output)
        self.found = os.fstat(self._fd).st_size > 0

    def entries(self, identity: Any) -> dict[str, Entry]:
        """Return the steps that are recorded as done, by key; none when the journal is of another job.

        What fits no entry is left out: that step is done again.
        """
        lines = [_parsed(line) for line in self._read().split(b"\n")]
        if lines[0] != [identity]:
            return {}
        return {line[0]: Entry(line[1], line[2]) for line in lines[1:] if _is_entry(line)}

    def restart(self, identity: Any) -> None:
        """Make it the journal of a job of which nothing is done; on the disk before there is any output."""
        os.ftruncate(self._fd, 0)
        self._append([identity])
        os.fsync(self._fd)

    def resume(self) -> None:
        """Go on with it: a last line that was cut short is taken off, so that the next begins a line."""
        content = self._read()
        os.ftruncate(self._fd, content.rfind(b"\n") + 1)

    def add(self, key: str, note: Any, digests: Mapping[str, str]) -> None:
        """Record a step as done."""
        self._append([key, note, dict(digests)])

    def remove(self) -> None:
        """Take the file away and give up the lock."""
        named = self.is_named()
        if fcntl is None:  # Windows removes no open file
            self.close()
        if named:
            self.path.unlink(missing_ok=True)
        self.close()

    def is_named(self) -> bool:
        """Return whether the file still has its name, so that no other process can have locked another."""
        return self._fd >= 0 and _is_named(self._fd, self.path)

    def close(self) -> None:
        """Give up the lock and leave the file for a later run; an empty one is taken away."""
        if self._fd < 0:
            return
        if fcntl is not None and self.is_named() and not os.fstat(self._fd).st_size:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> bytes:
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _append(self, value: Any) -> None:
        text = json.dumps(value).encode("ascii")
        line = f"{zlib.crc32(text):08x} ".encode("ascii") + text + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]


def _parsed(line: bytes) -> Any:
    """Return a line's value, None for one that is not whole."""
    checksum, _, text = line.partition(b" ")
    if checksum != f"{zlib.crc32(text):08x}".encode("ascii"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_entry(line: Any) -> bool:
    return (
        isinstance(line, list)
        and len(line) == 3
        and isinstance(line[0], str)
        and isinstance(line[2], dict)
        and all(isinstance(digest, str) for digest in line[2].values())
    )


def _open_locked(path: Path, output: Path) -> int:
    while True:
        fd = os.open(path, _FLAGS, 0o666)
        try:
            if fcntl is not None:
                _lock(fd, output)
            if _is_named(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its owner was done and took it away between the two calls: begin again


def _lock(fd: int, output: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputBusyError(f"{output}: another conversion is writing this output") from None
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
