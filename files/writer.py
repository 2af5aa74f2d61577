"""Writing a safetensors file as a stream: header first, each tensor at its offset, the name last.

Work happens in ``<output>.part``; ``<output>.part.journal`` says which steps are whole, so that an
interrupted run goes on where it was. The output appears under its name only when it is complete and
synced to the disk.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..formats.errors import CheckpointError, ConversionError
from .atomic import part_of, publish
from .header import OutputTensor, build_header

_COPY = 1 << 23


class OutputFile:
    """A safetensors file in the making.

    Raises ConversionError when the folder is missing, the disk is too small, or another process is
    writing the same output. `finished` maps the keys of steps that an interrupted run completed to what it
    recorded about them; it is empty for a fresh start.
    """

    def __init__(self, path: Path, outputs: Iterable[OutputTensor], metadata: Mapping[str, str], job: str):
        self.path = path
        self.part = part_of(path)
        self.journal = path.with_name(self.part.name + ".journal")
        self._outputs = {o.name: o for o in outputs}
        header, self._offsets, self.size = build_header(self._outputs.values(), metadata)
        self._identity = {"job": hashlib.sha256(header + job.encode()).hexdigest(), "boot": _boot_id()}
        self._lock = threading.Lock()
        if not path.parent.is_dir():
            raise ConversionError(f"{path.parent}: no such folder for the output; create it first")
        self.finished = self._completed_steps()
        self._require_space()
        self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        _lock_exclusively(self._fd, self.part)
        if not self.finished:
            self._start(header)
        self._journal = open(self.journal, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def _completed_steps(self) -> dict[str, Any]:
        """Return what the journal of an interrupted run of the same job says, if its file is all there.

        A machine that was restarted since may have lost written pages: then nothing is trusted.
        """
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
            if self.part.stat().st_size != self.size or json.loads(lines[0]) != self._identity:
                return {}
        except (OSError, ValueError, IndexError):
            return {}
        done = {}
        for line in lines[1:]:
            with contextlib.suppress(ValueError):  # the last line may be cut short
                key, note = json.loads(line)
                done[key] = note
        return done

    def _require_space(self) -> None:
        there = (
            self.part.stat().st_blocks * 512
            if self.part.exists() and hasattr(os.stat_result, "st_blocks")
            else 0
        )
        free = shutil.disk_usage(self.path.parent).free + there
        if free < self.size:
            raise ConversionError(_no_room(self.path, self.size, free))

    def _start(self, header: bytes) -> None:
        try:
            os.ftruncate(self._fd, 0)
            self.journal.write_text(json.dumps(self._identity) + "\n", encoding="utf-8")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._fd, 0, self.size)
            else:
                os.ftruncate(self._fd, self.size)
            self._pwrite(memoryview(header), 0)
        except OSError as e:
            self._remove()
            raise ConversionError(self._describe(e)) from e

    def write(self, name: str, data: memoryview | bytes) -> None:
        """Write a whole tensor's bytes at its place."""
        view = memoryview(data).cast("B")
        if len(view) != self._outputs[name].nbytes:
            raise ValueError(f"{name}: {len(view)} bytes to write, {self._outputs[name].nbytes} planned")
        self._pwrite(view, self._offsets[name])

    def write_part(self, name: str, start: int, data: memoryview | bytes) -> None:
        """Write bytes of a tensor from byte `start` on; the parts of a tensor must add up to it."""
        view = memoryview(data).cast("B")
        if start + len(view) > self._outputs[name].nbytes:
            raise ValueError(f"{name}: {start + len(view)} bytes, {self._outputs[name].nbytes} planned")
        self._pwrite(view, self._offsets[name] + start)

    def copy(self, name: str, source: int, offset: int, start: int = 0, count: int | None = None) -> None:
        """Copy a tensor's bytes from an open file, inside the kernel where it can.

        start, count: the bytes of the tensor that lie there; by default all. The parts of a tensor must add
        up to it.
        """
        left = self._outputs[name].nbytes - start if count is None else count
        target = self._offsets[name] + start
        while left:
            n = self._copy_range(source, offset, target, min(left, 1 << 30))
            if n == 0:
                raise CheckpointError(f"the input ends inside {name!r}; was it changed meanwhile?")
            left, offset, target = left - n, offset + n, target + n

    def _copy_range(self, source: int, offset: int, target: int, count: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(source, self._fd, count, offset, target)
            except OSError as e:
                if e.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise ConversionError(self._describe(e)) from e
        with self._lock:
            if hasattr(os, "pread"):
                data = os.pread(source, min(count, _COPY), offset)
            else:
                os.lseek(source, offset, os.SEEK_SET)
                data = os.read(source, min(count, _COPY))
        self._pwrite(memoryview(data), target)
        return len(data)

    def read(self, name: str, start: int, count: int) -> bytes:
        """Return `count` bytes of a tensor from byte `start` on, as they stand in the file."""
        offset = self._offsets[name] + start
        if hasattr(os, "pread"):
            return os.pread(self._fd, count, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, count)

    def mark(self, key: str, note: Any) -> None:
        """Record that a step's tensors are all written."""
        self._journal.write(json.dumps([key, note]) + "\n")
        self._journal.flush()

    def amend(self, metadata: Mapping[str, str]) -> None:
        """Write the header anew, with metadata that takes as many bytes; ValueError where it does not."""
        header, offsets, size = build_header(self._outputs.values(), metadata)
        if (offsets, size) != (self._offsets, self.size):
            raise ValueError("the new metadata does not take the place of the old")
        self._pwrite(memoryview(header), 0)

    def finish(self) -> None:
        """Sync the file and give it its name, in one step that either happens or does not.

        ConversionError when the disk refuses what was written.
        """
        try:
            os.fsync(self._fd)
        except OSError as e:
            raise ConversionError(self._describe(e)) from e
        self.close()
        publish(self.path)
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files and leave them for a later run."""
        if self._fd >= 0:
            self._journal.close()
            os.close(self._fd)
            self._fd = -1

    def _remove(self) -> None:
        self.part.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        try:
            while len(view):
                if hasattr(os, "pwrite"):
                    n = os.pwrite(self._fd, view, offset)
                else:
                    with self._lock:
                        os.lseek(self._fd, offset, os.SEEK_SET)
                        n = os.write(self._fd, view)
                view, offset = view[n:], offset + n
        except OSError as e:
            raise ConversionError(self._describe(e)) from e

    def _describe(self, e: OSError) -> str:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            return _no_room(self.path, self.size, shutil.disk_usage(self.path.parent).free)
        return f"{self.part}: cannot write: {e.strerror or e}"


def _no_room(path: Path, need: int, free: int) -> str:
    return (
        f"{path.parent}: not enough room: the output takes {need / 2**20:,.1f} MiB, "
        f"{free / 2**20:,.1f} MiB are free; free some or choose another place with -o"
    )


def _lock_exclusively(fd: int, part: Path) -> None:
    """Let one process write each .part file; where the platform has no file locks, the user minds."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        raise ConversionError(f"{part}: another conversion is writing this output") from e


def _boot_id() -> str:
    """Return something that changes when the machine restarts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(round((time.time() - time.monotonic()) / 1000))
