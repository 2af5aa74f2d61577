"""Coordinate descent over a block of columns: one launch, a program owns whole rows."""

import torch
import triton
import triton.language as tl

from ..descent import _check
from ..scales import QMAX
from ._arch import arch_of
from ._launch import Launch, cdiv
from ._operands import Operand, empty
from ._panels import columns_of, from_earlier, passed_on, ratios_after
from ._plan import Call, Choice, Plan
from ._planned import planned
from .ldlq import CONFIGS, scratch_of


@triton.jit
def _rounded(code, step, inverse, LEVELS: tl.constexpr):
    """1.5 * 2 ** 23 more than the level nearest to code + step * inverse: its low byte is the int8 code."""
    return tl.minimum(tl.maximum(code + step * inverse, -LEVELS), LEVELS) + 12582912.0


@triton.jit
def _descend_kernel(
    gradient_ptr,
    code_ptr,
    hessian_ptr,
    scale_ptr,
    q_ptr,
    change_ptr,
    scratch_ptr,
    N,
    B,
    stride_gn,
    stride_gb,
    stride_hi,
    stride_hj,
    stride_scale,
    stride_qn,
    stride_qb,
    BLOCK_N: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """In panels, as `_ldlq_kernel` is. code_ptr and change_ptr are [N, B], contiguous.

    code_ptr has the codes as they were, which go to q_ptr as they are then. A step is a gradient over the
    Hessian's diagonal, so the Hessian's columns are divided by it, and no number between two columns.
    """
    lane = tl.arange(0, BLOCK_N)
    n = tl.program_id(0) * BLOCK_N + lane
    inside = n < N
    row = n.to(tl.int64)
    k = tl.arange(0, 16)
    scale = tl.load(scale_ptr + row * stride_scale, mask=inside, other=1.0)
    inverse = tl.div_rn(1.0, scale)
    gradient_ptr += row[:, None] * stride_gn
    code_ptr += row[:, None] * B
    q_ptr += row[:, None] * stride_qn
    change_ptr += row[:, None] * B
    ratio_ptr = scratch_ptr + tl.program_id(0) * (256 + 16 * BLOCK_N)
    step_ptr = ratio_ptr + 256
    for start in range(0, B, 16):
        j = start + k
        real = j < B
        above = (k[:, None] < k[None, :]) & real[None, :]
        upper = tl.load(hessian_ptr + j[:, None] * stride_hi + j[None, :] * stride_hj, mask=above, other=0.0)
        diagonal = tl.load(hessian_ptr + j * (stride_hi + stride_hj), mask=real, other=1.0)[None, :]
        there = inside[:, None] & real[None, :]
        place = j.to(tl.int64)[None, :]
        gradient = tl.load(gradient_ptr + place * stride_gb, mask=there, other=0.0)
        code = tl.load(code_ptr + j[None, :], mask=there, other=0).to(tl.float32)
        gradient -= from_earlier(change_ptr, hessian_ptr, start, inside, j, B, stride_hi, stride_hj, BLOCK_N)
        over = tl.div_rn(upper, tl.zeros_like(upper) + diagonal)
        tl.store(ratio_ptr + k[:, None] * 16 + k[None, :], over)
        steps = columns_of(tl.div_rn(gradient, tl.zeros_like(gradient) + diagonal))
        codes = columns_of(code)
        tl.debug_barrier()
        ratios = ratios_after(ratio_ptr, 0)
        for a in tl.static_range(16):
            ahead = ratios_after(ratio_ptr, a + 1)
            step = steps[0]
            tl.store(step_ptr + a * BLOCK_N + lane, step)
            r = _rounded(codes[a], step, inverse, LEVELS)
            steps = passed_on(steps, ratios, (codes[a] - (r - 12582912.0)) * scale)
            ratios = ahead
        tl.debug_barrier()
        step = tl.load(step_ptr + k[None, :] * BLOCK_N + lane[:, None])
        r = _rounded(code, step, inverse[:, None], LEVELS)
        tl.store(q_ptr + place * stride_qb, r.to(tl.int32, bitcast=True).to(tl.int8), mask=there)
        tl.store(change_ptr + j[None, :], (r - 12582912.0 - code) * scale[:, None], mask=there)
        tl.debug_barrier()


def launch_descent(config, q, before, gradient, hessian, scale, changes, scratch, levels=QMAX) -> Launch:
    """Return the launch for codes int8, gradients float32, q int8 and changes float32, all [N, B].

    Codes and changes are contiguous.
    """
    n, b = gradient.shape
    args = {
        "gradient_ptr": gradient,
        "code_ptr": before,
        "hessian_ptr": hessian,
        "scale_ptr": scale,
        "q_ptr": q,
        "change_ptr": changes,
        "scratch_ptr": scratch,
        "N": n,
        "B": b,
        "stride_gn": gradient.stride(0),
        "stride_gb": gradient.stride(1),
        "stride_hi": hessian.stride(0),
        "stride_hj": hessian.stride(1),
        "stride_scale": 0 if scale.numel() == 1 else 1,
        "stride_qn": q.stride(0),
        "stride_qb": q.stride(1),
        "BLOCK_N": config.block_n,
        "LEVELS": float(levels),
    }
    warps, stages = config.num_warps, config.num_stages
    return Launch(_descend_kernel, (cdiv(n, config.block_n),), args, num_warps=warps, num_stages=stages)


def _copy(before: torch.Tensor, q: torch.Tensor) -> None:
    before.copy_(q)


@planned
def descend_(q: Operand, gradient: Operand, hessian: Operand, scale: Operand, levels: int = QMAX) -> Plan:
    """Plan `kernels.descend_`: a copy of the codes, then one launch, safe to repeat."""
    _check(q, gradient, hessian, scale, levels)
    arch = arch_of(gradient.device)
    changes = empty(gradient.shape, torch.float32, gradient.device)
    n, b = gradient.shape
    if not n:
        return Plan([], changes)
    before = empty((n, b), torch.int8, gradient.device)
    scales = scale.float().contiguous()

    def steps(config):
        scratch = scratch_of(config, n, gradient.device)
        return [launch_descent(config, q, before, gradient, hessian, scales, changes, scratch, levels)]

    # One warp to a program has a thread keep two panels of 16, codes and steps, and spills on sm_100 and 120.
    chosen = Choice(arch, ("descend n{} b{}", n, b), CONFIGS[:1], steps, gradient.device)
    return Plan([Call(_copy, before, q), chosen], changes)
