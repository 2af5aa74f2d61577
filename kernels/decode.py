"""Packed codes of 4 or 6 bits to the int8 weights that a GPU multiplies (W4A8, W6A8, int4 rows).

The integers are round_half_even(level x s), clipped to +-127, with s the e4m3 scale of a group of columns
and the level codebook[c], c - 8 (4 bits without a codebook) or c - 32 (6 bits). Without scales a code is its
own integer, -8 to 7 in two's complement. Packing: `packing`.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from . import _checks
from ._library import define
from .packing import row_bytes, unpack, unpack_signed
from .rotation import CHUNK, float_chunks


class Packed(NamedTuple):
    """Shape [N, K] of packed weights, and the columns that share a scale; 0 where there is none."""

    n: int
    k: int
    group: int


def check_packed(
    qweight: _checks.Described,
    bits: int,
    group_scale: _checks.Described | None,
    codebook: _checks.Described | None,
) -> Packed:
    """Return what the operands of a packed weight say; TypeError or ValueError where they do not fit."""
    if qweight.dtype not in (torch.int8, torch.uint8):
        raise TypeError(f"qweight must be int8 or uint8, not {qweight.dtype}")
    _checks.matrix("qweight", qweight)
    if bits not in (4, 6) or (group_scale is None and bits != 4):
        raise ValueError(f"codes have 4 bits, or 6 with scales per group, not {bits}")
    n, width = qweight.shape
    k = width * 8 // bits
    if k % 2 or row_bytes(k, bits) != width or (bits == 6 and k % 4):
        raise ValueError(f"rows of {width} bytes hold no whole codes of {bits} bits")
    if group_scale is None:
        if codebook is not None:
            raise ValueError("a codebook needs scales per group: give group_scale")
        return Packed(n, k, 0)
    if group_scale.dtype != torch.uint8:
        raise TypeError(f"group_scale must be float8_e4m3fn or its bytes (uint8), not {group_scale.dtype}")
    if group_scale.dim() != 2 or group_scale.shape[0] != n or k % max(group_scale.shape[1], 1):
        raise ValueError(
            f"group_scale must be [{n}, groups of {k} columns], not of shape {tuple(group_scale.shape)}"
        )
    if codebook is not None and (bits != 4 or tuple(codebook.shape) != (16,)):
        raise ValueError(f"codes of {bits} bits take no codebook of shape {tuple(codebook.shape)}")
    return Packed(n, k, k // group_scale.shape[1] if k else 1)


def _decode(qweight, bits, group_scale=None, codebook=None):
    _, _, group = check_packed(qweight, bits, group_scale, codebook)
    if group_scale is None:
        return unpack_signed(qweight)
    if bits == 4 and group % 2 == 0 and qweight.device.type == "cpu":
        return _decode_pairs(qweight, group_scale, codebook, group)
    scales = group_scale.view(torch.float8_e4m3fn)
    codes = unpack(qweight, bits, 0 if codebook is not None else 1 << (bits - 1))
    for part, work in float_chunks(codes):
        if codebook is not None:
            work = codebook.float().index_select(0, work.to(torch.int32).flatten()).view(work.shape)
        groups = work.view(work.shape[0], -1, group).mul_(scales[part].float().unsqueeze(2))
        codes[part] = groups.view(work.shape).round_().clamp_(-127, 127)
    return codes


def _decode_pairs(qweight, group_scale, codebook, group: int) -> torch.Tensor:
    """Return `decode` of 4 bits by a table of what every byte, two codes, stands for under every scale.

    On a CPU it takes half the time of arithmetic on floats (15 and 33 ms for 3072 x 3072 on one core).
    """
    n, width = qweight.shape
    levels = torch.arange(-8.0, 8.0) if codebook is None else codebook.float()
    integers = (_every_scale()[:, None] * levels).round_().clamp_(-127, 127).to(torch.int8)
    low, high = integers[:, None, :].expand(256, 16, 16), integers[:, :, None].expand(256, 16, 16)
    table = torch.stack((low, high), -1).view(torch.int16).flatten()
    out = torch.empty(n, width, dtype=torch.int16)
    bits = qweight.view(torch.uint8)
    step = max(1, CHUNK // max(width, 1))
    for r in range(0, n, step):
        first = group_scale[r : r + step].to(torch.int32).mul_(256).unsqueeze(2)
        index = first + bits[r : r + step].reshape(first.shape[0], -1, group // 2)
        torch.index_select(table, 0, index.flatten(), out=out[r : r + step].view(-1))
    return out.view(torch.int8)


@lru_cache(maxsize=1)
def _every_scale() -> torch.Tensor:
    """Return e4m3's values by their bits, float32 [256]; do not write to them."""
    with torch.inference_mode(False):
        return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def _fake(qweight, bits, group_scale=None, codebook=None):
    n, k, _ = check_packed(qweight, bits, group_scale, codebook)
    return torch.empty((n, k), dtype=torch.int8, device=qweight.device)


_op = define(
    "decode(Tensor qweight, int bits, Tensor? group_scale=None, Tensor? codebook=None) -> Tensor",
    eager=_decode,
    fake=_fake,
    device="decode.decode",
)


def decode(
    qweight: torch.Tensor,
    bits: int,
    group_scale: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the int8 weights [N, K] that packed codes stand for.

    qweight: int8 or uint8 [N, K bits / 8], bits 4 or 6. group_scale: float8_e4m3fn, or its bytes as uint8,
    [N, groups of equal width]; None for codes that are the integers themselves (4 bits). codebook: float32
    [16], the levels of 4-bit codes; None for evenly spaced ones.
    TypeError for dtypes, ValueError for shapes that do not fit.
    """
    return _op(qweight, bits, as_bytes(group_scale), codebook)


def as_bytes(scale: torch.Tensor | None) -> torch.Tensor | None:
    """Return float8 scales as the bytes that the ops take; older GPUs have no such type."""
    return scale if scale is None or scale.element_size() != 1 else scale.view(torch.uint8)
