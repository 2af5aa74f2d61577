"""LDLQ over a block of columns: one launch, a program owns whole rows."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..ldlq import _check
from ..scales import QMAX
from ._arch import arch_of
from ._launch import Launch, cdiv
from ._operands import Operand, empty
from ._panels import columns_of, from_earlier, passed_on, ratios_after
from ._plan import Choice, Plan
from ._planned import planned


class LdlqConfig(NamedTuple):
    """Rows and warps of a program; stages of the product by which earlier panels reach a panel."""

    block_n: int
    num_warps: int
    num_stages: int

    @property
    def label(self) -> str:
        return f"rows{self.block_n} warps{self.num_warps}"

    @property
    def handicap(self) -> float:
        return 1.0


# Four warps share the product, 63 to 66 instructions a column each. One warp needs 142, fewer in all, and
# waits for no other, but takes 255 registers on RDNA, and with two stages spills elsewhere.
CONFIGS = (LdlqConfig(32, 4, 2), LdlqConfig(32, 1, 1))


@triton.jit
def _rounded(x, inverse, LEVELS: tl.constexpr):
    """1.5 * 2 ** 23 more than the level nearest to x * inverse: its low byte is the int8 code."""
    return tl.minimum(tl.maximum(x * inverse, -LEVELS), LEVELS) + 12582912.0


@triton.jit
def _ldlq_kernel(
    w_ptr,
    feedback_ptr,
    scale_ptr,
    q_ptr,
    error_ptr,
    scratch_ptr,
    N,
    B,
    stride_wn,
    stride_wb,
    stride_fi,
    stride_fj,
    stride_scale,
    stride_qn,
    stride_qb,
    BLOCK_N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Panels of 16 columns one after the other. error_ptr is [N, B], contiguous.

    Errors of earlier panels reach a panel in one product, those of its own column by column: a thread
    has a whole row of the panel, so there nothing is searched for and nothing is waited for. All warps
    do that for the same rows, which is less than to share it out. scratch_ptr: of each program
    [16, 16] and [16, BLOCK_N], what its threads hand to one another.
    """
    lane = tl.arange(0, BLOCK_N)
    n = tl.program_id(0) * BLOCK_N + lane
    inside = n < N
    row = n.to(tl.int64)
    k = tl.arange(0, 16)
    scale = tl.load(scale_ptr + row * stride_scale, mask=inside, other=1.0)
    inverse = tl.div_rn(1.0, scale)
    w_ptr += row[:, None] * stride_wn
    q_ptr += row[:, None] * stride_qn
    error_ptr += row[:, None] * B
    ratio_ptr = scratch_ptr + tl.program_id(0) * (256 + 16 * BLOCK_N)
    x_ptr = ratio_ptr + 256
    for start in range(0, B, 16):
        j = start + k
        real = j < B
        # An error is what rounding missed over U's diagonal. What is missed goes to the other columns of
        # the panel by U's rows over their diagonal: no division between one column and the next.
        above = (k[:, None] < k[None, :]) & real[None, :]
        upper = tl.load(feedback_ptr + j[:, None] * stride_fi + j[None, :] * stride_fj, mask=above, other=0.0)
        diagonal = tl.load(feedback_ptr + j * (stride_fi + stride_fj), mask=real, other=1.0)
        there = inside[:, None] & real[None, :]
        place = j.to(tl.int64)[None, :]
        w = tl.load(w_ptr + place * stride_wb, mask=there, other=0.0)
        fed = from_earlier(error_ptr, feedback_ptr, start, inside, j, B, stride_fi, stride_fj, BLOCK_N)
        over = tl.div_rn(upper, tl.zeros_like(upper) + diagonal[:, None])
        tl.store(ratio_ptr + k[:, None] * 16 + k[None, :], over)
        columns = columns_of(w - fed)
        tl.debug_barrier()
        ratios = ratios_after(ratio_ptr, 0)
        for a in tl.static_range(16):
            # Before the column is written: a later read would have to wait for that.
            ahead = ratios_after(ratio_ptr, a + 1)
            x = columns[0]
            tl.store(x_ptr + a * BLOCK_N + lane, x)
            excess = (_rounded(x, inverse, LEVELS) - 12582912.0) * scale - x
            columns = passed_on(columns, ratios, excess)
            ratios = ahead
        tl.debug_barrier()
        # Rounded again, the same bits: each thread 4 neighbours of a row, stored at once, not 16 one by one.
        x = tl.load(x_ptr + k[None, :] * BLOCK_N + lane[:, None])
        r = _rounded(x, inverse[:, None], LEVELS)
        tl.store(q_ptr + place * stride_qb, r.to(tl.int32, bitcast=True).to(tl.int8), mask=there)
        missed = x - (r - 12582912.0) * scale[:, None]
        error = tl.div_rn(missed, tl.zeros_like(missed) + diagonal[None, :])
        tl.store(error_ptr + j[None, :], error, mask=there)
        tl.debug_barrier()


def scratch_of(config: LdlqConfig, n: int, device: torch.device) -> Operand:
    """Return the memory in which the threads of each program for n rows hand numbers to one another."""
    return empty((cdiv(n, config.block_n), 256 + 16 * config.block_n), torch.float32, device)


def launch_ldlq(config, q, w, feedback, scale, errors, scratch, levels=QMAX) -> Launch:
    """Return the launch for w float32 [N, B], q int8 [N, B] and errors [N, B], which is contiguous."""
    n, b = w.shape
    args = {
        "w_ptr": w,
        "feedback_ptr": feedback,
        "scale_ptr": scale,
        "q_ptr": q,
        "error_ptr": errors,
        "scratch_ptr": scratch,
        "N": n,
        "B": b,
        "stride_wn": w.stride(0),
        "stride_wb": w.stride(1),
        "stride_fi": feedback.stride(0),
        "stride_fj": feedback.stride(1),
        "stride_scale": 0 if scale.numel() == 1 else 1,
        "stride_qn": q.stride(0),
        "stride_qb": q.stride(1),
        "BLOCK_N": config.block_n,
        "LEVELS": float(levels),
    }
    warps, stages = config.num_warps, config.num_stages
    return Launch(_ldlq_kernel, (cdiv(n, config.block_n),), args, num_warps=warps, num_stages=stages)


@planned
def ldlq_(q: Operand, w: Operand, feedback: Operand, scale: Operand, levels: int = QMAX) -> Plan:
    """Plan `kernels.ldlq_`: one launch. No host synchronisation."""
    _check(q, w, feedback, scale, levels)
    arch = arch_of(w.device)
    errors = empty(w.shape, torch.float32, w.device)
    n, b = w.shape
    if not n:
        return Plan([], errors)
    scales = scale.float().contiguous()

    def steps(config):
        scratch = scratch_of(config, n, w.device)
        return [launch_ldlq(config, q, w, feedback, scales, errors, scratch, levels)]

    found = CONFIGS[:1] if arch.family == "rdna" else CONFIGS
    return Plan([Choice(arch, ("ldlq n{} b{}", n, b), found, steps, w.device)], errors)
