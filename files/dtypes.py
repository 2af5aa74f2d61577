"""The dtype names of the safetensors format and what they are in torch.

torch is loaded by `torch_dtype` only: a plan needs sizes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_DTYPES: dict[str, tuple[int, str]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
    "U16": (16, ""),
    "U32": (32, ""),
    "U64": (64, ""),
    "C64": (64, ""),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E5M2FNUZ": (8, ""),
    "F8_E4M3FNUZ": (8, ""),
    "F4": (4, ""),
    "F6_E2M3": (6, ""),
    "F6_E3M2": (6, ""),
}
"""Name -> (bits per element, torch's name). Without a torch name: only ever copied, never computed with."""

BITS = {name: bits for name, (bits, _) in _DTYPES.items()}
"""Bits per element, also of the dtypes that are only ever copied."""

_NAMES = {f"torch.{torch_name}": name for name, (_, torch_name) in _DTYPES.items() if torch_name}

FLOAT8 = ("F8_E4M3", "F8_E5M2")
QUANTIZABLE = ("F64", "F32", "F16", "BF16", *FLOAT8)
"""Dtypes whose values a weight can be quantized from."""


def torch_dtype(name: str) -> torch.dtype | None:
    """Return torch's dtype of this name, or None where torch has none to compute with."""
    import torch

    _, torch_name = _DTYPES.get(name, (0, ""))
    return getattr(torch, torch_name, None) if torch_name else None


def dtype_name(dtype: torch.dtype) -> str | None:
    """Return the format's name of a torch dtype, or None where it has none."""
    return _NAMES.get(str(dtype))


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor; KeyError for a dtype name the format does not know."""
    count = 1
    for n in shape:
        count *= n
    return -(-count * BITS[dtype] // 8)
