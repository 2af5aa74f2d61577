"""Block-wise INT8 quantization: one scale per block of block_m rows and block_k columns."""

import torch
import torch.nn.functional as F

from . import _checks
from ._library import define
from .rotation import float_chunks
from .scales import quantize_with, scale_from_absmax


def _check(x: _checks.Described, block_m: int, block_k: int) -> None:
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    _checks.power_of_two("block_m", block_m)
    _checks.power_of_two("block_k", block_k)
    if block_m != 1 and x.dim() != 2:
        raise ValueError(f"blocks of {block_m} rows need a 2-D x, not shape {tuple(x.shape)}")


def _scale_shape(x: _checks.Described, block_m: int, block_k: int) -> tuple[int, ...]:
    blocks_k = -(-x.shape[-1] // block_k)
    if block_m == 1:
        return (*x.shape[:-1], blocks_k)
    return (-(-x.shape[0] // block_m), blocks_k)


def _quantize_blockwise(x: torch.Tensor, block_m: int, block_k: int):
    _check(x, block_m, block_k)
    k = x.shape[-1]
    rows = x.reshape(-1, k)
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(_scale_shape(x, block_m, block_k), dtype=torch.float32, device=x.device)
    q_rows, s_rows = q.view(-1, k), scale.view(-1, scale.shape[-1])
    for part, work in float_chunks(rows, multiple=block_m):
        n = work.shape[0]
        if k % block_k or n % block_m:
            # Ragged edges are padded with zeros, which never raise a block's absmax.
            work = F.pad(work, (0, -k % block_k, 0, -n % block_m))
        blocks = work.view(work.shape[0] // block_m, block_m, -1, block_k)
        absmax = torch.maximum(blocks.amax((1, 3)), blocks.amin((1, 3)).neg_())
        s = scale_from_absmax(absmax)
        quantize_with(blocks, s[:, None, :, None], saturate=False)
        q_rows[part] = work[:n, :k]
        first = part.start // block_m
        s_rows[first : first + s.shape[0]] = s
    return q, scale


def _fake(x: torch.Tensor, block_m: int, block_k: int):
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(_scale_shape(x, block_m, block_k), dtype=torch.float32, device=x.device),
    )


_op = define(
    "quantize_blockwise(Tensor x, int block_m, int block_k) -> (Tensor, Tensor)",
    eager=_quantize_blockwise,
    fake=_fake,
    device="blockwise.quantize_blockwise",
)


def quantize_blockwise(x: torch.Tensor, block_m: int, block_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize x to int8 with one scale per block; returns ``(q, scale float32)``.

    Weights [M, K] use (128, 128) and scale [ceil(M / bm), ceil(K / bk)]; activations [.., K]
    use (1, 128) and scale [.., ceil(K / bk)]. Block edges are powers of two; ragged edges make
    smaller blocks. Rounding, zeros and NaN as in `quantize_rowwise`. TypeError for a
    non-float x; ValueError for other block edges or block_m > 1 on an x that is not 2-D.
    """
    return _op(x, block_m, block_k)
