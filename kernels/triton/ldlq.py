"""LDLQ over a block of columns: one launch, the errors in registers, a program owns whole rows."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..ldlq import _check
from ..scales import QMAX
from ._arch import arch_of
from ._launch import Launch, cdiv, power_of_2
from ._operands import Operand, empty
from ._plan import Call, Choice, Plan
from ._planned import planned


class LdlqConfig(NamedTuple):
    """Rows and warps of a program."""

    block_n: int
    num_warps: int

    @property
    def label(self) -> str:
        return f"rows{self.block_n} warps{self.num_warps}"

    @property
    def handicap(self) -> float:
        return 1.0


# Four warps share the 128 errors of a row (120 registers on sm_80, one barrier a column); one
# warp needs no barrier but 220 registers, and spills on RDNA.
CONFIGS = (LdlqConfig(32, 4), LdlqConfig(32, 1))


@triton.jit
def _ldlq_kernel(
    w_ptr,
    feedback_ptr,
    scale_ptr,
    q_ptr,
    error_ptr,
    N,
    B,
    stride_wb,
    stride_fi,
    stride_fj,
    stride_scale,
    stride_qn,
    stride_qb,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """w_ptr is W^T [B, N]: the 32 values of a column are neighbours. error_ptr is [N, B]."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    row = n.to(tl.int64)
    i = tl.arange(0, COLUMNS)
    scale = tl.load(scale_ptr + row * stride_scale, mask=inside, other=1.0)
    inverse = tl.div_rn(1.0, scale)
    errors = tl.zeros((COLUMNS, BLOCK_N), tl.float32)
    # Pointers move on from column to column: times a stride, the column's number would be widened to 64
    # bits, and with it each of the comparisons by which a thread finds the error to replace.
    upper_ptr = feedback_ptr + i * stride_fi
    w_ptr += row
    q_ptr += row * stride_qn
    for j in range(B):
        # Entries at and below the diagonal are not read: errors of later columns are still 0.
        upper = tl.load(upper_ptr, mask=i < j, other=0.0)
        diagonal = tl.load(feedback_ptr)
        w = tl.load(w_ptr, mask=inside, other=0.0)
        w -= tl.sum(errors * upper[:, None], 0)
        r = tl.minimum(tl.maximum(w * inverse, -LEVELS), LEVELS) + 12582912.0
        q = r.to(tl.int32, bitcast=True).to(tl.int8)
        tl.store(q_ptr, q, mask=inside)
        error = tl.div_rn(w - (r - 12582912.0) * scale, tl.zeros_like(w) + diagonal)
        errors = tl.where(i[:, None] == j, error[None, :], errors)
        upper_ptr += stride_fj
        feedback_ptr += stride_fi + stride_fj
        w_ptr += stride_wb
        q_ptr += stride_qb
    tl.store(
        error_ptr + row[:, None] * B + i[None, :],
        tl.trans(errors),
        mask=inside[:, None] & (i[None, :] < B),
    )


def launch_ldlq(config, q, columns, feedback, scale, errors, levels=QMAX) -> Launch:
    """Return the launch for columns float32 [B, N], q int8 [N, B] and errors [N, B]; all but q contiguous."""
    b, n = columns.shape
    args = {
        "w_ptr": columns,
        "feedback_ptr": feedback,
        "scale_ptr": scale,
        "q_ptr": q,
        "error_ptr": errors,
        "N": n,
        "B": b,
        "stride_wb": columns.stride(0),
        "stride_fi": feedback.stride(0),
        "stride_fj": feedback.stride(1),
        "stride_scale": 0 if scale.numel() == 1 else 1,
        "stride_qn": q.stride(0),
        "stride_qb": q.stride(1),
        "COLUMNS": max(16, power_of_2(b)),
        "BLOCK_N": config.block_n,
        "LEVELS": float(levels),
    }
    return Launch(_ldlq_kernel, (cdiv(n, config.block_n),), args, num_warps=config.num_warps, num_stages=1)


def _transpose(out: torch.Tensor, w: torch.Tensor) -> None:
    out.copy_(w.t())


@planned
def ldlq_(q: Operand, w: Operand, feedback: Operand, scale: Operand, levels: int = QMAX) -> Plan:
    """Plan `kernels.ldlq_`: a transposed copy of the block, then one launch. No host synchronisation."""
    _check(q, w, feedback, scale, levels)
    arch = arch_of(w.device)
    errors = empty(w.shape, torch.float32, w.device)
    n, b = w.shape
    if not n:
        return Plan([], errors)
    columns = empty((b, n), torch.float32, w.device)
    scales = scale.float().contiguous()

    def steps(config):
        return [launch_ldlq(config, q, columns, feedback, scales, errors, levels)]

    found = CONFIGS[:1] if arch.family == "rdna" else CONFIGS
    chosen = Choice(arch, ("ldlq n{} b{}", n, b), found, steps, w.device)
    return Plan([Call(_transpose, columns, w), chosen], errors)
