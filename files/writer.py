"""Writing a safetensors file as a stream: header first, each tensor at its offset, the name last.

Work happens in ``<output>.part``; ``<output>.part.journal`` says which steps are whole, so that a run after
an interruption does only the rest. The output appears under its name when it is complete and synced to the
disk.
"""

import filecmp
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..formats.errors import CheckpointError, ConversionError
from ..formats.names import JOB_KEY
from ..version import VERSION
from .atomic import publish
from .digest import Digest, digest_of
from .header import OutputTensor, build_header, read_header
from .journal import Entry, Journal
from .part import PartFile
from .target import already_exists, require_scratch, require_target

Places = Sequence[tuple[int, int, int]]
"""Where the bytes of a tensor lie, part by part: the open file, the offset in it, the number of bytes."""

_PIECE = 1 << 23
_COPIED = ""
"""Stands in the journal for the digest of a tensor that was copied: its source is there to compare with."""


class OutputFile:
    """A safetensors file in the making.

    job: what must not change before an interrupted run is resumed. inputs: every file the job reads.
    overwrite: replace a file that is there. telling: `metadata` names the job, so that a file with the same
        tensors and job, younger than all inputs, is its result; without, such a file is compared.

    Raises ConversionError when nothing may be written there (`require_target`), the disk is too small,
    another process is writing the same output, or there is a file that is not to be replaced.

    already_there: the output is there from an earlier run of the same job, and nothing is to be written.
    """

    def __init__(
        self,
        path: Path,
        outputs: Iterable[OutputTensor],
        metadata: Mapping[str, str],
        job: str,
        *,
        inputs: Iterable[str | os.PathLike[str]] = (),
        overwrite: bool = False,
        telling: bool = False,
    ):
        self.path, self._inputs = path, list(inputs)
        self._overwrite, self._telling, self._compare = overwrite, telling, False
        self._outputs = {o.name: o for o in outputs}
        self.metadata = metadata
        self._header, self._offsets, self.size = build_header(self._outputs.values(), metadata)
        digest = hashlib.sha256(self._header + job.encode("utf-8", "surrogatepass")).hexdigest()
        self._identity = {"version": VERSION, "job": digest, "boot": _boot_id()}
        self._digests: dict[str, str | None] = {}
        self._entries: dict[str, Entry] = {}
        self.already_there = False
        part, journal = scratch_of(path)
        require_target(path, self._inputs)
        for scratch in (part, journal):
            require_scratch(scratch, path, self._inputs)
        try:
            self._journal = Journal(journal, path)
        except OSError as e:
            raise ConversionError(f"{path}: cannot be written: {e.strerror or e}") from e
        self._part: PartFile | None = None
        try:
            self._look_at_what_is_there(part)
            if not self.already_there:
                self._open(part)
        except BaseException:
            self.close()
            raise

    def _look_at_what_is_there(self, part: Path) -> None:
        """Find out, with the lock held, whether the output exists and whether it is this job's."""
        if not os.path.lexists(self.path):
            return
        if part.exists() and part.samefile(self.path):
            part.unlink()  # a run was stopped just between giving the file its name and taking this one
        if self._overwrite:
            return
        if self.path.stat().st_size != self.size or not self._has_layout():
            raise already_exists(self.path)
        if not self._telling:
            self._compare = True
            return
        if not self._is_younger():
            raise already_exists(self.path, "it is older than what it is made from")
        self.already_there = True
        if not part.exists():
            self._journal.remove()

    def _has_layout(self) -> bool:
        """Tell whether the file that is there has these tensors in these places, and names this job."""
        try:
            there, metadata = read_header(self.path)
        except CheckpointError:
            return False
        places = {n: (t.dtype, t.shape, t.offset) for n, t in there.items()}
        ours = {n: (o.dtype, o.shape, self._offsets[n]) for n, o in self._outputs.items()}
        return places == ours and metadata.get(JOB_KEY) == self.metadata.get(JOB_KEY)

    def _is_younger(self) -> bool:
        files = [os.stat(f) for f in self._inputs if os.path.isfile(f)]  # a folder's time is that of its list
        newest = max((max(s.st_mtime_ns, s.st_ctime_ns) for s in files), default=0)
        return self.path.stat().st_mtime_ns >= newest

    def _open(self, path: Path) -> None:
        """Open the .part file; go on with it when its journal is this job's, else begin again."""
        there = path.stat().st_size if path.exists() else 0
        if there and not self._journal.found:
            raise ConversionError(
                f"{path}: is there without a journal, so it is no unfinished output; remove it, or choose "
                f"another name with -o"
            )
        self._part = PartFile(path, self.path, self.size)
        try:
            with self._part.told():
                if there == self.size:
                    self._entries = self._journal.entries(self._identity)
                if self._entries:
                    self._journal.resume()
                else:
                    self._journal.restart(self._identity)
                    self._part.clear()
        except ConversionError:
            if not self._entries:
                self.discard()
            raise
        self._part.write(memoryview(self._header), 0)

    @property
    def _file(self) -> PartFile:
        assert self._part is not None, "nothing is written over an output that is already there"
        return self._part

    def recorded(self, key: str, names: Iterable[str], source: Places | None = None) -> Entry | None:
        """Return what an interrupted run recorded of a step, if its tensors are still what it wrote.

        names: of the step's tensors. source: where its one tensor is copied from.
        None when it is not recorded, or its bytes are others: then it is to be done again.
        """
        entry = self._entries.get(key)
        if entry is None or set(entry.digests) != set(names):
            return None
        for name, digest in entry.digests.items():
            if digest == _COPIED and source is not None:
                same = self._is_copy(name, source)
            else:
                same = self._digest(name) == digest
            if not same:
                return None
        return entry

    def _digest(self, name: str) -> str:
        digest = Digest()
        for start, count in self._pieces(name):
            digest.update(self.read(name, start, count))
        return digest.hexdigest()

    def _is_copy(self, name: str, source: Places) -> bool:
        first = 0
        for fd, offset, size in source:
            for start in range(0, size, _PIECE):
                count = min(_PIECE, size - start)
                if self.read(name, first + start, count) != self._file.read_of(fd, offset + start, count):
                    return False
            first += size
        return first == self._outputs[name].nbytes

    def _pieces(self, name: str) -> Iterator[tuple[int, int]]:
        total = self._outputs[name].nbytes
        return ((start, min(_PIECE, total - start)) for start in range(0, total, _PIECE))

    def write(self, name: str, data: memoryview | bytes) -> None:
        """Write a whole tensor's bytes at its place."""
        view = memoryview(data).cast("B")
        if len(view) != self._outputs[name].nbytes:
            raise ValueError(f"{name}: {len(view)} bytes to write, {self._outputs[name].nbytes} planned")
        self._file.write(view, self._offsets[name])
        self._digests[name] = digest_of(view)

    def write_part(self, name: str, start: int, data: memoryview | bytes) -> None:
        """Write bytes of a tensor from byte `start` on; the parts of a tensor must add up to it."""
        view = memoryview(data).cast("B")
        if start + len(view) > self._outputs[name].nbytes:
            raise ValueError(f"{name}: {start + len(view)} bytes, {self._outputs[name].nbytes} planned")
        self._file.write(view, self._offsets[name] + start)
        self._digests[name] = None

    def copy(self, name: str, source: int, offset: int, start: int = 0, count: int | None = None) -> None:
        """Copy a tensor's bytes from an open file, inside the kernel where it can.

        start, count: the bytes of the tensor that lie there; by default all. The parts of a tensor must add
        up to it.
        """
        count = self._outputs[name].nbytes - start if count is None else count
        try:
            self._file.copy(source, offset, self._offsets[name] + start, count)
        except CheckpointError as e:
            raise CheckpointError(f"{name!r}: {e}") from e
        self._digests[name] = _COPIED

    def read(self, name: str, start: int, count: int) -> bytes:
        """Return `count` bytes of a tensor from byte `start` on, as they stand in the file."""
        return self._file.read(self._offsets[name] + start, count)

    def mark(self, key: str, note: Any) -> None:
        """Record that a step's tensors are all written: those since the last call."""
        digests = {n: self._digest(n) if d is None else d for n, d in self._digests.items()}
        self._digests = {}
        with self._file.told():
            self._journal.add(key, note, digests)

    def amend(self, metadata: Mapping[str, str]) -> None:
        """Write the header anew, with metadata that takes as many bytes; ValueError where it does not."""
        header, offsets, size = build_header(self._outputs.values(), metadata)
        if (offsets, size) != (self._offsets, self.size):
            raise ValueError("the new metadata does not take the place of the old")
        self._file.write(memoryview(header), 0)

    def finish(self) -> None:
        """Sync the file and give it its name, in one step that either happens or does not.

        ConversionError when the disk refuses what was written, when the file was cut short or taken away
        meanwhile, or when another file has come by its name. `already_there` is set when the file that was
        there before has the same bytes.
        """
        part = self._file
        part.require_whole()
        part.sync()
        with part.told():
            if not (part.is_named() and self._journal.is_named()):
                raise ConversionError(f"{part.path}: was taken away while it was written; run again")
            if self._compare:
                self.already_there = filecmp.cmp(part.path, self.path, shallow=False)
                self.discard()
                if not self.already_there:
                    raise already_exists(self.path)
                return
            if os.name == "nt":  # which renames no open file
                part.close()
            publish(part.path, self.path, self._overwrite)
            self._journal.remove()

    def discard(self) -> None:
        """Take away what was written."""
        self._file.remove()
        self._journal.remove()

    def close(self) -> None:
        """Close the files and leave them for a later run."""
        if self._part is not None:
            self._part.close()
        self._journal.close()


def scratch_of(path: Path) -> tuple[Path, Path]:
    """Return the names beside an output that its unfinished file and the journal of that have."""
    part = path.with_name(path.name + ".part")
    return part, path.with_name(part.name + ".journal")


def _boot_id() -> str:
    """Return something that changes when the machine restarts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(round((time.time() - time.monotonic()) / 1000))
