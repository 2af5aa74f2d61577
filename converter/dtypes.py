"""The dtype names of the safetensors format and what they are in torch."""

import torch

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

BITS = {
    **{name: dtype.itemsize * 8 for name, dtype in TORCH.items()},
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


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; KeyError for a dtype name the format does not know."""
    count = 1
    for n in shape:
        count *= n
    return -(-count * BITS[dtype] // 8)
