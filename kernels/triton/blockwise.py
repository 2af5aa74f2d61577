"""Block-wise INT8 quantization: 128 x 128 blocks of weights, 1 x 128 blocks of activations."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import activations
from .._library import Unsupported
from ..blockwise import _check, _scale_shape
from ._arch import arch_of
from ._launch import Launch, cdiv, power_of_2
from ._operands import Operand, empty, rows_of
from ._plan import Choice, Plan
from ._planned import planned
from ._tiles import load_activated, magnitude, scale_from_peak, to_int8
from ._tuning import bucket

MAX_BLOCK = 16384
"""Elements of the largest block a program keeps in registers: 64 a thread with 8 warps."""


class BlockConfig(NamedTuple):
    """Least elements and most warps of a program; a block larger than `elements` is a tile by itself."""

    elements: int
    num_warps: int

    @property
    def label(self) -> str:
        return f"elements{self.elements} warps{self.num_warps}"

    @property
    def handicap(self) -> float:
        return 1.0


CONFIGS = (BlockConfig(4096, 4), BlockConfig(8192, 8))


@triton.jit
def _quantize_blockwise_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    M,
    K,
    stride_xm,
    stride_scale_m,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCKS_M: tl.constexpr,
    BLOCKS_K: tl.constexpr,
):
    """Quantize a tile [BLOCKS_M, BLOCK_M, BLOCKS_K, BLOCK_K] per program; ragged edges read as zeros."""
    block_m = tl.program_id(0) * BLOCKS_M + tl.arange(0, BLOCKS_M)[:, None, None, None]
    block_k = tl.program_id(1) * BLOCKS_K + tl.arange(0, BLOCKS_K)[None, None, :, None]
    row = block_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :, None, None]
    col = block_k * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, None, :]
    mask = (row < M) & (col < K)
    x = load_activated(x_ptr, row * stride_xm + col, mask, K, ACTIVATION).to(tl.float32)
    peak = tl.max(tl.max(magnitude(x), 3, keep_dims=True), 1, keep_dims=True)
    scale = scale_from_peak(peak)
    inside = (block_m * BLOCK_M < M) & (block_k * BLOCK_K < K)
    tl.store(scale_ptr + block_m.to(tl.int64) * stride_scale_m + block_k, scale, mask=inside)
    tl.store(q_ptr + row * K + col, to_int8(x, tl.div_rn(1.0, scale)), mask=mask)


def launch_blocks(config, rows, q, scale, block_m: int, block_k: int, activation=None) -> Launch:
    """Return the launch that quantizes rows [M, K] by blocks of block_m rows and block_k columns.

    rows is [M, 2 K] for a gated activation. Written are q int8 [M, K] and scale float32
    [ceil(M / block_m), ceil(K / block_k)], one entry per block; both are contiguous.
    """
    m, k = rows.shape[0], rows.shape[1] // activations.halves(activation)
    # 256 columns a program read whole sectors; beyond one block only as far as `elements` go.
    blocks = max(1, config.elements // (block_m * block_k))
    blocks_k = min(power_of_2(cdiv(k, block_k)), max(1, 256 // block_k), blocks)
    blocks_m = min(power_of_2(cdiv(m, block_m)), max(1, blocks // blocks_k))
    args = {
        "x_ptr": rows,
        "q_ptr": q,
        "scale_ptr": scale,
        "M": m,
        "K": k,
        "stride_xm": rows.stride(0),
        "stride_scale_m": cdiv(k, block_k),
        "ACTIVATION": activation,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
        "BLOCKS_M": blocks_m,
        "BLOCKS_K": blocks_k,
    }
    grid = (cdiv(m, block_m * blocks_m), cdiv(k, block_k * blocks_k))
    warps = config.num_warps if block_m * block_k < MAX_BLOCK else 8
    return Launch(_quantize_blockwise_kernel, grid, args, num_warps=warps, num_stages=1)


def quantize_blocks(x: Operand, block_m: int, block_k: int, activation=None) -> Plan:
    """Plan (q [.., K], scale) of checked arguments, with `activation` applied to x as it is loaded."""
    if block_m * block_k > MAX_BLOCK:
        raise Unsupported(f"a block of {block_m} x {block_k} does not fit one program ({MAX_BLOCK} elements)")
    arch = arch_of(x.device)
    k = x.shape[-1] // activations.halves(activation)
    q = empty((*x.shape[:-1], k), torch.int8, x.device)
    scale = empty(_scale_shape(q, block_m, block_k), torch.float32, x.device)
    if x.numel() == 0:
        return Plan([], (q, scale))
    rows = rows_of(x)

    def steps(config):
        return [launch_blocks(config, rows, q, scale, block_m, block_k, activation)]

    kind = "blockwise m{} k{} {} {}x{} {}"
    key = kind, bucket(rows.shape[0]), k, rows.dtype, block_m, block_k, activation
    return Plan([Choice(arch, key, CONFIGS, steps, x.device)], (q, scale))


@planned
def quantize_blockwise(x: Operand, block_m: int, block_k: int) -> Plan:
    """Plan `kernels.quantize_blockwise`: one launch."""
    _check(x, block_m, block_k)
    return quantize_blocks(x, block_m, block_k)
