"""``<output>.part``: the bytes of an output until it is whole; of fixed size, written at any place."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from ..formats.errors import CheckpointError, ConversionError

_COPY = 1 << 23
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_OTHER_WAY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""What a kernel or file system answers that does not do a thing itself."""


class PartFile:
    """The unfinished file of `output`, of `size` bytes; ConversionError when the disk is too small for it.

    Errors of the system are raised as ConversionError with the output's name. So is a file that another
    program cut short: it is looked at before each write, which would make it long again with a hole in it.
    """

    def __init__(self, path: Path, output: Path, size: int):
        self.path, self._output, self.size = path, output, size
        self._mutex = threading.Lock()
        self._fd = -1
        with self.told():
            self._require_space()
            self._fd = os.open(path, _FLAGS, 0o666)

    def _require_space(self) -> None:
        there = self.path.stat() if self.path.exists() else None
        free = shutil.disk_usage(self._output.parent).free + getattr(there, "st_blocks", 0) * 512
        if free < self.size:
            raise ConversionError(self._no_room(free))

    def has_size(self) -> bool:
        """Return whether the file is as long as it has to be."""
        return os.fstat(self._fd).st_size == self.size

    def is_named(self) -> bool:
        """Return whether the file still has its name."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Make it a file of zeros, with its room on the disk reserved where the file system does that."""
        with self.told():
            os.ftruncate(self._fd, 0)
            try:
                os.posix_fallocate(self._fd, 0, self.size)
            except AttributeError:  # Windows, macOS
                os.ftruncate(self._fd, self.size)
            except OSError as e:
                if e.errno not in _OTHER_WAY:
                    raise
                os.ftruncate(self._fd, self.size)

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes at `offset`."""
        self.require_whole()
        with self.told():
            while len(view):
                if hasattr(os, "pwrite"):
                    n = os.pwrite(self._fd, view, offset)
                else:
                    with self._mutex:
                        os.lseek(self._fd, offset, os.SEEK_SET)
                        n = os.write(self._fd, view)
                view, offset = view[n:], offset + n

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on."""
        with self.told():
            data = self.read_of(self._fd, offset, count)
        if len(data) < count:
            self.require_whole()
        return data

    def read_of(self, fd: int, offset: int, count: int) -> bytes:
        """Return up to `count` bytes of any open file from `offset` on."""
        if hasattr(os, "pread"):
            return os.pread(fd, count, offset)
        with self._mutex:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, count)

    def copy(self, source: int, offset: int, target: int, count: int) -> None:
        """Copy `count` bytes of an open file, in the kernel where it can. CheckpointError when it ends."""
        self.require_whole()
        with self.told():
            while count:
                n = self._copy_some(source, offset, target, min(count, 1 << 30))
                if n == 0:
                    raise CheckpointError(
                        "the input ends before all of it was copied; was it changed meanwhile?"
                    )
                count, offset, target = count - n, offset + n, target + n

    def _copy_some(self, source: int, offset: int, target: int, count: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(source, self._fd, count, offset, target)
            except OSError as e:
                if e.errno not in _OTHER_WAY:
                    raise
        data = self.read_of(source, offset, min(count, _COPY))
        self.write(memoryview(data), target)
        return len(data)

    def sync(self) -> None:
        """Wait until all of it is on the disk. ConversionError when the disk refuses."""
        with self.told():
            os.fsync(self._fd)

    def remove(self) -> None:
        """Take the file away."""
        if os.name == "nt":  # which removes no open file
            self.close()
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file and leave it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def require_whole(self) -> None:
        """Raise ConversionError when the file is shorter or longer than it was made."""
        if not self.has_size():
            raise ConversionError(f"{self.path}: was cut short while it was written; run again")

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Make an error of the system one that names the output and says what to do."""
        try:
            yield
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self._output.parent).free
                raise ConversionError(self._no_room(free)) from e
            raise ConversionError(f"{self._output}: cannot be written: {e.strerror or e}") from e

    def _no_room(self, free: int) -> str:
        return (
            f"{self._output.parent}: not enough room: the output takes {self.size / 2**20:,.1f} MiB, "
            f"{free / 2**20:,.1f} MiB are free; free some or choose another place with -o"
        )
