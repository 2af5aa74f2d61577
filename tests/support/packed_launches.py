"""Launches of the kernels for packed weights and small floats, for `ahead_of_time` to compile."""

import torch

from convert_to_quant.kernels.decode import Packed
from convert_to_quant.kernels.triton import (
    _arch,
    decode,
    decoded,
    float_linear,
    floats,
    int4,
    int8_mm,
    mxfp8,
    nvfp4,
    packed_linear,
    packing,
)
from convert_to_quant.kernels.triton._epilogue import Epilogue
from convert_to_quant.kernels.triton._gemm import TileConfig
from convert_to_quant.kernels.triton._operands import Operand, empty

META = torch.device("meta")
N, K = 12288, 3072

QUANTIZERS = ("quantize mxfp8", "quantize nvfp4", "quantize int4", "quantize w4a8", "quantize w6a8")

SOME = (
    ("sm_80", "decode 4"),
    ("sm_80", "packed 16 w6a8"),
    ("sm_90", "decode 6"),
    ("sm_90", "packed 16 w4a8"),
    ("sm_100", "packed 4096 w6a8"),
    ("gfx942", "decode 4"),
    ("gfx942", "packed 16 w6a8"),
    ("gfx1100", "packed 16 int4"),
    ("sm_80", "pack 6"),
    ("sm_80", "quantize_float8"),
    ("sm_80", "dequantize nvfp4"),
    ("sm_90", "float_linear e4m3"),
    ("sm_120", "float_linear nvfp4"),
    ("gfx942", "float_linear mxfp8"),
    *(("sm_80", case) for case in QUANTIZERS),
    ("sm_90", "quantize mxfp8"),
    ("sm_120", "quantize nvfp4"),
    ("sm_120", "quantize int4"),
    ("gfx942", "quantize nvfp4"),
    ("gfx1100", "quantize mxfp8"),
)
"""What is compiled in the tests: the large tiles of sm_80 and sm_90 are there in test_machine_code.py."""


def cases() -> dict:
    """Case name -> a function that gives steps."""
    return {
        "decode 4": lambda: unpacked(4),
        "decode 6": lambda: unpacked(6),
        "packed 16 w4a8": lambda: packed(16, 4),
        "packed 16 w6a8": lambda: packed(16, 6),
        "packed 4096 w6a8": lambda: packed(4096, 6),
        "packed 16 int4": lambda: packed(16, 4, 0),
        "pack 6": lambda: packing.pack.plan(_meta(N, K, dtype=torch.int8), 6, 32).steps,
        "quantize_float8": lambda: floats.quantize_float8.plan(bf16(4096), "e4m3", _meta()).steps,
        "dequantize nvfp4": lambda: floats.dequantize_floats.plan(*small("nvfp4"), torch.bfloat16).steps,
        "quantize mxfp8": lambda: mxfp8.quantize_mxfp8.plan(bf16(N)).steps,
        "quantize nvfp4": lambda: nvfp4.quantize_nvfp4.plan(bf16(N)).steps,
        "quantize int4": lambda: int4.quantize_int4.plan(bf16(N), 256).steps,
        "quantize w4a8": lambda: decoded.quantize_decoded.plan(bf16(N), 4, 16, 256).steps,
        "quantize w6a8": lambda: decoded.quantize_decoded.plan(bf16(N), 6, 16, 256).steps,
        **{f"float_linear {kind}": lambda kind=kind: multiplied(kind) for kind in ("e4m3", "mxfp8", "nvfp4")},
    }


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Operand:
    return empty(shape, dtype, META)


def bf16(m: int) -> Operand:
    """Return activations [m, K]."""
    return _meta(m, K, dtype=torch.bfloat16)


def small(kind: str) -> tuple:
    """Return the operands of a weight of small floats."""
    q = _meta(N, K // 2 if kind == "nvfp4" else K, dtype=torch.uint8)
    blocks = {"mxfp8": K // 32, "nvfp4": K // 16}.get(kind)
    block_scale = _meta(N, blocks, dtype=torch.uint8) if blocks else None
    return q, kind, None if kind == "mxfp8" else _meta(), block_scale


def multiplied(kind: str):
    """Return the launch of the first tile that dequantizes as it multiplies."""
    q, _, scale, block_scale = small(kind)
    arch = _arch.arch_of(META)
    tile = float_linear.engines(arch.family, 16, N, torch.bfloat16, kind, False)[0]
    out = _meta(16, N, dtype=torch.bfloat16)
    return [
        float_linear.launch_tiles(
            tile, bf16(16), q, kind, block_scale, out, Epilogue(None, scale, None, None)
        )
    ]


def unpacked(bits: int):
    """Return the steps that decode a weight."""
    w, scale = _meta(N, K * bits // 8, dtype=torch.int8), _meta(N, K // 16, dtype=torch.uint8)
    return decode.decode.plan(w, bits, scale).steps


def packed(m: int, bits: int, group: int = 16):
    """Return the steps of the first tile that decodes as it multiplies."""
    arch, shape = _arch.arch_of(META), Packed(N, K, group)
    scale = _meta(N, K // group, dtype=torch.uint8) if group else None
    before, table = decode.prepared(bits, scale, None, META)
    qweight = _meta(N, K * bits // 8, dtype=torch.int8)
    weight = packed_linear.PackedWeight(qweight, bits, scale, table, shape)
    epilogue = int8_mm.operands(_meta(m, 1), _meta(N, 1), None, None, m, False)
    tile = next(e for e in packed_linear.engines(arch, m, shape, bits) if isinstance(e, TileConfig))
    a, out = _meta(m, K, dtype=torch.int8), _meta(m, N, dtype=torch.bfloat16)
    return [*before, *packed_linear.multiply(tile, a, weight, out, epilogue, arch)]
