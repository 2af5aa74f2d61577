"""Codes to packed bytes: read once, joined in registers, written once."""

import torch
import triton
import triton.language as tl

from ..packing import check, row_bytes
from ._arch import arch_of
from ._launch import Launch, cdiv
from ._operands import empty
from ._plan import Plan
from ._planned import planned

ROWS, COLUMNS = 16, 256


@triton.jit
def _pack_kernel(
    codes_ptr,
    out_ptr,
    N,
    K,
    stride_cn,
    stride_ck,
    OFFSET: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the bytes of a tile of codes: low halves, and the plane of top bits at 6 bits."""
    offs_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = offs_n.to(tl.int64)[:, None]
    cols = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (offs_n < N)[:, None]
    codes = tl.load(codes_ptr + rows * stride_cn + cols * stride_ck, mask=inside & (cols < K), other=0)
    codes = codes.to(tl.int32) + OFFSET
    even, odd = tl.split(tl.reshape(codes & 15, (ROWS, COLUMNS // 2, 2)))
    width = K * BITS // 8
    out = out_ptr + rows * width
    pair = (tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2))[None, :]
    tl.store(out + pair, (even | (odd << 4)).to(tl.int8), mask=inside & (pair < K // 2))
    if BITS == 6:
        low, high = tl.split(tl.reshape((codes >> 4) & 3, (ROWS, COLUMNS // 4, 2, 2)))
        top0, top2 = tl.split(low)
        top1, top3 = tl.split(high)
        four = (tl.program_id(1) * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4))[None, :]
        tops = top0 | (top1 << 2) | (top2 << 4) | (top3 << 6)
        tl.store(out + K // 2 + four, tops.to(tl.int8), mask=inside & (four < K // 4))


@planned
def pack(codes, bits, offset=0) -> Plan:
    """Plan `packing.pack`: one launch."""
    check(codes, bits)
    arch_of(codes.device)
    n, k = codes.shape
    out = empty((n, row_bytes(k, bits)), torch.int8, codes.device)
    if not out.numel():
        return Plan([], out)
    args = {
        "codes_ptr": codes,
        "out_ptr": out,
        "N": n,
        "K": k,
        "stride_cn": codes.stride(0),
        "stride_ck": codes.stride(1),
        "OFFSET": offset,
        "BITS": bits,
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
    }
    return Plan([Launch(_pack_kernel, (cdiv(n, ROWS), cdiv(k, COLUMNS)), args, 4, 1)], out)
