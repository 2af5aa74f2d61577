"""The int8 product with packed weights: tiles of them are decoded in registers, and no other way."""

from typing import NamedTuple

import triton
import triton.language as tl

from ..decode import Packed
from ._codes import arguments, weight_tile
from ._epilogue import Epilogue, finish
from ._gemm import TileConfig, _tile_order
from ._launch import Descriptor, Launch, cdiv
from ._operands import Operand
from .decode import native


@triton.jit
def _packed_mm_kernel(
    a_ptr,
    w_ptr,
    group_ptr,
    table_ptr,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    M,
    N,
    K,
    stride_am,
    stride_w,
    stride_g,
    plane,
    stride_om,
    stride_split,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """a int8 [M, K] times the packed weight [N, K] transposed; every tile of it is decoded in registers."""
    tile_m, tile_n = _tile_order(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    piece = tl.arange(0, BLOCK_K // 16)
    # Rows and pieces beyond the edge read the last one; the activations there are zeros.
    row_n = tl.minimum(offs_n, N - 1).to(tl.int64)
    if not DESCRIPTORS:
        a = a_ptr + tl.minimum(offs_m, M - 1).to(tl.int64)[:, None] * stride_am
    first = 0
    stop = tl.cdiv(K, BLOCK_K)
    if SPLIT_K > 1:
        each = tl.cdiv(stop, SPLIT_K)
        first = tl.program_id(1) * each
        stop = tl.minimum(first + each, stop)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(first, stop):
        pieces = step * (BLOCK_K // 16) + piece
        if not EVEN_K:
            pieces = tl.minimum(pieces, K // 16 - 1)
        if DESCRIPTORS:
            left = a_ptr.load([tile_m * BLOCK_M, step * BLOCK_K])
        elif EVEN_K:
            left = tl.load(a + (step * BLOCK_K + offs_k)[None, :])
        else:
            cols = (step * BLOCK_K + offs_k)[None, :]
            left = tl.load(a + cols, mask=cols < K, other=0)
        right = weight_tile(
            w_ptr, group_ptr, table_ptr, row_n, pieces, stride_w, stride_g, plane, BITS, GROUP, NATIVE,
            BLOCK_N, BLOCK_K,
        )  # fmt: skip
        acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
    if SPLIT_K > 1:
        out = out_ptr + tl.program_id(1).to(tl.int64) * stride_split
        out += offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
        tl.store(out, acc, mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])
    else:
        finish(
            acc.to(tl.float32), offs_m, offs_n, M, N, out_ptr, stride_om, a_scale_ptr, b_scale_ptr,
            bias_ptr, stride_a_scale, stride_b_scale, ACTIVATION, False,
        )  # fmt: skip


class PackedWeight(NamedTuple):
    """A packed weight as launches take it: `decode`'s operands, the table where there is one, the shape."""

    qweight: Operand
    bits: int
    group_scale: Operand | None
    table: Operand | None
    shape: Packed


def launch_packed(
    config: TileConfig, a: Operand, weight: PackedWeight, out, epilogue: Epilogue, arch
) -> Launch:
    """Return the launch for a int8 [M, K] and a packed weight; out as in `_gemm.launch_product`."""
    m, (n, k, _) = a.shape[0], weight.shape
    args = {
        "a_ptr": Descriptor(a, [config.block_m, config.block_k]) if config.descriptors else a,
        "out_ptr": out,
        "M": m,
        "N": n,
        "K": k,
        "stride_am": a.stride(0),
        "stride_om": n,
        "stride_split": m * n if config.split_k > 1 else 0,
        "DESCRIPTORS": config.descriptors,
        "SPLIT_K": config.split_k,
        "EVEN_K": k % config.block_k == 0,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        **arguments(*weight, native(arch)),
        **epilogue.arguments(),
    }
    grid = (cdiv(m, config.block_m) * cdiv(n, config.block_n), config.split_k)
    return Launch(_packed_mm_kernel, grid, args, config.num_warps, config.num_stages)
