"""Weights of eight- and four-bit floats: FP8 (e4m3, e5m2), MXFP8 and NVFP4 to wider floats; FP8 of floats.

A stored value times its scales: one in all or one per row; a power of two per 32 columns (mxfp8); one e4m3
value per 16 columns times one in all (nvfp4). Scales of blocks lie in cuBLAS' tiles (`tiled_scales`).
Source: OCP Microscaling Formats 1.0, and OCP 8-bit Floating Point 1.0.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from . import _checks
from ._library import define
from .rotation import CHUNK
from .scales import TINY, absmax_rows
from .tiled_scales import untiled

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""Kinds without blocks -> their dtype."""

BLOCKS = {"mxfp8": 32, "nvfp4": 16}
"""Kinds with a scale per block -> columns of one."""


class FloatWeight(NamedTuple):
    """Shape [N, K] of a weight of small floats."""

    n: int
    k: int


def check_floats(q: _checks.Described, kind: str, scale, block_scale) -> FloatWeight:
    """Return the shape that the operands of a weight say; TypeError or ValueError where they do not fit."""
    if kind not in FP8 and kind not in BLOCKS:
        raise ValueError(f"kind must be one of {', '.join((*FP8, *BLOCKS))}, not {kind!r}")
    if q.dtype != torch.uint8:
        raise TypeError(f"q must be the bytes of the floats (uint8), not {q.dtype}")
    _checks.matrix("q", q)
    n, width = q.shape
    k = 2 * width if kind == "nvfp4" else width
    if scale is not None and scale.numel() != 1 and (kind in BLOCKS or tuple(scale.shape) != (n, 1)):
        raise ValueError(f"scale must have one element, or [{n}, 1] without blocks: {tuple(scale.shape)}")
    if (block_scale is None) != (kind in FP8):
        raise ValueError(f"{kind} takes {'no' if kind in FP8 else 'a'} block_scale")
    if kind in BLOCKS:
        block = BLOCKS[kind]
        want = (-(-n // 128) * 128, -(-(k // block) // 4) * 4)
        if k % block or block_scale.dtype != torch.uint8 or tuple(block_scale.shape) != want:
            raise ValueError(
                f"block_scale must be the bytes (uint8) {list(want)} of blocks of {block} columns, not "
                f"{block_scale.dtype} {list(block_scale.shape)}"
            )
    return FloatWeight(n, k)


def _dequantize_floats(q, kind, scale, block_scale, dtype):
    n, k = check_floats(q, kind, scale, block_scale)
    out = torch.empty(n, k, dtype=dtype, device=q.device)
    scales = None if block_scale is None else _of_blocks(kind, block_scale, n, k)
    if scale is not None:
        scales = scale.float().reshape(-1, 1) if scales is None else scales.mul_(scale.float())
    step = max(1, CHUNK // max(k, 1)) if q.device.type == "cpu" else max(n, 1)
    for r in range(0, n, step):
        part = q[r : r + step]
        work = _pairs(part) if kind == "nvfp4" else part.view(FP8.get(kind, torch.float8_e4m3fn)).float()
        if scales is not None:
            own = scales if scales.shape[0] == 1 else scales[r : r + step]
            work.view(work.shape[0], own.shape[1], -1).mul_(own.unsqueeze(2))
        out[r : r + step] = work
    return out


def _of_blocks(kind: str, stored: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """Return the blocks' scales, float32 [N, blocks]; e8m0's 0 counts as zero and 255 is NaN."""
    raw = untiled(stored, n, k // BLOCKS[kind])
    if kind == "nvfp4":
        return raw.view(torch.float8_e4m3fn).float()
    powers = (raw.to(torch.int32) << 23).view(torch.float32)
    return powers.masked_fill_(raw == 255, float("nan"))


def _pairs(q: torch.Tensor) -> torch.Tensor:
    """Return e2m1 values, float32 [n, K], of bytes [n, K / 2], the even column in the high half."""
    table = _e2m1_pairs(str(q.device))
    return table.index_select(0, q.flatten().to(torch.int32)).view(torch.float32).view(q.shape[0], -1)


@lru_cache(maxsize=8)
def _e2m1_pairs(device: str) -> torch.Tensor:
    """Return both values of every byte as one 64-bit integer, [256]; do not write to it."""
    with torch.inference_mode(False):
        sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        values = torch.cat((sizes, -sizes))
        pairs = torch.stack((values.repeat_interleave(16), values.repeat(16)), 1)
        return pairs.view(torch.int64).flatten().to(device)


def _dequantize_fake(q, kind, scale, block_scale, dtype):
    n, k = check_floats(q, kind, scale, block_scale)
    return torch.empty((n, k), dtype=dtype, device=q.device)


_dequantize_op = define(
    "dequantize_floats(Tensor q, str kind, Tensor? scale, Tensor? block_scale, ScalarType dtype) -> Tensor",
    eager=_dequantize_floats,
    fake=_dequantize_fake,
    device="floats.dequantize_floats",
)


def dequantize_floats(
    q: torch.Tensor,
    kind: str,
    scale: torch.Tensor | None = None,
    block_scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the weight [N, K] of small floats as `dtype`: multiplied in float32, rounded once.

    q: bytes (or float8) [N, K]; for nvfp4 [N, K / 2], the even column in the high half. kind: "e4m3", "e5m2",
    "mxfp8" or "nvfp4". scale: float32 [] (or [N, 1] without blocks), None for 1. block_scale: of mxfp8 (e8m0)
    and nvfp4 (e4m3), in cuBLAS' tiles, [N rounded up to 128, blocks rounded up to 4].
    TypeError for dtypes, ValueError for shapes that do not fit.
    """
    return _dequantize_op(as_bytes(q), kind, scale, as_bytes(block_scale), dtype)


def as_bytes(x: torch.Tensor | None) -> torch.Tensor | None:
    """Return eight-bit floats as the bytes that the ops take: older GPUs have no such types."""
    return (
        x
        if x is None or x.dtype in (torch.uint8, torch.int8) or x.element_size() > 1
        else x.view(torch.uint8)
    )


def check_quantize(x: _checks.Described, kind: str, scale: _checks.Described | None) -> None:
    """Refuse what `quantize_float8` does not take."""
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    if kind not in FP8:
        raise ValueError(f"kind must be e4m3 or e5m2, not {kind!r}")
    if scale is not None and scale.numel() != 1:
        raise ValueError(f"scale must have one element, not shape {tuple(scale.shape)}")


def _quantize_float8(x, kind, scale=None):
    check_quantize(x, kind, scale)
    most = torch.finfo(FP8[kind]).max
    rows = x.reshape(-1, x.shape[-1])
    if scale is None:
        found = absmax_rows(rows.float()).amax() if rows.numel() else x.new_zeros((), dtype=torch.float32)
        scale = (found / found.new_full((), most)).clamp_min(TINY)
    else:
        scale = scale.to(device=x.device, dtype=torch.float32, copy=True).reshape(())
    scaled = (x.float() * scale.reciprocal()).clamp_(-most, most)
    return scaled.to(FP8[kind]).view(torch.uint8), scale


def _quantize_fake(x, kind, scale=None):
    return (
        torch.empty(x.shape, dtype=torch.uint8, device=x.device),
        torch.empty((), dtype=torch.float32, device=x.device),
    )


_quantize_op = define(
    "quantize_float8(Tensor x, str kind, Tensor? scale=None) -> (Tensor, Tensor)",
    eager=_quantize_float8,
    fake=_quantize_fake,
    device="floats.quantize_float8",
)


def quantize_float8(
    x: torch.Tensor, kind: str = "e4m3", scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round x to FP8 with one scale; return ``(float8 of x's shape, scale float32 [])``.

    kind: "e4m3" or "e5m2". scale: None spreads the type's largest value over the absmax; a given one-element
    scale saturates. Half to even; NaN stays NaN. TypeError for a non-float x; ValueError for a larger scale.
    """
    q, found = _quantize_op(x, kind, scale)
    return q.view(FP8[kind]), found
