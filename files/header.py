"""The header of a safetensors file: what it lists and where each tensor stands, parsed and built.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.errors import CheckpointError
from .dtypes import BITS, nbytes

_MAX_HEADER = 100_000_000


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
    describe its data.
    """
    size = file.stat().st_size
    with open(file, "rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise CheckpointError(_not_safetensors(file, head, size))
        if length > _MAX_HEADER:
            raise CheckpointError(
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
        raise CheckpointError(f"{file}: the header is not valid: {e}") from e
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
