"""The int8 product: one kernel whose compile-time switches give all its forms.

DESCRIPTORS loads tiles by tensor descriptors (sm_90 and up; on sm_80 they spill up to 20 KB),
else through pointers. BLOCKWISE rescales every K block in float32. SPLIT_K > 1 writes int32
partial sums for `_epilogue`. All share one main loop and one epilogue.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ._epilogue import Epilogue, finish
from ._launch import Descriptor, Launch, cdiv, power_of_2
from ._operands import Operand


class TileConfig(NamedTuple):
    """A tile of the product. split_k > 1 needs a second launch and int32 memory."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    descriptors: bool = False

    @property
    def label(self) -> str:
        kind = "descriptors" if self.descriptors else "pointers"
        tile = f"{self.block_m}x{self.block_n}x{self.block_k}"
        return f"{kind} {tile} warps{self.num_warps} stages{self.num_stages} split{self.split_k}"

    @property
    def handicap(self) -> float:
        return 1.0


@triton.jit
def _tile_order(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(row, column) of a tile, GROUP_M tile rows at a time, so that neighbours in time share L2."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    first = group * GROUP_M
    size = tl.minimum(tiles_m - first, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return first + within % size, within // size


@triton.jit
def _int8_mm_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bn,
    stride_bk,
    stride_om,
    stride_split,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    EDGE_N: tl.constexpr,
    EDGE_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """a int8 [M, K] times b int8 [N, K] transposed. BLOCKWISE: stride_*_scale are those of rows."""
    tile_m, tile_n = _tile_order(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows beyond the edge read the last one: a mask in the loop costs more registers than a
    # 128 x 128 tile has left. Only the last K block, after the loop, is masked.
    row_m = tl.minimum(offs_m, M - 1)
    row_n = tl.minimum(offs_n, N - 1)
    steps = tl.cdiv(K, BLOCK_K)
    first = 0
    stop = steps
    if SPLIT_K > 1:
        split = tl.program_id(1)
        each = tl.cdiv(steps, SPLIT_K)
        first = split * each
        stop = tl.minimum(first + each, steps)
    full = stop
    if not DESCRIPTORS:
        a = a_ptr + row_m.to(tl.int64)[:, None] * stride_am
        b = b_ptr + row_n.to(tl.int64)[:, None] * stride_bn
        if SPLIT_K > 1:
            a += first * BLOCK_K * stride_ak
            b += first * BLOCK_K * stride_bk
        if not EVEN_K:
            # At least `first`: with more splits than steps the last splits have nothing, not the tail.
            full = tl.maximum(tl.minimum(stop, K // BLOCK_K), first)
    if BLOCKWISE:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        a_scale = a_scale_ptr + row_m * stride_a_scale
        if EDGE_N % BLOCK_N == 0:
            b_scale = b_scale_ptr + (tile_n * BLOCK_N // EDGE_N) * stride_b_scale
        else:
            b_scale = b_scale_ptr + (row_n // EDGE_N) * stride_b_scale
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(full - first):
        if DESCRIPTORS:
            left = a_ptr.load([tile_m * BLOCK_M, (first + step) * BLOCK_K])
            right = b_ptr.load([tile_n * BLOCK_N, (first + step) * BLOCK_K])
        else:
            cols = step * BLOCK_K + offs_k[None, :]
            left = tl.load(a + cols * stride_ak)
            right = tl.load(b + cols * stride_bk)
        if BLOCKWISE:
            part = tl.dot(left, right.T, out_dtype=tl.int32).to(tl.float32)
            block = step * BLOCK_K // EDGE_K
            part *= tl.load(a_scale + block)[:, None]
            if EDGE_N % BLOCK_N == 0:
                acc += part * tl.load(b_scale + block)
            else:
                acc += part * tl.load(b_scale + block)[None, :]
        else:
            acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
    if not DESCRIPTORS and not EVEN_K:
        cols = (full - first) * BLOCK_K + offs_k[None, :]
        inside = first * BLOCK_K + cols < K
        if full < stop:
            left = tl.load(a + cols * stride_ak, mask=inside, other=0)
            right = tl.load(b + cols * stride_bk, mask=inside, other=0)
            if BLOCKWISE:
                part = tl.dot(left, right.T, out_dtype=tl.int32).to(tl.float32)
                block = full * BLOCK_K // EDGE_K
                part *= tl.load(a_scale + block)[:, None]
                if EDGE_N % BLOCK_N == 0:
                    acc += part * tl.load(b_scale + block)
                else:
                    acc += part * tl.load(b_scale + block)[None, :]
            else:
                acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
    if SPLIT_K > 1:
        out = out_ptr + split.to(tl.int64) * stride_split
        out += offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
        tl.store(out, acc, mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])
    else:
        finish(
            acc.to(tl.float32), offs_m, offs_n, M, N, out_ptr, stride_om, a_scale_ptr, b_scale_ptr,
            bias_ptr, stride_a_scale, stride_b_scale, ACTIVATION, BLOCKWISE, residual_ptr, residual_scale_ptr,
        )  # fmt: skip


def launch_product(
    config: TileConfig,
    a: Operand,
    b: Operand,
    out: Operand,
    epilogue: Epilogue,
    edges: tuple[int, int] | None = None,
) -> Launch:
    """Return the launch for a int8 [M, K], b int8 [N, K] of any strides.

    out: [M, N] contiguous, or int32 [split_k, M, N]. edges: rows and columns of a block of b's
    scale (block-wise: epilogue.a_scale is [M, K blocks], b_scale [N blocks, K blocks]).
    """
    (m, k), n = a.shape, b.shape[0]
    boxed = config.descriptors
    args = {
        "a_ptr": Descriptor(a, [config.block_m, config.block_k]) if boxed else a,
        "b_ptr": Descriptor(b, [config.block_n, config.block_k]) if boxed else b,
        "out_ptr": out,
        "M": m,
        "N": n,
        "K": k,
        "stride_am": a.stride(0),
        "stride_ak": a.stride(1),
        "stride_bn": b.stride(0),
        "stride_bk": b.stride(1),
        "stride_om": n,
        "stride_split": m * n if config.split_k > 1 else 0,
        "BLOCKWISE": edges is not None,
        "EDGE_N": power_of_2(edges[0]) if edges else 1,
        "EDGE_K": power_of_2(edges[1]) if edges else 1,
        "DESCRIPTORS": boxed,
        "SPLIT_K": config.split_k,
        "EVEN_K": k % config.block_k == 0,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        **epilogue.all_arguments(),
    }
    if edges and epilogue.a_scale is not None and epilogue.b_scale is not None:
        args["stride_a_scale"] = epilogue.a_scale.stride(0)
        args["stride_b_scale"] = epilogue.b_scale.stride(0)
    grid = (cdiv(m, config.block_m) * cdiv(n, config.block_n), config.split_k)
    return Launch(_int8_mm_kernel, grid, args, config.num_warps, config.num_stages)
