"""Reading checkpoints: one safetensors file, a sharded index, a folder of shards, or what torch.save wrote.

They are here or elsewhere (`remote`). Only headers are read when a checkpoint is opened. Tensors are read
with ``pread`` into their own memory, not mapped: mapped pages count as this process's memory for as long as
the kernel likes, and fault if the file is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import CheckpointError
from .dtypes import nbytes, torch_dtype
from .header import TensorInfo, parse_header, read_header
from .memory import empty
from .pickled import MAGIC, read_pickled
from .regular import open_regular
from .remote.address import Location, RemoteFile, located
from .shards import files_at
from .stamp import RemoteStamp, Stamp, Stamps, stamp

if TYPE_CHECKING:
    import torch

    from .remote.ahead import RemoteReader

__all__ = ["Checkpoint", "TensorInfo", "computable_dtype", "open_checkpoint"]

_READ = 1 << 26


class Checkpoint:
    """The tensors of a checkpoint by name, in file order, and its metadata.

    stamps: of each file, taken before anything of it was read (`files.stamp`).

    Use `open_checkpoint`. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        path: Location,
        files: Sequence[Location],
        tensors: dict[str, TensorInfo],
        metadata: dict[str, str],
        stamps: Stamps,
        readers: Mapping[RemoteFile, RemoteReader] = {},
    ):
        self.path = path
        self.files = tuple(files)
        self.tensors = tensors
        self.metadata = metadata
        self.stamps = stamps
        self._readers = readers
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        for reader in self._readers.values():
            reader.close()

    def interrupt(self) -> None:
        """Stop every read of bytes from elsewhere that waits or will wait, until `close`: CheckpointError."""
        for reader in self._readers.values():
            reader.interrupt()

    def with_tensors(self, tensors: dict[str, TensorInfo]) -> Checkpoint:
        """Return it with other tensors, made from these: renamed or `joined`. Closing one closes both."""
        view = Checkpoint(self.path, self.files, tensors, self.metadata, self.stamps, self._readers)
        view._descriptors = self._descriptors
        return view

    def reopen(self) -> Checkpoint:
        """Return it again with descriptors of its own, for another thread; no header is read anew."""
        return Checkpoint(self.path, self.files, self.tensors, self.metadata, self.stamps, self._readers)

    @property
    def is_here(self) -> bool:
        """Return whether its files are on this machine."""
        return not self._readers

    @property
    def local_files(self) -> list[Path]:
        """Return what of it is on this machine: its files, and the folder or index that was named."""
        return [p for p in (self.path, *self.files) if isinstance(p, Path)]

    @property
    def nbytes(self) -> int:
        """Return the size of all files, in bytes."""
        return sum(s.size for s in self.stamps.values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {name: shape}, in file order."""
        return {name: info.shape for name, info in self.tensors.items()}

    def descriptor(self, file: Path) -> int:
        """Return an open, read-only descriptor of one of the files, for copying bytes."""
        if file not in self._descriptors:
            self._descriptors[file] = open_regular(file)
        return self._descriptors[file]

    def places(self, info: TensorInfo) -> list[tuple[int, int, int]] | None:
        """Return where a tensor's bytes lie, part by part: the open file, the offset in it, how many.

        None for one that is elsewhere.
        """
        found = []
        for piece in info.pieces:
            if isinstance(piece.file, RemoteFile):
                return None
            found.append((self.descriptor(piece.file), piece.offset, piece.nbytes))
        return found

    def expect(self, infos: Iterable[TensorInfo]) -> None:
        """Fetch small tensors that will be read next, several at once, as far as they are elsewhere."""
        places: dict[RemoteFile, list[tuple[int, int]]] = {}
        for piece in (piece for info in infos for piece in info.pieces):
            if isinstance(piece.file, RemoteFile):
                places.setdefault(piece.file, []).append((piece.offset, piece.nbytes))
        for file, wanted in places.items():
            self._readers[file].expect(wanted)

    def read(self, name: str, huge_pages: bool = True) -> torch.Tensor:
        """Return the tensor in its stored dtype and shape, in fresh memory.

        huge_pages: ask for memory in huge pages, for a tensor that is computed with and thrown away. One that
        is kept is read faster without (1.2 against 0.7 GB per second of processor time, on two cores).
        CheckpointError when the file became shorter since it was opened, or for a dtype that torch
        does not have.
        """
        return self.read_tensor(self.tensors[name], huge_pages)

    def read_tensor(self, info: TensorInfo, huge_pages: bool = True) -> torch.Tensor:
        """Read a tensor of any safetensors file, as `read` does; the file stays open until `close`."""
        import torch  # a header is read without it

        dtype = computable_dtype(info)
        if info.strides is not None:
            return self._read_strided(info, info.strides)
        if huge_pages:
            raw = empty((info.nbytes,), torch.uint8)
        else:
            raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self.read_into(info, raw.numpy().data)
        return raw.view(dtype).view(info.shape)

    def _read_strided(self, info: TensorInfo, strides: tuple[int, ...]) -> torch.Tensor:
        """Read a tensor whose elements do not lie one after the other, and put them so."""
        steps = sum((n - 1) * step for n, step in zip(info.shape, strides, strict=True))
        span = replace(info, shape=(1 + steps,), nbytes=nbytes(info.dtype, (1 + steps,)), strides=None)
        return self.read_tensor(span).as_strided(info.shape, strides).contiguous()

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start` on.

        CheckpointError when the file ends before the buffer is full.
        """
        if info.strides is not None:
            import torch

            raw = self.read_tensor(info).flatten().view(torch.uint8).numpy().data
            buffer[:] = raw[start : start + len(buffer)]
            return
        for inner in info.parts:
            piece = buffer[: max(0, inner.nbytes - start)]
            self.read_into(inner, piece, start)
            buffer, start = buffer[len(piece) :], max(0, start - inner.nbytes)
        if not len(buffer):
            return
        if isinstance(info.file, RemoteFile):
            self._readers[info.file].read_into(info.offset + start, buffer)
            return
        done, total = 0, len(buffer)
        fd = self.descriptor(info.file)
        while done < total:
            part = buffer[done : done + _READ]
            got = _pread_into(fd, part, info.offset + start + done)
            if got == 0:
                raise CheckpointError(
                    f"{info.file}: ends inside tensor {info.name!r}; was it changed meanwhile?"
                )
            done += got


def computable_dtype(info: TensorInfo) -> torch.dtype:
    """Return torch's dtype of a tensor; CheckpointError, naming it, where torch has none to compute with."""
    dtype = torch_dtype(info.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} has dtype {info.dtype}, which cannot be computed with"
        )
    return dtype


def _pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows: the one reader thread owns the position
    data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def open_checkpoint(path: str | os.PathLike[str] | RemoteFile) -> Checkpoint:
    """Open a ``.safetensors`` file, a ``*.safetensors.index.json``, a folder of shards, or a ``.pth``.

    What ``torch.save`` wrote (``.pth``, ``.pt``, ``.ckpt``, ``.bin``, shards of them with an index) is read
    by `pickled`. A text, not a `Path`, may also name safetensors elsewhere: a model on the hub
    (``org/model``, ``hf://``), ``https://`` or another address (`remote.address.located`).

    Raises CheckpointError, saying what is wrong and where, for a missing, truncated or corrupt file,
    a shard that is missing, or a tensor that two shards hold.
    """
    place = located(path)
    if isinstance(place, RemoteFile):
        return _open_elsewhere(place)
    files, expected = files_at(path if isinstance(path, str) else place)
    read = []
    for file in files:
        before = stamp(file)
        read.append((file, before, _read_any(file)))
    return _assembled(place, read, expected)


_Read = tuple[Location, "Stamp | RemoteStamp", tuple[dict[str, TensorInfo], dict[str, str]]]
"""A file, its stamp, its tensors and its metadata."""


def _open_elsewhere(place: RemoteFile) -> Checkpoint:
    from .remote.hub import cached, is_offline
    from .remote.opening import open_remote

    if place.scheme == "hf" and is_offline():
        return open_checkpoint(cached(place))
    found = open_remote(place)
    try:
        read: list[_Read] = []
        for file, reader in found.readers.items():
            source = reader.source
            if reader.read(0, min(len(MAGIC), source.size)) == MAGIC:
                raise CheckpointError(
                    f"{file}: what torch.save wrote is read from a file here only; download it first"
                )
            header = parse_header(file, source.size, reader.read)
            read.append((file, RemoteStamp(source.version, source.size), header))
        return _assembled(place, read, found.expected, found.readers)
    except BaseException:
        found.close()
        raise


def _assembled(
    place: Location,
    read: Sequence[_Read],
    expected: Sequence[str],
    readers: Mapping[RemoteFile, RemoteReader] = {},
) -> Checkpoint:
    """Put the files of a checkpoint together."""
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file, _, (found, meta) in read:
        for name, info in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"{place}: tensor {name!r} is in two files, {tensors[name].file.name} and {file.name}"
                )
            tensors[name] = info
        metadata = {**meta, **metadata}
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{place}: the index names {len(missing)} tensors that its files do not hold, "
            f"first {missing[0]!r}"
        )
    if not tensors:
        raise CheckpointError(f"{place}: holds no tensors")
    files = [file for file, _, _ in read]
    return Checkpoint(place, files, tensors, metadata, {file: s for file, s, _ in read}, readers)


def _read_any(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read what a file lists, by what it is: torch's archives are told by their first bytes."""
    with os.fdopen(open_regular(file), "rb") as f:
        head = f.read(len(MAGIC))
    return (read_pickled(file), {}) if head == MAGIC else read_header(file)
