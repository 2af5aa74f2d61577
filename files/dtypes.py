"""The dtype names of the safetensors format and what they are in torch.

torch is loaded by `torch_dtype` only: a plan needs sizes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_NAMES = {torch_name: name for name, torch_name in _TORCH.items()}

BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "U16": 16,
    "U32": 32,
    "U64": 64,
    "C64": 64,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits an element, also of the dtypes that are only ever copied."""

FLOAT8 = ("F8_E4M3", "F8_E5M2")
QUANTIZABLE = ("F64", "F32", "F16", "BF16", *FLOAT8)
"""Dtypes whose values a weight can be quantized from."""


def torch_dtype(name: str) -> torch.dtype | None:
    """torch's dtype of this name, or None where torch has none to compute with."""
    import torch

    return getattr(torch, _TORCH[name]) if name in _TORCH else None


def safetensors_dtype(dtype: torch.dtype) -> str:
    """Return the safetensors name of torch's dtype; KeyError where the format has none."""
    return _NAMES[str(dtype).removeprefix("torch.")]


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; KeyError for a dtype name the format does not know."""
    count = 1
    for n in shape:
        count *= n
    return -(-count * BITS[dtype] // 8)
