"""INT8 back to float for every granularity, un-rotating in the same pass."""

import torch
import triton
import triton.language as tl

from .. import _checks
from ..dequantize import _matrix_of_scales
from ..rotation import check_rotation
from ..scales import granularity
from ._arch import arch_of, mma_fragments
from ._launch import Launch, power_of_2
from ._operands import Operand, empty, rows_of
from ._plan import Plan
from ._planned import planned
from ._tiles import across, rotate_tile
from .rotation import WARPS, places, shared_out, store_rows


@triton.jit
def _dequantize_kernel(
    q_ptr,
    scale_ptr,
    out_ptr,
    M,
    K,
    stride_qm,
    stride_scale_m,
    EDGE_M: tl.constexpr,
    EDGE_K: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROTATION: tl.constexpr,
    MMA: tl.constexpr,
    ROWS: tl.constexpr,
    G: tl.constexpr,
):
    """Without BLOCKS a row has one scale: the integers are rotated exactly, the scale comes after."""
    QUARTERS: tl.constexpr = 4 if ROTATION == 1024 else 1
    tiles = ()
    for i in tl.static_range(QUARTERS):
        row, cols = places(ROWS, G, i, QUARTERS, False)
        mask = (row < M) & (cols < K)
        q = tl.load(q_ptr + row * stride_qm + cols, mask=mask, other=0)
        if BLOCKS:
            scale = scale_ptr + (row // EDGE_M) * stride_scale_m + cols // EDGE_K
            y = rotate_tile(q.to(tl.float32) * tl.load(scale, mask=mask, other=0.0), ROTATION, 3, MMA)
        else:
            # int8 is exact in bfloat16; the first product has 12 bits, which two parts hold exactly.
            y = rotate_tile(q.to(tl.bfloat16), ROTATION, 2, MMA)
        tiles = tiles + (y,)  # type: ignore[assignment]  # noqa: RUF005 - the compiler has no unpacking
    if QUARTERS == 4:
        tiles = across(tiles[0], tiles[1], tiles[2], tiles[3])  # type: ignore[misc]
    for i in tl.static_range(QUARTERS):
        y = tiles[i]
        if not BLOCKS:
            row, _ = places(ROWS, G, i, QUARTERS, False)
            y *= tl.load(scale_ptr + row * stride_scale_m, mask=row < M, other=0.0)
        store_rows(out_ptr, y, M, K, ROWS, G, i, QUARTERS)


def launch_dequantize(rows, scales, out, edges: tuple[int, int], rotation: int) -> Launch:
    """Return the launch for q int8 [M, K] with scales float32 [A, B], one entry `edges` rows and columns."""
    m, k = rows.shape
    grid, shares = shared_out(m, k, rotation)
    args = {
        "q_ptr": rows,
        "scale_ptr": scales,
        "out_ptr": out,
        "M": m,
        "K": k,
        "stride_qm": rows.stride(0),
        "stride_scale_m": 0 if scales.shape[0] == 1 else scales.stride(0),
        "EDGE_M": power_of_2(edges[0]),
        "EDGE_K": power_of_2(edges[1]),
        "BLOCKS": scales.shape[1] != 1 or scales.shape[0] not in (1, m),
        "ROTATION": rotation,
        "MMA": mma_fragments(rows.device),
        **shares,
    }
    return Launch(_dequantize_kernel, grid, args, num_warps=WARPS, num_stages=1)


@planned
def dequantize(q: Operand, scale: Operand, dtype: torch.dtype, rotation: int = 0) -> Plan:
    """Plan `kernels.dequantize`: one launch."""
    _checks.int8("q", q)
    _checks.has_rows("q", q)
    check_rotation(q.shape[-1], rotation)
    if dtype not in _checks.FLOATS:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    arch_of(q.device)
    out = empty(q.shape, dtype, q.device)
    if not q.numel():
        return Plan([], out)
    rows = rows_of(q)
    scales = _matrix_of_scales(q, scale).contiguous()
    edges = granularity(rows.shape[0], rows.shape[1], scales)
    return Plan([launch_dequantize(rows, scales, out, edges, rotation)], out)
