"""The linear of weights of small floats: FP8 products, tiles dequantized in registers, or a dense weight."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ..float_linear import check, multiplies_fp8, scaled_mm
from ..floats import BLOCKS
from ._arch import arch_of
from ._epilogue import Epilogue, finish, launch_finish
from ._float_bits import float_tile
from ._launch import Launch, cdiv
from ._operands import aligned, empty, rows_of
from ._plan import Call, Choice, Plan, Step
from ._planned import planned
from ._tuning import bucket
from .floats import contiguous_columns, dequantize_floats, to_fp8, weight_arguments
from .int8_mm import MAX_WORKSPACE
from .weight_only import WeightOnlyConfig

SLICE = 32 << 20
"""Weights dequantized at once: bounds the memory to 64 MiB of bfloat16."""

FEW_ROWS = 16
"""Rows up to which the bytes of the weight alone count."""


class Scaled(NamedTuple):
    """FP8 by FP8 through ``torch._scaled_mm``; its result has the rounding noise of FP8 activations."""

    label: str = "torch._scaled_mm"
    handicap: float = 1.0


class Dense(NamedTuple):
    """Dequantize and call the float linear, a slice of the weight's rows at a time."""

    label: str = "dequantize + F.linear"
    handicap: float = 1.0


Engine = Scaled | Dense | WeightOnlyConfig

# Bound by reading weights, as in `weight_only`.
TILES = (
    WeightOnlyConfig(16, 64, 128, 4, 4),
    WeightOnlyConfig(16, 32, 128, 2, 4),
    WeightOnlyConfig(16, 64, 128, 4, 4, split_k=4),
)
AMD = (WeightOnlyConfig(16, 32, 64, 4, 2),)
INTERPRETER: tuple[Engine, ...] = (WeightOnlyConfig(16, 64, 64, 4, 1),)


@triton.jit
def _float_weight_only_kernel(
    x_ptr,
    w_ptr,
    block_ptr,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    M,
    N,
    K,
    stride_xm,
    stride_w,
    tiles_k,
    stride_split,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: tl.constexpr,
    KIND: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x 16-bit [M, K] by the weight, its tile the left operand. SPLIT_K > 1 writes float32 partial sums."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_n = tl.minimum(offs_n, N - 1).to(tl.int64)
    x = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64)[None, :] * stride_xm
    offs_k = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(K, BLOCK_K)
    each = tl.cdiv(steps, SPLIT_K)
    first = tl.program_id(2) * each
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(first, tl.minimum(first + each, steps)):
        weight = float_tile(
            w_ptr, block_ptr, None, row_n, step * BLOCK_K, K, stride_w, tiles_k, KIND, EVEN, BLOCK_N, BLOCK_K
        )
        k = (step * BLOCK_K + offs_k)[:, None]
        if EVEN:
            right = tl.load(x + k)
        else:
            right = tl.load(x + k, mask=k < K, other=0.0)
        acc = tl.dot(weight.to(x_ptr.dtype.element_ty), right, acc)
    y = tl.trans(acc)
    if SPLIT_K > 1:
        out = out_ptr + tl.program_id(2).to(tl.int64) * stride_split
        out += offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        tl.store(out, y, mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])
    else:
        finish(
            y, offs_m, offs_n, M, N, out_ptr, N, a_scale_ptr, b_scale_ptr, bias_ptr,
            stride_a_scale, stride_b_scale, ACTIVATION, False,
        )  # fmt: skip


def launch_tiles(config, rows, q, kind: str, block_scale, out, epilogue: Epilogue) -> Launch:
    """Return the launch for rows [M, K] of 16 bits; out [M, N], or float32 [split_k, M, N]."""
    (m, k), n = rows.shape, q.shape[0]
    args = {
        "x_ptr": rows,
        "out_ptr": out,
        "M": m,
        "N": n,
        "K": k,
        "stride_xm": rows.stride(0),
        "stride_split": m * n if config.split_k > 1 else 0,
        "SPLIT_K": config.split_k,
        "EVEN": k % config.block_k == 0,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        **weight_arguments(q, kind, block_scale),
        **epilogue.arguments(),
    }
    grid = (cdiv(n, config.block_n), cdiv(m, config.block_m), config.split_k)
    return Launch(_float_weight_only_kernel, grid, args, config.num_warps, config.num_stages)


def engines(family: str, m: int, n: int, dtype: torch.dtype, kind: str, fp8: bool) -> list[Engine]:
    """Return what can serve M rows of a dtype, what is taken unmeasured first.

    Tiles hold a value times its block's scale, which float16 has no room for.
    """
    found: list[Engine] = [Scaled(), Dense()] if fp8 else [Dense()]
    if dtype == torch.float32 or m > FEW_ROWS or (dtype == torch.float16 and kind in BLOCKS):
        return found
    if family == "interpreter":
        return [*INTERPRETER]
    table = AMD if family in ("cdna", "rdna", "xpu") else TILES
    tiles = [t for t in table if t.split_k == 1 or t.split_k * m * n * 4 <= MAX_WORKSPACE]
    return [*tiles, *found[:1]] if fp8 else [*tiles]


@planned
def float_linear(x, q, kind, scale=None, block_scale=None, bias=None, input_scale=None, exact=False) -> Plan:
    """Plan `kernels.float_linear`: one launch for a few rows, else an FP8 product or a dense weight."""
    weight = check(x, q, kind, scale, block_scale, bias, input_scale)
    arch = arch_of(x.device)
    rows, n = rows_of(x), weight.n
    m = rows.shape[0]
    out = empty((m, n), x.dtype, x.device)
    result = out.reshape(*x.shape[:-1], n)
    if not out.numel():
        return Plan([], result)
    q = contiguous_columns(q)
    block_scale = None if block_scale is None else block_scale.contiguous()
    scale = None if scale is None else scale.float().contiguous()
    if input_scale is not None:
        input_scale = input_scale.to(x.device, torch.float32)
    fp8 = aligned(q) and multiplies_fp8(x, weight, kind, scale, exact)

    def steps(engine) -> list[Step]:
        if isinstance(engine, Dense):
            return [Call(_dense, rows, q, kind, scale, block_scale, bias, out)]
        if isinstance(engine, Scaled):
            rows8, found = empty((m, weight.k), torch.uint8, x.device), empty((), torch.float32, x.device)
            first = to_fp8(rows, "e4m3", input_scale, rows8, found)
            return [*first, Call(scaled_mm, rows8, q, kind, scale, found, bias, out)]
        epilogue = Epilogue(None, scale, None if bias is None else bias.contiguous(), None)
        if engine.split_k > 1:
            partial = empty((engine.split_k, m, n), torch.float32, x.device)
            summed = launch_tiles(engine, rows, q, kind, block_scale, partial, epilogue)
            return [summed, launch_finish(partial, out, epilogue)]
        return [launch_tiles(engine, rows, q, kind, block_scale, out, epilogue)]

    key = "float_linear m{} n{} k{} {} {} {}", bucket(m), n, weight.k, x.dtype, kind, exact
    found = engines(arch.family, m, n, x.dtype, kind, fp8)
    return Plan([Choice(arch, key, found, steps, x.device)], result)


def _dense(rows, q, kind, scale, block_scale, bias, out) -> None:
    """The float linear on slices of the dequantized weight, whole tiles of block scales each."""
    n, k = out.shape[1], rows.shape[1]
    step = max(128, SLICE // k // 128 * 128)
    for start in range(0, n, step):
        stop = min(start + step, n)
        own = scale if scale is None or scale.numel() == 1 else scale[start:stop]
        blocks = None if block_scale is None else block_scale[start : -(-stop // 128) * 128]
        weight = dequantize_floats(q[start:stop], kind, own, blocks, rows.dtype)
        part = None if bias is None else bias[start:stop].to(rows.dtype)
        out[:, start:stop] = F.linear(rows, weight, part)
