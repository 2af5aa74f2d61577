"""Codes of 4 and 6 bits in bytes: what W4A8, W6A8 and int4 weights are stored as.

4 bits: byte j holds column 2 j in its low and 2 j + 1 in its high half. 6 bits: the same plane of the low
four bits, then one of the top two: column c stands in byte c // 4 at bit 2 (c % 4). Bytes are moved as parts
of wider integers, which is two passes over memory; rows are taken a cache-sized part at a time.
"""

import torch

from . import _checks
from ._library import define

_CHUNK = 1 << 19


def row_bytes(columns: int, bits: int) -> int:
    """Return the bytes of a row of `columns` codes of 4 or 6 bits."""
    return columns * bits // 8


def check(codes: _checks.Described, bits: int) -> None:
    """Refuse what cannot be packed: TypeError for codes not int8, ValueError for their shape or the bits."""
    _checks.int8("codes", codes)
    _checks.matrix("codes", codes)
    if bits not in (4, 6) or codes.shape[1] % (bits - 2):
        raise ValueError(f"rows of {codes.shape[1]} codes cannot be packed at {bits} bits")


def _pack(codes: torch.Tensor, bits: int, offset: int = 0) -> torch.Tensor:
    check(codes, bits)
    n, k = codes.shape
    out = torch.empty(n, row_bytes(k, bits), dtype=torch.int8, device=codes.device)
    for part in _parts(n, k, codes.device):
        c = codes[part] + offset
        pairs = (c & 15).view(torch.int16)
        out[part, : k // 2] = (pairs | (pairs >> 4)).view(torch.int8)[:, ::2]
        if bits == 6:
            fours = ((c >> 4) & 3).view(torch.int32)
            fours = fours | (fours >> 6) | (fours >> 12) | (fours >> 18)
            out[part, k // 2 :] = fours.view(torch.int8)[:, ::4]
    return out


def _fake(codes: torch.Tensor, bits: int, offset: int = 0) -> torch.Tensor:
    n, k = codes.shape
    return torch.empty((n, row_bytes(k, bits)), dtype=torch.int8, device=codes.device)


_op = define(
    "pack(Tensor codes, int bits, int offset=0) -> Tensor", eager=_pack, fake=_fake, device="packing.pack"
)


def pack(codes: torch.Tensor, bits: int, offset: int = 0) -> torch.Tensor:
    """Return codes [N, K] + offset, which lie in 0 to 2^bits - 1, packed: int8 [N, K bits / 8].

    codes: int8. With offset 0 the low `bits` of each code count, so that negative ones are stored as two's
    complement. K is a multiple of 2 at 4 bits, of 4 at 6; ValueError otherwise.
    """
    return _op(codes, bits, offset)


def unpack(packed: torch.Tensor, bits: int, offset: int = 0) -> torch.Tensor:
    """Return the codes [N, K] - offset of `pack`, int8. packed: int8 or uint8 [N, K bits / 8]."""
    n, width = packed.shape
    k = width * 8 // bits
    out = torch.empty(n, k, dtype=torch.int8, device=packed.device)
    for part in _parts(n, k, packed.device):
        raw = packed[part].contiguous().view(torch.uint8)
        pairs = raw[:, : k // 2].to(torch.int16)
        codes = ((pairs | (pairs << 4)) & 0x0F0F).view(torch.int8)
        if bits == 6:
            x = raw[:, k // 2 :].to(torch.int32)
            x = ((x & 3) << 4) | ((x & 12) << 10) | ((x & 48) << 16) | ((x & 192) << 22)
            codes = codes | x.view(torch.int8)
        out[part] = codes - offset if offset else codes
    return out


def unpack_signed(packed: torch.Tensor) -> torch.Tensor:
    """Return codes -8 to 7 of 4 bits in two's complement, int8 [N, K]."""
    codes = unpack(packed, 4)
    return (codes ^ 8).sub_(8)


def _parts(rows: int, columns: int, device: torch.device) -> list[slice]:
    step = max(1, _CHUNK // max(columns, 1)) if device.type == "cpu" else max(rows, 1)
    return [slice(r, min(r + step, rows)) for r in range(0, rows, step)]
