"""The header of a safetensors file: what it lists and where each tensor stands, parsed and built.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.errors import CheckpointError
from .dtypes import BITS, nbytes
from .mistaken import other_kind
from .regular import open_regular, parse_json
from .remote.address import Location, RemoteFile

_LOOKED_AT = 256
_MAX_HEADER = 100_000_000
_MAX_NAME = 1024
"""Characters of a tensor's name: real ones stay below 200, and names are cut up at each of their dots."""

_MAX_RANK = 64
"""Dimensions of a tensor: what torch computes with."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it: where its bytes are and what they mean.

    parts: the tensors whose rows it has, one below the other, where it is put together from several places
    (`files.joined`); file and offset are then those of the first. Empty for one that lies in one place.
    strides: the steps between its elements, in elements, where they do not lie one after the other (in files
    of ``torch.save`` only): such a tensor is read by `Checkpoint.read`, not copied.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Location
    offset: int
    nbytes: int
    parts: tuple[TensorInfo, ...] = ()
    strides: tuple[int, ...] | None = None

    @property
    def pieces(self) -> tuple[TensorInfo, ...]:
        """Return the tensors in one place that its rows are in, in order: itself where it is one."""
        return self.parts or (self,)

    @property
    def elsewhere(self) -> bool:
        """Return whether bytes of it are not on this machine."""
        return any(isinstance(piece.file, RemoteFile) for piece in self.pieces)

    @property
    def strided(self) -> bool:
        """Return whether elements of it do not lie one after the other, so that bytes cannot be copied."""
        return any(piece.strides is not None for piece in self.pieces)

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes it takes in the file; KeyError for a dtype that the format does not know."""
        return nbytes(self.dtype, self.shape)

    @property
    def alignment(self) -> int:
        """Return the bytes per element, at least one."""
        return max(1, BITS[self.dtype] // 8)


def build_header(
    outputs: Iterable[OutputTensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """Return the header bytes, each tensor's absolute offset in order of the data, and the file's size.

    Data is ordered by element size, widest first, as the safetensors library does: every tensor is then
    aligned, and readers can view it in place.
    """
    ordered = sorted(outputs, key=lambda o: -o.alignment)  # stable: source order among equals
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets, at = {}, 0
    for o in ordered:
        header[o.name] = {"dtype": o.dtype, "shape": list(o.shape), "data_offsets": [at, at + o.nbytes]}
        offsets[o.name] = at
        at += o.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    base = 8 + len(raw)
    return len(raw).to_bytes(8, "little") + raw, {name: base + o for name, o in offsets.items()}, base + at


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse and check one file's header; return its tensors by name in order of the data, and its metadata.

    CheckpointError, naming the file, for one that is truncated, of another kind, or whose header does not
    describe its data in every point.
    """
    with os.fdopen(open_regular(file), "rb") as f:

        def read(offset: int, count: int) -> bytes:
            f.seek(offset)
            return f.read(count)

        return parse_header(file, os.fstat(f.fileno()).st_size, read)


def parse_header(
    file: Location, size: int, read: Callable[[int, int], bytes]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse and check the header of a file of `size` bytes, as `read_header` does.

    read: returns so many of its bytes from an offset on; it is asked for none behind its end.
    """
    head = read(0, min(8, size))
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size - 8, _MAX_HEADER):
        known = other_kind(file, read(0, min(8 + _LOOKED_AT, size)), size)
        raise CheckpointError(known or _impossible(file, length, size))
    raw = read(8, length)
    try:
        header = parse_json(
            raw.decode("utf-8"), f"{file}: the header is not valid", object_pairs_hook=_unique
        )
        if not isinstance(header, dict):
            raise ValueError("a JSON object is expected")
        metadata = _metadata(header.pop("__metadata__", None))
        entries = sorted(
            (_entry(file, name, spec, 8 + length) for name, spec in header.items()),
            key=lambda t: (t.offset, t.nbytes),
        )
    except CheckpointError:
        raise
    except ValueError as e:
        raise CheckpointError(f"{file}: the header is not valid: {e}") from e
    _check_layout(file, entries, 8 + length, size)
    return {info.name: info for info in entries}, metadata


def _impossible(file: Location, length: int, size: int) -> str:
    if 8 + length <= size:
        return f"{file}: the header claims {length} bytes; the format allows {_MAX_HEADER}"
    return f"{file}: truncated or not a safetensors file ({size} bytes, shorter than its own header)"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object. ValueError for a name that it has twice: readers differ in which one they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is in it twice")
    return found


def _metadata(value: Any) -> dict[str, str]:
    """Return the metadata. ValueError for a value that is not text, which safetensors refuses."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("__metadata__ is not an object of texts")
    for key, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"__metadata__: the value of {key!r} is {type(text).__name__}, not text")
    return value


def _entry(file: Location, name: str, spec: Any, base: int) -> TensorInfo:
    if len(name) > _MAX_NAME:
        raise ValueError(
            f"the tensor name {name[:40]!r}... has {len(name)} characters; {_MAX_NAME} are enough"
        )
    if not isinstance(spec, dict) or not {"dtype", "shape", "data_offsets"} <= spec.keys():
        raise ValueError(f"tensor {name!r}: an object with dtype, shape and data_offsets is expected")
    dtype, shape = spec["dtype"], _counts(spec["shape"], f"tensor {name!r}: shape")
    offsets = _counts(spec["data_offsets"], f"tensor {name!r}: data_offsets")
    if len(offsets) != 2:
        raise ValueError(f"tensor {name!r}: data_offsets are a begin and an end, not {len(offsets)} numbers")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {str(dtype)[:40]!r}")
    if len(shape) > _MAX_RANK:
        raise ValueError(f"tensor {name!r} has {len(shape)} dimensions; {_MAX_RANK} are enough")
    begin, end = offsets
    if end - begin != nbytes(dtype, shape):
        raise ValueError(
            f"tensor {name!r}: {dtype} {list(shape)} takes {nbytes(dtype, shape)} bytes, "
            f"its offsets span {end - begin}"
        )
    return TensorInfo(name, dtype, shape, file, base + begin, end - begin)


def _counts(value: Any, what: str) -> tuple[int, ...]:
    """Return a JSON list of whole numbers from 0 on that fit 63 bits, as a tuple; else ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{what}: a list of whole numbers is expected")
    for n in value:
        if type(n) is not int or not 0 <= n < 1 << 63:
            told = n if isinstance(n, int | float) else type(n).__name__
            raise ValueError(f"{what}: {told} is not a whole number from 0 on")
    return tuple(value)


def _check_layout(file: Location, entries: list[TensorInfo], base: int, size: int) -> None:
    """Raise CheckpointError unless the data is covered without gaps or overlaps, and all there."""
    at = base
    for info in entries:
        if info.offset != at:
            what = "overlap" if info.offset < at else "leave a gap"
            raise CheckpointError(
                f"{file}: corrupt header: the data of {info.name!r} and its neighbour {what}"
            )
        at += info.nbytes
        if at > size:
            raise CheckpointError(
                f"{file}: truncated inside tensor {info.name!r}: {size} bytes here, "
                f"{base + sum(e.nbytes for e in entries)} by its header"
            )
    if at != size:
        raise CheckpointError(
            f"{file}: {size - at} bytes follow the last tensor: not a whole safetensors file"
        )
