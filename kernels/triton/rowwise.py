"""Row-wise INT8 quantization: rotation, absmax and rounding with x read once and q written once."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import activations
from ..rowwise import _check
from ._arch import Arch, arch_of, check_group, mma_fragments
from ._launch import Launch, cdiv
from ._operands import Operand, empty, rows_of
from ._plan import Choice, Plan
from ._planned import planned
from ._tiles import (
    across,
    largest,
    load_activated,
    magnitude,
    piece_columns,
    pieces,
    rotate_tile,
    scale_from_peak,
    to_int8,
    to_int8_saturated,
    whole,
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


class Norm(NamedTuple):
    """An RMSNorm of the rows (`norm.apply`): contiguous weight [K], and what is added to the mean square."""

    weight: Operand
    eps: float


@triton.jit
def _first(c, CHUNK: tl.constexpr, APART: tl.constexpr):
    """The first column of a row's chunk c; with eights 16 APART two chunks have every other eight."""
    return c * CHUNK if APART == 8 else (c // 2) * 2 * CHUNK + (c % 2) * 8


@triton.jit
def _load(
    x_ptr,
    start,
    K,
    ROTATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    G: tl.constexpr,
    EVEN: tl.constexpr,
    APART: tl.constexpr = 8,
):
    """One step of a row in its own type: a tuple of one tile, or of four for a rotation by 1024.

    APART: as `piece_columns` has it, 16 only without rotation.
    """
    SPLIT: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    STEP: tl.constexpr = 1024 if ROTATION == 1024 else 32 * APART
    tiles = ()
    for quarter in tl.static_range(4 if ROTATION == 1024 else 1):
        cols = start + quarter * 256 + pieces(G, SPLIT) * STEP + piece_columns(SPLIT, APART)
        x = load_activated(x_ptr, cols, None if EVEN else cols < K, K, ACTIVATION)
        tiles = tiles + (whole(x) if SPLIT else x,)  # type: ignore[assignment]  # noqa: RUF005 - the compiler has no unpacking
    return tiles


@triton.jit
def _rotate(tiles, ROTATION: tl.constexpr, PARTS: tl.constexpr, MMA: tl.constexpr):
    """A step of a row, rotated: float32."""
    rotated = ()
    for i in tl.static_range(4 if ROTATION == 1024 else 1):
        rotated = rotated + (rotate_tile(tiles[i], ROTATION, PARTS, MMA),)  # type: ignore[assignment]  # noqa: RUF005
    if ROTATION == 1024:
        rotated = across(rotated[0], rotated[1], rotated[2], rotated[3])  # type: ignore[misc]
    return rotated


@triton.jit
def load_rotated(
    x_ptr,
    start,
    K,
    ROTATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PARTS: tl.constexpr,
    MMA: tl.constexpr,
    G: tl.constexpr,
    EVEN: tl.constexpr,
    APART: tl.constexpr = 8,
):
    """One step of a row: a tuple of one tile, or of four for a rotation by 1024. APART as in `_load`."""
    return _rotate(_load(x_ptr, start, K, ROTATION, ACTIVATION, G, EVEN, APART), ROTATION, PARTS, MMA)


@triton.jit
def _normalise(
    tiles,
    norm_ptr,
    factor,
    start,
    K,
    FIRST: tl.constexpr,
    ROTATION: tl.constexpr,
    G: tl.constexpr,
    EVEN: tl.constexpr,
    APART: tl.constexpr = 8,
):
    """The step that begins with the tile FIRST of a row, times factor and the norm's weight, in its type."""
    STEP: tl.constexpr = 1024 if ROTATION == 1024 else 32 * APART
    normed = ()
    for i in tl.static_range(4 if ROTATION == 1024 else 1):
        cols = start + i * 256 + pieces(G, False) * STEP + piece_columns(False, APART)
        weight = tl.load(norm_ptr + cols) if EVEN else tl.load(norm_ptr + cols, mask=cols < K, other=0.0)
        x = tiles[FIRST + i]
        y = x.to(tl.float32) * factor * weight.to(tl.float32)
        normed = normed + (y.to(x.dtype),)  # type: ignore[assignment]  # noqa: RUF005
    return normed


@triton.jit
def _squares(sums, x):
    """sums + x * x in float32."""
    x = x.to(tl.float32)
    return sums + x * x


@triton.jit
def _store_pair(q_ptr, start, K, y, z, inverse, MODE: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr):
    """Round two tiles, whose eights take turns, and store them: 16 neighbours a thread."""
    cols = start + pieces(G, False) * 512 + piece_columns(False, 16, 16)
    left = to_int8_saturated(y, inverse) if MODE == 1 else to_int8(y, inverse)
    right = to_int8_saturated(z, inverse) if MODE == 1 else to_int8(z, inverse)
    q = tl.reshape(tl.permute(tl.join(left, right), 0, 1, 2, 3, 5, 4), (G, 4, 2, 4, 16))
    if EVEN:
        tl.store(q_ptr + cols, q)
    else:
        tl.store(q_ptr + cols, q, mask=cols < K)


@triton.jit
def _store_quantized(
    q_ptr, start, K, y, inverse, MODE: tl.constexpr, STEP: tl.constexpr, G: tl.constexpr, EVEN: tl.constexpr
):
    """Round one tile, whose pieces are STEP columns apart, and store it."""
    cols = start + pieces(G, False) * STEP + piece_columns(False)
    q = to_int8_saturated(y, inverse) if MODE == 1 else to_int8(y, inverse)
    if EVEN:
        tl.store(q_ptr + cols, q)
    else:
        tl.store(q_ptr + cols, q, mask=cols < K)


@triton.jit
def _step(
    x_ptr,
    norm_ptr,
    factor,
    start,
    K,
    ROTATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PARTS: tl.constexpr,
    MMA: tl.constexpr,
    G: tl.constexpr,
):
    """A step of a row that does not fit registers, with its norm where there is one."""
    if norm_ptr is None:
        step = load_rotated(x_ptr, start, K, ROTATION, ACTIVATION, PARTS, MMA, G, False)
    else:
        step = _load(x_ptr, start, K, ROTATION, None, G, False)
        step = _normalise(step, norm_ptr, factor, start, K, 0, ROTATION, G, False)
        step = _rotate(step, ROTATION, PARTS, MMA)
    return step


@triton.jit
def _quantize_rowwise_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    given_ptr,
    norm_ptr,
    stride_xm,
    stride_given,
    K,
    EPS: tl.constexpr,
    MODE: tl.constexpr,
    ROTATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PARTS: tl.constexpr,
    MMA: tl.constexpr,
    G: tl.constexpr,
    CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
    APART: tl.constexpr,
):
    """Quantize one row per program. CHUNKS = 0: the row does not fit registers and is read twice.

    APART: 16 where two chunks take turns in a row's eights, so that a thread has 16 neighbours.

    norm_ptr, EPS: of a norm that is taken before the rotation (`Norm`); such a row is then read once more.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride_xm
    q_ptr += row * K
    QUARTERS: tl.constexpr = 4 if ROTATION == 1024 else 1
    STEP: tl.constexpr = QUARTERS * 256
    CHUNK: tl.constexpr = G * STEP
    peaks = tl.zeros((G, 4, 2, 4, 8), tl.float32)
    tiles = ()
    factor = 1.0
    if norm_ptr is None:
        for c in tl.static_range(CHUNKS):
            start = _first(c, CHUNK, APART)
            tiles = tiles + load_rotated(x_ptr, start, K, ROTATION, ACTIVATION, PARTS, MMA, G, EVEN, APART)
    else:
        sums = peaks
        raw = ()
        for c in tl.static_range(CHUNKS):
            raw = raw + _load(x_ptr, _first(c, CHUNK, APART), K, ROTATION, None, G, EVEN, APART)
        for i in tl.static_range(CHUNKS * QUARTERS):
            sums = _squares(sums, raw[i])
        if CHUNKS == 0:
            for start in range(0, K, CHUNK):
                step = _load(x_ptr, start, K, ROTATION, None, G, False)
                for i in tl.static_range(QUARTERS):
                    sums = _squares(sums, step[i])
        mean = tl.div_rn(tl.sum(tl.reshape(sums, (G * 256,)), 0), K * 1.0)
        factor = tl.div_rn(1.0, tl.sqrt_rn(mean + EPS))
        for c in tl.static_range(CHUNKS):
            start = _first(c, CHUNK, APART)
            step = _normalise(raw, norm_ptr, factor, start, K, c * QUARTERS, ROTATION, G, EVEN, APART)
            tiles = tiles + _rotate(step, ROTATION, PARTS, MMA)
    for i in tl.static_range(CHUNKS * QUARTERS):
        peaks = largest(peaks, tiles[i], MMA)
    if CHUNKS == 0 and MODE != 1:
        for start in range(0, K, CHUNK):
            step = _step(x_ptr, norm_ptr, factor, start, K, ROTATION, ACTIVATION, PARTS, MMA, G)
            for i in tl.static_range(QUARTERS):
                peaks = largest(peaks, step[i], MMA)
    if MODE == 1:
        scale = tl.load(given_ptr + row * stride_given)
    else:
        peak = tl.max(tl.reshape(magnitude(peaks), (G * 256,)), 0)
        if MODE == 2:
            scale = peak.to(tl.float32, bitcast=True)
        else:
            scale = scale_from_peak(peak)
    tl.store(scale_ptr + row, scale)
    if MODE != 2:
        inverse = tl.div_rn(1.0, scale)
        if APART == 16:
            for i in tl.static_range(0, CHUNKS, 2):
                _store_pair(q_ptr, i * CHUNK, K, tiles[i], tiles[i + 1], inverse, MODE, G, EVEN)
        else:
            for i in tl.static_range(CHUNKS * QUARTERS):
                start = (i // QUARTERS) * CHUNK + (i % QUARTERS) * 256
                _store_quantized(q_ptr, start, K, tiles[i], inverse, MODE, STEP, G, EVEN)
        if CHUNKS == 0:
            for start in range(0, K, CHUNK):
                step = _step(x_ptr, norm_ptr, factor, start, K, ROTATION, ACTIVATION, PARTS, MMA, G)
                for i in tl.static_range(QUARTERS):
                    _store_quantized(q_ptr, start + i * 256, K, step[i], inverse, MODE, STEP, G, False)


@lru_cache(maxsize=1024)
def tile_for(k: int, rotation: int, elements: int) -> tuple[int, int]:
    """Return (warps, chunks) for a row of k columns: a chunk is one piece a warp, or four for 1024.

    chunks is 0 where even 16 warps cannot hold the row.
    """
    step = 1024 if rotation == 1024 else 256
    warps = 1
    while warps < 16 and step * warps < k and cdiv(k, step * warps) * step // 256 > elements // 8:
        warps *= 2
    chunks = cdiv(k, step * warps)
    return warps, chunks if chunks * step // 256 <= MAX_CHUNKS else 0


def takes_turns(arch: Arch, rotation: int, chunks: int) -> bool:
    """Return whether two chunks take turns in a row's eights, and a thread stores 16 integers at once.

    Rotated columns lie as tensor cores hold them, 8 neighbours to a thread. CDNA reads 8 bytes a thread
    then, and takes 12 % more instructions.
    """
    return not rotation and chunks > 0 and chunks % 2 == 0 and arch.family != "cdna"


def launch_rows(
    config,
    rows,
    q,
    scale,
    given=None,
    *,
    mode=DYNAMIC,
    rotation=0,
    activation=None,
    norm: Norm | None = None,
) -> Launch:
    """Return the launch that quantizes rows [M, K] ([M, 2 K] for a gated activation).

    Written are q int8 [M, K] and scale float32, one entry per row; both are contiguous. given: a
    contiguous float32 scale of one entry, or one per row, for mode GIVEN. norm: in place of an activation.
    """
    m, k = rows.shape[0], rows.shape[1] // activations.halves(activation)
    warps, chunks = tile_for(k, rotation, config.elements)
    args = {
        "x_ptr": rows,
        "q_ptr": q,
        "scale_ptr": scale,
        "given_ptr": given,
        "norm_ptr": None if norm is None else norm.weight,
        "stride_xm": rows.stride(0),
        "stride_given": 0 if given is None or given.numel() == 1 else 1,
        "K": k,
        "EPS": 0.0 if norm is None else norm.eps,
        "MODE": mode,
        "ROTATION": rotation,
        "ACTIVATION": activation,
        "PARTS": 3 if rows.dtype == torch.float32 else 2,
        "MMA": mma_fragments(rows.device),
        "G": warps,
        "CHUNKS": chunks,
        "EVEN": bool(chunks) and k % (warps * (1024 if rotation == 1024 else 256)) == 0,
        "APART": 16 if takes_turns(arch_of(rows.device), rotation, chunks) else 8,
    }
    return Launch(_quantize_rowwise_kernel, (m,), args, num_warps=warps, num_stages=1)


def quantize_rows(
    x: Operand, rotation=0, given: Operand | None = None, activation=None, norm: Norm | None = None
) -> Plan:
    """Plan (q [.., K], scale [.., 1]) of checked arguments; `activation` or `norm` come as x is loaded."""
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
        forms = {"mode": mode, "rotation": rotation, "activation": activation, "norm": norm}
        return [launch_rows(config, rows, q, scale, given, **forms)]

    kind, before = "rowwise m{} k{} {} rotation{} {} mode{}", activation if norm is None else "norm"
    key = kind, bucket(rows.shape[0]), k, rows.dtype, rotation, before, mode
    return Plan([Choice(arch, key, CONFIGS, steps, x.device)], (q, scale))


@planned
def quantize_rowwise(x: Operand, rotation: int = 0, scale: Operand | None = None) -> Plan:
    """Plan `kernels.quantize_rowwise`: one launch."""
    _check(x, rotation, scale)
    return quantize_rows(x, rotation, scale)
