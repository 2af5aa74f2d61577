"""Reading checkpoints: one safetensors file, a sharded index, a folder of shards, or what torch.save wrote.

Only headers are read when a checkpoint is opened. Tensors are read with ``pread`` into their own
memory, not mapped: mapped pages count as this process's memory for as long as the kernel likes, and fault
if the file is replaced.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from ..formats.errors import CheckpointError
from .dtypes import nbytes, torch_dtype
from .header import TensorInfo, read_header
from .memory import in_huge_pages
from .mistaken import not_there
from .pickled import ENDINGS, MAGIC, read_pickled
from .regular import open_regular, read_json, unreadable
from .schema import record, table, text
from .stamp import Stamp, stamp

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "TensorInfo", "computable_dtype", "open_checkpoint"]

_READ = 1 << 26


class Checkpoint:
    """The tensors of a checkpoint by name, in file order, and its metadata.

    stamps: of each file, taken before anything of it was read (`files.stamp`).

    Use `open_checkpoint`. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        path: Path,
        files: list[Path],
        tensors: dict[str, TensorInfo],
        metadata: dict[str, str],
        stamps: dict[Path, Stamp],
    ):
        self.path = path
        self.files = tuple(files)
        self.tensors = tensors
        self.metadata = metadata
        self.stamps = stamps
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def with_tensors(self, tensors: dict[str, TensorInfo]) -> Checkpoint:
        """Return it with other tensors, made from these: renamed or `joined`. Closing one closes both."""
        view = Checkpoint(self.path, list(self.files), tensors, self.metadata, self.stamps)
        view._descriptors = self._descriptors
        return view

    def reopen(self) -> Checkpoint:
        """Return it again with descriptors of its own, for another thread; no header is read anew."""
        return Checkpoint(self.path, list(self.files), self.tensors, self.metadata, self.stamps)

    @property
    def nbytes(self) -> int:
        """Return the size of all files, in bytes."""
        return sum(f.stat().st_size for f in self.files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {name: shape}, in file order."""
        return {name: info.shape for name, info in self.tensors.items()}

    def descriptor(self, file: Path) -> int:
        """Return an open, read-only descriptor of one of the files, for copying bytes."""
        if file not in self._descriptors:
            self._descriptors[file] = open_regular(file)
        return self._descriptors[file]

    def places(self, info: TensorInfo) -> list[tuple[int, int, int]]:
        """Return where a tensor's bytes lie, part by part: the open file, the offset in it, how many."""
        return [(self.descriptor(p.file), p.offset, p.nbytes) for p in info.pieces]

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
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if huge_pages:
            in_huge_pages(raw)
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


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a ``.safetensors`` file, a ``*.safetensors.index.json``, a folder of shards, or a ``.pth``.

    What ``torch.save`` wrote (``.pth``, ``.pt``, ``.ckpt``, ``.bin``, shards of them with an index) is read
    by `pickled`.

    Raises CheckpointError, saying what is wrong and where, for a missing, truncated or corrupt file,
    a shard that is missing, or a tensor that two shards hold.
    """
    given, path = path, Path(path)
    files, expected = _files_at(given)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    stamps: dict[Path, Stamp] = {}
    for file in files:
        stamps[file] = stamp(file)
        found, meta = _read_any(file)
        for name, info in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is in two files, {tensors[name].file.name} and {file.name}"
                )
            tensors[name] = info
        metadata = {**meta, **metadata}
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path}: the index names {len(missing)} tensors that its files do not hold, first {missing[0]!r}"
        )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return Checkpoint(path, files, tensors, metadata, stamps)


def checkpoint_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint, none of them opened; errors as when it is opened."""
    return _files_at(path)[0]


def _files_at(path: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
    try:
        os.stat(path)
        return _files_of(Path(path))
    except FileNotFoundError as e:
        raise CheckpointError(not_there(path)) from e
    except CheckpointError:
        raise
    except (OSError, ValueError) as e:
        raise CheckpointError(unreadable(path, e)) from e


def _read_any(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read what a file lists, by what it is: torch's archives are told by their first bytes."""
    with os.fdopen(open_regular(file), "rb") as f:
        head = f.read(len(MAGIC))
    return (read_pickled(file), {}) if head == MAGIC else read_header(file)


def _files_of(path: Path) -> tuple[list[Path], list[str]]:
    """Return the files of a checkpoint and the names its index promises."""
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.bin.index.json"))
        if len(indices) > 1:
            raise CheckpointError(
                f"{path}: holds {len(indices)} indices ({indices[0].name}, ...): name one of them"
            )
        if indices:
            return _files_of(indices[0])
        shards = sorted(path.glob("*.safetensors")) or sorted(path.glob("*model*.bin"))
        if not shards:
            others = [p.name for p in sorted(path.iterdir()) if p.suffix in ENDINGS]
            if others:
                raise CheckpointError(
                    f"{path}: no .safetensors file in this folder; name a file, as {others[0]}"
                )
            inner = [p.name for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob("*.safetensors"))]
            hint = f"; did you mean {path / inner[0]}?" if inner else ""
            raise CheckpointError(f"{path}: no .safetensors file in this folder{hint}")
        return shards, []
    if path.suffix == ".json":
        return _read_index(path)
    return [path], []


_INDEX = record({"weight_map": table(text())}, required=("weight_map",), others=True)
"""The index of a sharded checkpoint, as far as it is read."""


def _read_index(path: Path) -> tuple[list[Path], list[str]]:
    weight_map = _INDEX(read_json(path), f"{path}: not a safetensors index")["weight_map"]
    files = {}
    for tensor, name in weight_map.items():
        if not _is_inside(name):
            raise CheckpointError(
                f"{path}: weight_map names {name!r} for {tensor!r}; "
                f"a file in the index's own folder is expected"
            )
        files[name] = path.parent / name
    absent = [f.name for _, f in sorted(files.items()) if not f.exists()]
    if absent:
        raise CheckpointError(
            f"{path}: {len(absent)} of its {len(files)} shards are missing, first {absent[0]}"
        )
    return [f for _, f in sorted(files.items())], list(weight_map)


def _is_inside(name: str) -> bool:
    """Tell whether a name from a file stays in the folder it is looked up in."""
    parts = (PurePosixPath(name), PureWindowsPath(name))
    return bool(name) and "\0" not in name and not any(p.anchor or ".." in p.parts for p in parts)
