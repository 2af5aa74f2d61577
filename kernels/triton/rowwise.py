"""Row-wise INT8 quantization: rotation, absmax and rounding with x read once and q written once."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import activations
from ..rowwise import _check
from ._arch import arch_of, check_group
from ._launch import Launch, cdiv
from ._operands import Operand, empty, rows_of
from ._plan import Choice, Plan
from ._planned import planned
from ._tiles import (
    load_activated,
    magnitude,
    rotate_tile,
    scale_from_peak,
    tile_columns,
    to_int8,
    to_int8_saturated,
)
from ._tuning import bucket

DYNAMIC, GIVEN, PEAK = 0, 1, 2
"""Where the scale comes from: the row's absmax; an argument; PEAK writes the absmax and no integers."""

MAX_CHUNKS = 8
"""Chunks of a row kept in registers: 8 elements a thread each, 64 in all (at most 122 registers)."""


class RowConfig(NamedTuple):
    """How many elements of a row each thread should hold: the fewer, the more warps share a row."""

    elements: int

    @property
    def label(self) -> str:
        return f"elements{self.elements}"

    @property
    def handicap(self) -> float:
        return 1.0


# 48 per thread amortise the two divisions of a row: 18 instructions an element against 24 at 24.
CONFIGS = (RowConfig(48), RowConfig(24))


@triton.jit
def _quantize_rowwise_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    given_ptr,
    stride_xm,
    stride_given,
    K,
    MODE: tl.constexpr,
    ROTATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PARTS: tl.constexpr,
    G: tl.constexpr,
    OUTER: tl.constexpr,
    CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Quantize one row per program. CHUNKS = 0: the row does not fit registers and is read twice."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride_xm
    q_ptr += row * K
    CHUNK: tl.constexpr = G * OUTER * 16
    cols = tile_columns(G, OUTER)
    peaks = tl.zeros((G, OUTER, 16), tl.int32)
    tiles = ()
    for c in tl.static_range(CHUNKS):
        mask = None if EVEN else c * CHUNK + cols < K
        x = load_activated(x_ptr, c * CHUNK + cols, mask, K, ACTIVATION)
        y = rotate_tile(x, ROTATION, PARTS)
        peaks = tl.maximum(peaks, magnitude(y))
        tiles = tiles + (y,)  # type: ignore[assignment]  # noqa: RUF005 - the compiler has no unpacking
    if CHUNKS == 0 and MODE != 1:
        for start in range(0, K, CHUNK):
            x = load_activated(x_ptr, start + cols, start + cols < K, K, ACTIVATION)
            peaks = tl.maximum(peaks, magnitude(rotate_tile(x, ROTATION, PARTS)))
    if MODE == 1:
        scale = tl.load(given_ptr + row * stride_given)
    else:
        peak = tl.max(tl.reshape(peaks, (CHUNK,)), 0)
        if MODE == 2:
            scale = peak.to(tl.float32, bitcast=True)
        else:
            scale = scale_from_peak(peak)
    tl.store(scale_ptr + row, scale)
    if MODE != 2:
        inverse = tl.div_rn(1.0, scale)
        for c in tl.static_range(CHUNKS):
            if MODE == 1:
                q = to_int8_saturated(tiles[c], inverse)
            else:
                q = to_int8(tiles[c], inverse)
            if EVEN:
                tl.store(q_ptr + c * CHUNK + cols, q)
            else:
                tl.store(q_ptr + c * CHUNK + cols, q, mask=c * CHUNK + cols < K)
        if CHUNKS == 0:
            for start in range(0, K, CHUNK):
                x = load_activated(x_ptr, start + cols, start + cols < K, K, ACTIVATION)
                y = rotate_tile(x, ROTATION, PARTS)
                if MODE == 1:
                    q = to_int8_saturated(y, inverse)
                else:
                    q = to_int8(y, inverse)
                tl.store(q_ptr + start + cols, q, mask=start + cols < K)


@lru_cache(maxsize=1024)
def tile_for(k: int, rotation: int, elements: int) -> tuple[int, int, int, int]:
    """Return (warps, G, OUTER, chunks) for a row of k columns: a chunk is a tile of 8 elements per thread.

    chunks is 0 where even 16 warps cannot hold the row.
    """
    outer = 64 if rotation == 1024 else 16
    warps = outer // 16
    while warps < 16 and cdiv(k, 256 * warps) > elements // 8:
        warps *= 2
    chunks = cdiv(k, 256 * warps)
    return warps, 16 * warps // outer, outer, chunks if chunks <= MAX_CHUNKS else 0


def launch_rows(config, rows, q, scale, given=None, *, mode=DYNAMIC, rotation=0, activation=None) -> Launch:
    """Return the launch that quantizes rows [M, K] ([M, 2 K] for a gated activation).

    Written are q int8 [M, K] and scale float32, one entry per row; both are contiguous. given: a
    contiguous float32 scale of one entry, or one per row, for mode GIVEN.
    """
    m, k = rows.shape[0], rows.shape[1] // activations.halves(activation)
    warps, g, outer, chunks = tile_for(k, rotation, config.elements)
    args = {
        "x_ptr": rows,
        "q_ptr": q,
        "scale_ptr": scale,
        "given_ptr": given,
        "stride_xm": rows.stride(0),
        "stride_given": 0 if given is None or given.numel() == 1 else 1,
        "K": k,
        "MODE": mode,
        "ROTATION": rotation,
        "ACTIVATION": activation,
        "PARTS": 3 if rows.dtype == torch.float32 else 2,
        "G": g,
        "OUTER": outer,
        "CHUNKS": chunks,
        "EVEN": bool(chunks) and k % (g * outer * 16) == 0,
    }
    return Launch(_quantize_rowwise_kernel, (m,), args, num_warps=warps, num_stages=1)


def quantize_rows(x: Operand, rotation=0, given: Operand | None = None, activation=None) -> Plan:
    """Plan (q [.., K], scale [.., 1]) of checked arguments; `activation` is applied to x as it is loaded."""
    arch = arch_of(x.device)
    check_group(arch, rotation)
    k = x.shape[-1] // activations.halves(activation)
    leading = x.shape[:-1]
    q = empty((*leading, k), torch.int8, x.device)
    scale = empty((*leading, 1), torch.float32, x.device)
    if x.numel() == 0:
        return Plan([], (q, scale))
    rows = rows_of(x)
    if given is not None:
        given = given.to(x.device, torch.float32).contiguous()
    mode = DYNAMIC if given is None else GIVEN

    def steps(config):
        return [
            launch_rows(config, rows, q, scale, given, mode=mode, rotation=rotation, activation=activation)
        ]

    kind = "rowwise m{} k{} {} rotation{} {} mode{}"
    key = kind, bucket(rows.shape[0]), k, rows.dtype, rotation, activation, mode
    return Plan([Choice(arch, key, CONFIGS, steps, x.device)], (q, scale))


@planned
def quantize_rowwise(x: Operand, rotation: int = 0, scale: Operand | None = None) -> Plan:
    """Plan `kernels.quantize_rowwise`: one launch."""
    _check(x, rotation, scale)
    return quantize_rows(x, rotation, scale)
