"""LDLQ: quantize columns in order, the error of each fed to the later ones.

Frantar et al., "GPTQ" (2022) and Chee et al., "QuIP" (2023), whose Theorem 6 shows that both are the same
rounding: the best that looks ahead linearly, for the loss tr((W - Q) H (W - Q)^T). With rotation
("quip") W and H are in the rotated space, and the integers chosen there are the ones stored.
"""

from dataclasses import dataclass

import torch

from .. import chunks
from ..grid import Block, Grid
from ..tensor import QuantizedTensor
from . import tiles
from .descent import coordinate_descent_, damped_
from .hessian import Factor, has_hessian, layer_factor, layer_hessian, use_bf16
from .rtn import rtn
from .types import LayerStats, QuantizeOptions

NOT_CALIBRATED = "no calibration samples: LDLQ equals rounding to nearest"


def ldlq(
    weight: torch.Tensor, stats: LayerStats | None, options: QuantizeOptions, name: str = ""
) -> tuple[QuantizedTensor, str | None]:
    """Quantize `weight` [N, K] against the Hessian of `stats`; without samples, round to nearest.

    Rows are independent given H, so `options.row_chunk` bounds memory without changing a bit.
    ValueError naming the layer when H cannot be factored.
    """
    if not has_hessian(stats, options):
        note = "synthetic samples: LDLQ would fit noise, rounded to nearest" if _made_up(stats) else None
        return rtn(weight, stats, options, name)[0], note or NOT_CALIBRATED
    ready = tiles.whole(weight, options)
    device = tiles.compute_device(weight, options)
    assert stats is not None
    descends = options.descent_passes > 0
    factor = layer_factor(stats, options, device, name, keep=descends)
    scale = tiles.layer_scale(weight, options, name, ready, factor.cost())
    h = None
    if descends:
        h = layer_hessian(stats, options, device, factor.order) if factor.hessian is None else factor.hessian
        damped_(h, factor.damping)
    q = quantize_with_factor(weight, factor, scale, options, name, ready, h)
    raised = f"damping raised to {factor.damping:g}" if factor.damping > options.damping else None
    return tiles.wrap(q, scale.to(weight.device), weight.dtype, options), raised


def _made_up(stats: LayerStats | None) -> bool:
    return stats is not None and stats.synthetic and stats.samples is not None


def quantize_with_factor(
    weight: torch.Tensor,
    factor: Factor,
    scale: torch.Tensor,
    options: QuantizeOptions,
    name: str = "",
    ready: torch.Tensor | None = None,
    h: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the int8 codes [N, K] of LDLQ for scales as the grid shapes them, on the weight's device.

    ready: the weight as `tiles.whole` made it, overwritten; None makes its rows chunk by chunk. h: the damped
    Hessian [K, K] in the factor's order, for options.descent_passes of coordinate descent, which then may
    change scales; None for none.
    """
    n, k = weight.shape
    q = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    device = factor.matrix.device
    grid, feedback = tiles.grid_of(options), _Feedback.of(factor, options)
    tile = tiles.tile_rows(k, device, grid)

    def work(start: int, stop: int) -> None:
        floats = ready if ready is not None else _floats(weight, options, slice(start, stop), device)
        for first in range(start, stop, tile):
            part = slice(first, min(first + tile, stop))
            w = floats[first - start : part.stop - start]
            q[part] = _quantize_tile(w, feedback, grid, scale, part, h, options.descent_passes).to(q.device)

    # With all rows ready there is one chunk, which needs no room of its own.
    chunks.in_chunks(n, options.row_chunk, work, multiple=tile, name=name)
    return q


def _floats(
    weight: torch.Tensor, options: QuantizeOptions, rows: slice, device: torch.device
) -> torch.Tensor:
    out = chunks.allocate(rows.stop - rows.start, weight.shape[1], device)
    for part, values in tiles.row_tiles(weight, options, rows):
        out[part.start - rows.start : part.stop - rows.start] = values
    return out


@dataclass(frozen=True)
class _Feedback:
    """A factor, and its matrix in the dtype of the GEMM."""

    factor: Factor
    operand: torch.Tensor

    @classmethod
    def of(cls, factor: Factor, options: QuantizeOptions) -> "_Feedback":
        bf16 = use_bf16(options, factor.matrix.device)
        return cls(factor, factor.matrix.bfloat16() if bf16 else factor.matrix)


def _quantize_tile(
    w: torch.Tensor,
    feedback: _Feedback,
    grid: Grid,
    scale: torch.Tensor,
    part: slice,
    h: torch.Tensor | None,
    passes: int,
) -> torch.Tensor:
    """Return the codes int8 [n, K] of a tile of float32 rows, which is overwritten.

    Columns already done hold their error W - Q, so what block C needs is one GEMM over them (the loop
    looks left): w_C + (W - Q)[<C] R[<C, C] U_CC, quantized with U_CC by the kernel.
    """
    factor, dtype = feedback.factor, feedback.operand.dtype
    w = w if factor.order is None else w[:, factor.order]
    columns = torch.arange(w.shape[1]) if factor.order is None else factor.order.cpu()
    q = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    for c0, c1 in factor.blocks:
        target = w[:, c0:c1]
        if c0:
            fed = w[:, :c0].to(dtype) @ feedback.operand[:c0, c0:c1]
            target = target + fed.float()
        block = Block(factor.matrix[c0:c1, c0:c1], scale, part, columns[c0:c1])
        grid.ldlq_block_(q[:, c0:c1], w[:, c0:c1], target, block)
    if h is not None:
        coordinate_descent_(q, w, h, grid, scale, part, passes, columns, refit=True)
    return q if factor.order is None else torch.empty_like(q).index_copy_(1, factor.order, q)
