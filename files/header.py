"""The header of a safetensors file: what it lists, and where each tensor will stand."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .dtypes import BITS, nbytes


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return nbytes(self.dtype, self.shape)

    @property
    def alignment(self) -> int:
        """Bytes an element, at least one."""
        return max(1, BITS[self.dtype] // 8)


def build_header(
    outputs: Iterable[OutputTensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """The header bytes, each tensor's absolute offset, and the size of the whole file.

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
