"""Reading safetensors files one tensor at a time, into memory of their own.

Not mapped: a mapped checkpoint counts twice while a model is filled from it, and faults later if
the file is replaced. Format: https://huggingface.co/docs/safetensors (8 bytes header length, JSON, data).
"""

import json
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from ...formats import CheckpointError

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: what it is and where its bytes are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


class TensorFile:
    """The tensors and metadata of a ``.safetensors`` file, an index or a folder of shards.

    Only headers are read on opening; CheckpointError says what is wrong with the file. Use as a
    context manager or `close` it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, str] = {}
        self._open: dict[Path, FileIO] = {}
        self.nbytes = 0
        for file in _files(self.path):
            entries, metadata = _header(file)
            self.entries.update(entries)
            self.metadata = {**metadata, **self.metadata}
            self.nbytes += file.stat().st_size

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, name: str) -> torch.Tensor:
        """The tensor in fresh CPU memory. CheckpointError if the file became shorter meanwhile."""
        entry = self.entries[name]
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        file = self._open.get(entry.file)
        if file is None:
            file = self._open[entry.file] = FileIO(entry.file)
        file.seek(entry.offset)
        view, done = raw.numpy().data, 0
        while done < entry.nbytes:
            got = file.readinto(view[done:])
            if not got:
                raise CheckpointError(f"{entry.file}: ends inside tensor {name!r}; was it changed meanwhile?")
            done += got
        return raw.view(entry.dtype).view(entry.shape)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_dir():
        index = sorted(path.glob("*.safetensors.index.json"))
        if len(index) == 1:
            return _files(index[0])
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{path}: no .safetensors file in this folder")
        return files
    if path.suffix != ".json":
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path}: not a safetensors index: {e}") from e
    absent = [n for n in names if not (path.parent / n).exists()]
    if absent:
        raise CheckpointError(
            f"{path}: {len(absent)} of its {len(names)} shards are missing, first {absent[0]}"
        )
    return [path.parent / n for n in names]


def _header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= size - 8:
            raise CheckpointError(f"{file}: truncated, or not a safetensors file ({size} bytes)")
        raw = f.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", None) or {}
        entries = {name: _entry(file, spec, 8 + length) for name, spec in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{file}: the header is not valid: {e}") from e
    last = max((e.offset + e.nbytes for e in entries.values()), default=8 + length)
    if last > size:
        raise CheckpointError(f"{file}: truncated: {size} bytes here, {last} by its header")
    return entries, metadata


def _entry(file: Path, spec: dict, base: int) -> Entry:
    if spec["dtype"] not in TORCH_DTYPES:
        raise ValueError(f"dtype {spec['dtype']} is not supported here")
    dtype, shape = TORCH_DTYPES[spec["dtype"]], tuple(spec["shape"])
    begin, end = spec["data_offsets"]
    count = 1
    for n in shape:
        count *= n
    if end - begin != count * dtype.itemsize:
        raise ValueError(f"{spec['dtype']} {list(shape)} does not take {end - begin} bytes")
    return Entry(dtype, shape, file, base + begin, end - begin)
