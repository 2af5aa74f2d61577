"""Coordinate descent over a block of columns: one launch, moves in registers, a program owns whole rows."""

import torch
import triton
import triton.language as tl

from ..descent import _check
from ..scales import QMAX
from ._arch import arch_of
from ._launch import Launch, cdiv, power_of_2
from ._operands import Operand, empty
from ._plan import Call, Choice, Plan
from ._planned import planned
from .ldlq import CONFIGS


@triton.jit
def _descend_kernel(
    gradient_ptr,
    code_ptr,
    hessian_ptr,
    scale_ptr,
    q_ptr,
    change_ptr,
    N,
    B,
    stride_b,
    stride_hi,
    stride_hj,
    stride_scale,
    stride_qn,
    stride_qb,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """gradient_ptr and code_ptr are transposed, [B, N]: the 32 values of a column are neighbours.

    code_ptr has the codes as they were, which go to q_ptr as they are then. change_ptr is [N, B].
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    row = n.to(tl.int64)
    i = tl.arange(0, COLUMNS)
    scale = tl.load(scale_ptr + row * stride_scale, mask=inside, other=1.0)
    changes = tl.zeros((COLUMNS, BLOCK_N), tl.float32)
    # Pointers move on from column to column, for the reason that ldlq.py gives.
    column_ptr = hessian_ptr + i * stride_hi
    gradient_ptr += row
    code_ptr += row
    q_ptr += row * stride_qn
    for j in range(B):
        # Moves of later columns are still 0, so entries below the diagonal need not be read.
        column = tl.load(column_ptr, mask=i < j, other=0.0)
        diagonal = tl.load(hessian_ptr)
        gradient = tl.load(gradient_ptr, mask=inside, other=0.0)
        gradient -= tl.sum(changes * column[:, None], 0)
        code = tl.load(code_ptr, mask=inside, other=0).to(tl.float32)
        wanted = code + tl.div_rn(gradient, scale * diagonal)
        r = tl.minimum(tl.maximum(wanted, -LEVELS), LEVELS) + 12582912.0
        tl.store(q_ptr, r.to(tl.int32, bitcast=True).to(tl.int8), mask=inside)
        change = (r - 12582912.0 - code) * scale
        changes = tl.where(i[:, None] == j, change[None, :], changes)
        column_ptr += stride_hj
        hessian_ptr += stride_hi + stride_hj
        gradient_ptr += stride_b
        code_ptr += stride_b
        q_ptr += stride_qb
    tl.store(
        change_ptr + row[:, None] * B + i[None, :],
        tl.trans(changes),
        mask=inside[:, None] & (i[None, :] < B),
    )


def launch_descent(config, q, before, columns, hessian, scale, changes, levels=QMAX) -> Launch:
    """Return the launch for codes int8 and gradients float32 [B, N], q int8 [N, B] and changes [N, B].

    All but q and the hessian are contiguous.
    """
    b, n = columns.shape
    args = {
        "gradient_ptr": columns,
        "code_ptr": before,
        "hessian_ptr": hessian,
        "scale_ptr": scale,
        "q_ptr": q,
        "change_ptr": changes,
        "N": n,
        "B": b,
        "stride_b": columns.stride(0),
        "stride_hi": hessian.stride(0),
        "stride_hj": hessian.stride(1),
        "stride_scale": 0 if scale.numel() == 1 else 1,
        "stride_qn": q.stride(0),
        "stride_qb": q.stride(1),
        "COLUMNS": max(16, power_of_2(b)),
        "BLOCK_N": config.block_n,
        "LEVELS": float(levels),
    }
    return Launch(_descend_kernel, (cdiv(n, config.block_n),), args, num_warps=config.num_warps, num_stages=1)


def _transpose(columns: torch.Tensor, gradient: torch.Tensor, before: torch.Tensor, q: torch.Tensor) -> None:
    columns.copy_(gradient.t())
    before.copy_(q.t())


@planned
def descend_(q: Operand, gradient: Operand, hessian: Operand, scale: Operand, levels: int = QMAX) -> Plan:
    """Plan `kernels.descend_`: transposed copies of gradient and codes, then one launch, safe to repeat."""
    _check(q, gradient, hessian, scale, levels)
    arch = arch_of(gradient.device)
    changes = empty(gradient.shape, torch.float32, gradient.device)
    n, b = gradient.shape
    if not n:
        return Plan([], changes)
    columns = empty((b, n), torch.float32, gradient.device)
    before = empty((b, n), torch.int8, gradient.device)
    scales = scale.float().contiguous()

    def steps(config):
        return [launch_descent(config, q, before, columns, hessian, scales, changes, levels)]

    found = CONFIGS[:1] if arch.family == "rdna" else CONFIGS
    chosen = Choice(arch, ("descend n{} b{}", n, b), found, steps, gradient.device)
    return Plan([Call(_transpose, columns, gradient, before, q), chosen], changes)
