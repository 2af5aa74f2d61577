"""Reading safetensors checkpoints: one file, a sharded index or a folder of shards.

Only headers are read when a checkpoint is opened. Tensors are read with ``pread`` into their own
memory, not mapped: mapped pages count as this process's memory for as long as the kernel likes.
Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.errors import ConversionError
from .dtypes import BITS, nbytes, torch_dtype
from .memory import in_huge_pages

if TYPE_CHECKING:
    import torch

_MAX_HEADER = 100_000_000
_READ = 1 << 26


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it: where its bytes are and what they mean."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count


class Checkpoint:
    """The tensors of a checkpoint by name, in file order, and its metadata.

    Use `open_checkpoint`. Close it, or use it as a context manager.
    """

    def __init__(
        self, path: Path, files: list[Path], tensors: dict[str, TensorInfo], metadata: dict[str, str]
    ):
        self.path = path
        self.files = tuple(files)
        self.tensors = tensors
        self.metadata = metadata
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(f.stat().st_size for f in self.files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in file order."""
        return {name: info.shape for name, info in self.tensors.items()}

    def descriptor(self, file: Path) -> int:
        """An open, read-only descriptor of one of the files, for copying bytes."""
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return self._descriptors[file]

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype and shape, in fresh memory.

        ConversionError when the file became shorter since it was opened, or for a dtype that torch
        does not have.
        """
        return self.read_tensor(self.tensors[name])

    def read_tensor(self, info: TensorInfo) -> torch.Tensor:
        """`read` for a tensor of any safetensors file; the file stays open until `close`."""
        import torch  # a header is read without it

        dtype = torch_dtype(info.dtype)
        if dtype is None:
            raise ConversionError(
                f"{info.file}: tensor {info.name!r} has dtype {info.dtype}, which cannot be computed with"
            )
        raw = in_huge_pages(torch.empty(info.nbytes, dtype=torch.uint8))
        self.read_into(info, raw.numpy().data)
        return raw.view(dtype).view(info.shape)

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from byte `start` on."""
        done, total = 0, len(buffer)
        fd = self.descriptor(info.file)
        while done < total:
            part = buffer[done : done + _READ]
            got = _pread_into(fd, part, info.offset + start + done)
            if got == 0:
                raise ConversionError(
                    f"{info.file}: ends inside tensor {info.name!r}; was it changed meanwhile?"
                )
            done += got


def _pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows: the one reader thread owns the position
    data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a ``.safetensors`` file, a ``*.safetensors.index.json``, or a folder of shards.

    Raises ConversionError, saying what is wrong and where, for a missing, truncated or corrupt file,
    a shard that is missing, or a tensor that two shards hold.
    """
    path = Path(path)
    if not path.exists():
        raise ConversionError(f"{path}: no such file or folder")
    files, expected = _files_of(path)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, meta = read_header(file)
        for name, info in found.items():
            if name in tensors:
                raise ConversionError(
                    f"{path}: tensor {name!r} is in two files, {tensors[name].file.name} and {file.name}"
                )
            tensors[name] = info
        metadata = {**meta, **metadata}
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise ConversionError(
            f"{path}: the index names {len(missing)} tensors that its files do not hold, first {missing[0]!r}"
        )
    if not tensors:
        raise ConversionError(f"{path}: holds no tensors")
    return Checkpoint(path, files, tensors, metadata)


def _files_of(path: Path) -> tuple[list[Path], list[str]]:
    """The files of a checkpoint and the names its index promises."""
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        if len(indices) > 1:
            raise ConversionError(
                f"{path}: holds {len(indices)} indices ({indices[0].name}, ...): name one of them"
            )
        if indices:
            return _files_of(indices[0])
        shards = sorted(path.glob("*.safetensors"))
        if not shards:
            inner = [p.name for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob("*.safetensors"))]
            hint = f"; did you mean {path / inner[0]}?" if inner else ""
            raise ConversionError(f"{path}: no .safetensors file in this folder{hint}")
        return shards, []
    if path.suffix == ".json":
        return _read_index(path)
    return [path], []


def _read_index(path: Path) -> tuple[list[Path], list[str]]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise ConversionError(f"{path}: not a safetensors index (JSON with a 'weight_map'): {e}") from e
    files = [path.parent / name for name in names]
    absent = [f.name for f in files if not f.exists()]
    if absent:
        raise ConversionError(
            f"{path}: {len(absent)} of its {len(files)} shards are missing, first {absent[0]}"
        )
    return files, list(weight_map)


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse and check one file's header; returns its tensors by name in data order, and its metadata."""
    size = file.stat().st_size
    with open(file, "rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise ConversionError(_not_safetensors(file, head, size))
        if length > _MAX_HEADER:
            raise ConversionError(
                f"{file}: the header claims {length} bytes; the format allows {_MAX_HEADER}"
            )
        raw = f.read(length)
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = sorted(
            (_entry(file, name, spec, 8 + length) for name, spec in header.items()),
            key=lambda t: (t.offset, t.nbytes),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise ConversionError(f"{file}: the header is not valid: {e}") from e
    _check_layout(file, entries, 8 + length, size)
    return {info.name: info for info in entries}, metadata


def _not_safetensors(file: Path, head: bytes, size: int) -> str:
    if head[:4] == b"PK\x03\x04" or head[:2] == b"\x80\x02":
        return f"{file}: a PyTorch pickle, not a safetensors file; convert it to safetensors first"
    if head[:4] == b"GGUF":
        return f"{file}: a GGUF file, not a safetensors file"
    return f"{file}: truncated or not a safetensors file ({size} bytes, shorter than its own header)"


def _entry(file: Path, name: str, spec: dict, base: int) -> TensorInfo:
    begin, end = spec["data_offsets"]
    dtype, shape = spec["dtype"], tuple(int(n) for n in spec["shape"])
    if dtype not in BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {dtype!r}")
    if any(n < 0 for n in shape) or end - begin != nbytes(dtype, shape):
        raise ValueError(
            f"tensor {name!r}: {dtype} {list(shape)} takes {nbytes(dtype, shape)} bytes, "
            f"its offsets span {end - begin}"
        )
    return TensorInfo(name, dtype, shape, file, base + begin, end - begin)


def _check_layout(file: Path, entries: list[TensorInfo], base: int, size: int) -> None:
    """The data must be covered without gaps or overlaps, and be all there."""
    at = base
    for info in entries:
        if info.offset != at:
            what = "overlap" if info.offset < at else "leave a gap"
            raise ConversionError(
                f"{file}: corrupt header: the data of {info.name!r} and its neighbour {what}"
            )
        at += info.nbytes
        if at > size:
            raise ConversionError(
                f"{file}: truncated inside tensor {info.name!r}: {size} bytes here, "
                f"{base + sum(e.nbytes for e in entries)} by its header"
            )
    if at != size:
        raise ConversionError(
            f"{file}: {size - at} bytes follow the last tensor: not a whole safetensors file"
        )
