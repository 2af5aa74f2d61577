"""Rounding to nearest: the default, and what every other algorithm has to beat."""

import torch

from ...kernels import quantize_blockwise, quantize_rowwise, quantize_tensorwise
from ...kernels.rotation import CHUNK
from .. import chunks
from ..int8_layouts import BlockWiseINT8Layout, TensorWiseINT8Layout
from ..tensor import QuantizedTensor
from . import grid
from .types import LayerStats, QuantizeOptions


def rtn(
    weight: torch.Tensor, stats: LayerStats | None, options: QuantizeOptions, name: str = ""
) -> tuple[QuantizedTensor, str | None]:
    """Round `weight` [N, K] to the nearest integer times its scale; `stats` are not used.

    With default options this is one call of the layout's kernel; `row_chunk` and another device go
    through it chunk by chunk.
    """
    if options.scale_search:
        return _searched(weight, options, name), None
    whole = options.row_chunk is None and grid.compute_device(weight, options) == weight.device
    return (_whole(weight, options) if whole else _chunked(weight, options, name)), None


def _whole(weight: torch.Tensor, options: QuantizeOptions) -> QuantizedTensor:
    if options.scaling == "block":
        return QuantizedTensor.from_float(weight, BlockWiseINT8Layout, block_size=options.block_size)
    return QuantizedTensor.from_float(
        weight, TensorWiseINT8Layout, scaling=options.scaling, rotation=options.rotation
    )


def _chunked(weight: torch.Tensor, options: QuantizeOptions, name: str) -> QuantizedTensor:
    n, k = weight.shape
    device, edge = grid.compute_device(weight, options), options.block_size
    q = torch.empty(n, k, dtype=torch.int8, device=weight.device)
    scales: list[torch.Tensor] = []
    # A multiple of the kernels' own chunk: the rotation then sees the same shapes, hence the same bits.
    multiple = edge if options.scaling == "block" else max(1, CHUNK // k)

    def quantize(start: int, stop: int) -> None:
        rows = weight[start:stop].to(device)
        if options.scaling == "block":
            values, scale = quantize_blockwise(rows, edge, edge)
        elif options.scaling == "row":
            values, scale = quantize_rowwise(rows, options.rotation)
        else:
            values, scale = quantize_tensorwise(rows, scales[0].to(device), options.rotation)
        q[start:stop] = values
        scales.append(scale.to(weight.device))

    if options.scaling == "tensor":
        scales.append(grid.absmax_scale(weight, options).to(weight.device))
    chunks.in_chunks(n, options.row_chunk, quantize, multiple=multiple, name=name)
    scale = scales[0] if options.scaling == "tensor" else torch.cat(scales)
    return grid.wrap(q, scale, weight.dtype, options)


def _searched(weight: torch.Tensor, options: QuantizeOptions, name: str) -> QuantizedTensor:
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = grid.layer_scale(weight, options, name)
    for part, work in grid.row_tiles(weight, options):
        q[part] = grid.round_to(work, grid.rows_of(scale, part, weight.shape, options))
    return grid.wrap(q, scale.to(weight.device), weight.dtype, options)
