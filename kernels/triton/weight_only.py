"""W8A16: float activations times int8 weights, each weight read once. For M <= 16, any M allowed.

The weight is the left operand of the product: on sm_90 its bfloat16 image then stays in
registers. Activations that are not exact in 16 bits (rotated, or float32) come as planes of
bfloat16 whose sum they are; the weight tile is converted once for all planes.

Up to 16 rows the rotation is done inside, by every program anew: a launch less, for a third more products
while the weights arrive, which is what takes the time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._library import Unsupported
from ..int8_linear import FEW_ROWS, check_weight
from ..int8_mm import is_blockwise
from ..scales import granularity
from ._arch import arch_of, mma_fragments
from ._epilogue import Epilogue, finish, launch_finish
from ._launch import Launch, cdiv, power_of_2
from ._operands import Operand, aligned, empty, rows_of
from ._plan import Choice, Plan, Step
from ._planned import planned
from ._tiles import high_part, piece_columns, rotate_tile
from ._tuning import bucket
from .int8_mm import MAX_WORKSPACE
from .rotation import launch_rotate


class WeightOnlyConfig(NamedTuple):
    """A tile of BLOCK_N weights rows, BLOCK_K columns, for BLOCK_M activations.

    rotates: the kernel rotates the activations itself, 256 columns at a time; else they come rotated.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    rotates: bool = False

    @property
    def label(self) -> str:
        tile = f"{self.block_m}x{self.block_n}x{self.block_k}"
        rotates = " rotates" if self.rotates else ""
        return f"{tile} warps{self.num_warps} stages{self.num_stages} split{self.split_k}{rotates}"

    @property
    def handicap(self) -> float:
        return 1.0


# Bound by reading weights: enough programs in flight, and 16 KiB or more a stage.
CONFIGS = (
    (16, (
        WeightOnlyConfig(16, 64, 128, 4, 4),
        WeightOnlyConfig(16, 32, 256, 4, 3),
        WeightOnlyConfig(16, 64, 128, 8, 4, split_k=4),
        WeightOnlyConfig(16, 128, 128, 4, 3, split_k=4),
    )),
    (None, (WeightOnlyConfig(64, 64, 64, 4, 3), WeightOnlyConfig(32, 64, 64, 8, 3))),
)  # fmt: skip
ROTATING = (
    WeightOnlyConfig(16, 32, 256, 4, 3, rotates=True),
    WeightOnlyConfig(16, 64, 256, 4, 3, rotates=True),
)
# RDNA has no room for a second plane beside wider tiles: 48 bytes spill at K = 128.
RDNA = (
    (16, (WeightOnlyConfig(16, 64, 64, 4, 2), WeightOnlyConfig(16, 32, 64, 4, 2))),
    (None, (WeightOnlyConfig(64, 64, 32, 8, 1),)),
)
# Rows off 16-byte boundaries, read value by value.
UNALIGNED = (WeightOnlyConfig(16, 32, 64, 4, 2),)
INTERPRETER = (WeightOnlyConfig(16, 64, 128, 4, 1), WeightOnlyConfig(16, 64, 64, 4, 1, split_k=2))


@triton.jit
def _rotated(
    x_ptr, rows, stride_xm, start, K, ROTATION: tl.constexpr, MMA: tl.constexpr, EVEN_K: tl.constexpr
):
    """256 columns of 16-bit rows [M, K], rotated, as bfloat16 [256, rows]: two whose sum they are."""
    cols = start + piece_columns(False)
    places = x_ptr + rows.to(tl.int64)[:, None, None, None, None] * stride_xm + cols
    x = tl.load(places) if EVEN_K else tl.load(places, mask=cols < K, other=0.0)
    y = rotate_tile(x, ROTATION, 2, MMA)
    y = tl.trans(tl.reshape(tl.permute(y, 0, 1, 3, 2, 4), (rows.shape[0], 256)))
    high, taken = high_part(y)
    low, _ = high_part(y - taken)
    return high, low


@triton.jit
def _int8_weight_only_kernel(
    x_ptr,
    w_ptr,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    M,
    N,
    K,
    stride_plane,
    stride_xm,
    stride_wn,
    stride_wk,
    stride_split,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: tl.constexpr,
    BLOCKWISE: tl.constexpr,
    EDGE_N: tl.constexpr,
    EDGE_K: tl.constexpr,
    PLANES: tl.constexpr,
    ROTATION: tl.constexpr,
    MMA: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x_ptr: PLANES 16-bit planes [M, K]; w_ptr int8 [N, K]. SPLIT_K > 1 writes float32 partial sums.

    ROTATION > 0: one plane, that is rotated here and makes two. BLOCK_K is 256 then, a piece of `_tiles`.
    """
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_n = tl.minimum(offs_n, N - 1)
    row_m = tl.minimum(offs_m, M - 1)
    w = w_ptr + row_n.to(tl.int64)[:, None] * stride_wn
    x = x_ptr + row_m.to(tl.int64)[None, :] * stride_xm
    offs_k = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(K, BLOCK_K)
    each = tl.cdiv(steps, SPLIT_K)
    first = tl.program_id(2) * each
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(first, tl.minimum(first + each, steps)):
        k = step * BLOCK_K + offs_k
        if EVEN_K:
            weight = tl.load(w + k[None, :] * stride_wk)
        else:
            weight = tl.load(w + k[None, :] * stride_wk, mask=(k < K)[None, :], other=0)
        weight = weight.to(tl.bfloat16 if ROTATION else x_ptr.dtype.element_ty)
        if BLOCKWISE:
            part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        else:
            part = acc
        if ROTATION:
            high, low = _rotated(x_ptr, row_m, stride_xm, step * BLOCK_K, K, ROTATION, MMA, EVEN_K)
            part = tl.dot(weight, high, part)
            part = tl.dot(weight, low, part)
        else:
            plane = x
            for _ in tl.static_range(PLANES):
                if EVEN_K:
                    right = tl.load(plane + k[:, None])
                else:
                    right = tl.load(plane + k[:, None], mask=(k < K)[:, None], other=0.0)
                plane += stride_plane  # a step at a time: a multiple of the stride may not fit its int32
                part = tl.dot(weight, right, part)
        if BLOCKWISE:
            scale = tl.load(b_scale_ptr + (row_n // EDGE_N) * stride_b_scale + step * BLOCK_K // EDGE_K)
            acc += part * scale[:, None]
        else:
            acc = part
    y = tl.trans(acc)
    if SPLIT_K > 1:
        out = out_ptr + tl.program_id(2).to(tl.int64) * stride_split
        out += offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        tl.store(out, y, mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])
    else:
        finish(
            y, offs_m, offs_n, M, N, out_ptr, N, a_scale_ptr, b_scale_ptr, bias_ptr,
            stride_a_scale, stride_b_scale, ACTIVATION, BLOCKWISE, residual_ptr, residual_scale_ptr,
        )  # fmt: skip


def launch_weight_only(config, planes, w, out, epilogue: Epilogue, edges=None, rotation=0) -> Launch:
    """Return the launch for planes [P, M, K] (16-bit, K contiguous) and w int8 [N, K] of any strides.

    out: [M, N] contiguous, or float32 [split_k, M, N]. rotation: of one plane, by a config that rotates.
    """
    (parts, m, k), n = planes.shape, w.shape[0]
    args = {
        "x_ptr": planes,
        "w_ptr": w,
        "out_ptr": out,
        "M": m,
        "N": n,
        "K": k,
        "stride_plane": planes.stride(0),
        "stride_xm": planes.stride(1),
        "stride_wn": w.stride(0),
        "stride_wk": w.stride(1),
        "stride_split": m * n if config.split_k > 1 else 0,
        "BLOCKWISE": edges is not None,
        "EDGE_N": power_of_2(edges[0]) if edges else 1,
        "EDGE_K": power_of_2(edges[1]) if edges else 1,
        "PLANES": parts,
        "ROTATION": rotation,
        "MMA": mma_fragments(planes.device),
        "SPLIT_K": config.split_k,
        "EVEN_K": k % config.block_k == 0,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        **epilogue.all_arguments(),
    }
    if edges and epilogue.b_scale is not None:
        args["stride_b_scale"] = epilogue.b_scale.stride(0)
    grid = (cdiv(n, config.block_n), cdiv(m, config.block_m), config.split_k)
    return Launch(_int8_weight_only_kernel, grid, args, config.num_warps, config.num_stages)


def _planes(x: Operand, rotation: int) -> tuple[list[Step], Operand]:
    """Return steps, and 16-bit planes [P, M, K] that sum to the rotated x [M, K]: itself, or one launch."""
    if rotation == 0 and x.dtype != torch.float32:
        return [], x.reshape(1, *x.shape)
    parts = 3 if x.dtype == torch.float32 else 2
    planes = empty((parts, *x.shape), torch.bfloat16, x.device)
    return [launch_rotate(x, planes, rotation, parts)], planes


def _candidates(arch, planes: Operand, w: Operand, edges):
    """Return the tiles for activations that come rotated."""
    (_, m, _), n = planes.shape, w.shape[0]
    if arch.family == "interpreter":
        found: Sequence[WeightOnlyConfig] = INTERPRETER
    elif not (aligned(planes) and aligned(w)):
        found = UNALIGNED
    else:
        table = RDNA if arch.family == "rdna" else CONFIGS
        found = next(configs for limit, configs in table if limit is None or m <= limit)
    if arch.family == "cdna":  # 64 KiB of shared memory
        found = tuple(c._replace(num_stages=2) for c in found)
    if arch.family == "sm100" and planes.shape[0] > 1:
        found = _in_shared_memory(found)
    if edges is None:
        return [c for c in found if c.split_k == 1 or c.split_k * m * n * 4 <= MAX_WORKSPACE]
    block = power_of_2(edges[1])
    if block < 16:
        raise Unsupported(f"scale blocks of {edges[1]} columns are narrower than one product (16)")
    found = [c for c in found if c.block_n <= 64]  # a second accumulator: 128 rows spill 8 bytes on sm_100
    return list(dict.fromkeys(c._replace(block_k=min(c.block_k, block), split_k=1) for c in found))


def _rotating(arch, rows: Operand, w: Operand, rotation: int) -> Sequence[WeightOnlyConfig]:
    """Return the tiles that rotate few rows themselves, none where they cannot."""
    served = mma_fragments(rows.device) and 0 < rotation <= 256 and rows.element_size() == 2
    if not served or rows.shape[0] > FEW_ROWS or not (aligned(rows) and aligned(w)):
        return ()
    return _in_shared_memory(ROTATING) if arch.family == "sm100" else ROTATING


def _in_shared_memory(configs: Sequence[WeightOnlyConfig]) -> tuple[WeightOnlyConfig, ...]:
    """Return tiles for two products a step on sm_100: of 32 weight rows at most.

    From 64 on the weight tile lies in tensor memory, and the code that Triton 3.9 makes overwrites it before
    it has waited for the previous step's last product, which reads it.
    """
    return tuple(dict.fromkeys(c._replace(block_n=min(c.block_n, 32)) for c in configs))


def multiply(
    rows, qweight, weight_scale, bias, rotation: int, out, activation=None, residual=None, residual_scale=None
) -> list[Step]:
    """Return the steps that multiply rows [M, K] by the weight into contiguous out [M, N].

    `activation`, and a residual with its scale (contiguous), are for the epilogue.
    """
    arch = arch_of(rows.device)
    (n, k), m = qweight.shape, rows.shape[0]
    edges = granularity(n, k, weight_scale) if is_blockwise(qweight, weight_scale) else None
    b_scale = weight_scale.float().contiguous()
    bias = None if bias is None else bias.contiguous()
    epilogue = Epilogue(None, b_scale, bias, activation, residual, residual_scale)
    before, planes = _planes(rows, rotation)

    def steps(config):
        if config.rotates:
            one = rows.reshape(1, *rows.shape)
            return [launch_weight_only(config, one, qweight, out, epilogue, rotation=rotation)]
        if config.split_k > 1:
            partial = empty((config.split_k, m, n), torch.float32, rows.device)
            first = launch_weight_only(config, planes, qweight, partial, epilogue)
            return [*before, first, launch_finish(partial, out, epilogue)]
        return [*before, launch_weight_only(config, planes, qweight, out, epilogue, edges)]

    kind, parts = "weight_only m{} n{} k{} {} x{} rotation{} {} {} {}", planes.shape[0]
    blocks, added = "blocks" if edges else "rows", "residual" if residual is not None else None
    key = kind, bucket(m), n, k, rows.dtype, parts, rotation, blocks, activation, added
    found = [*_rotating(arch, rows, qweight, rotation), *_candidates(arch, planes, qweight, edges)]
    return [Choice(arch, key, found, steps, rows.device)]


@planned
def int8_weight_only_linear(x, qweight, weight_scale, bias=None, rotation=0) -> Plan:
    """Plan `kernels.int8_weight_only_linear`: one launch, one more to rotate many rows or with split-K."""
    check_weight(x, qweight, weight_scale, bias, rotation)
    arch_of(x.device)
    rows, n = rows_of(x), qweight.shape[0]
    out = empty((rows.shape[0], n), x.dtype, x.device)
    steps = multiply(rows, qweight, weight_scale, bias, rotation, out) if out.numel() else []
    return Plan(steps, out.reshape(*x.shape[:-1], n))
