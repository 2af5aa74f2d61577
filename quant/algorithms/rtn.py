"""Rounding to nearest: the default, and what every other algorithm has to beat."""

from math import lcm

import torch

from ...kernels.rotation import CHUNK
from .. import chunks
from ..layouts import weight_layout
from ..layouts.weight import Params
from ..tensor import QuantizedTensor
from . import tiles
from .types import LayerStats, QuantizeOptions


def rtn(
    weight: torch.Tensor, stats: LayerStats | None, options: QuantizeOptions, name: str = ""
) -> tuple[QuantizedTensor, str | None]:
    """Round `weight` [N, K] to the nearest value of its grid; `stats` are not used.

    With default options this is one call of the layout's kernel; `row_chunk` and another device go
    through it chunk by chunk.
    """
    if options.scale_search and not tiles.grid_of(options).fits:
        return _searched(weight, options, name), None
    whole = options.row_chunk is None and tiles.compute_device(weight, options) == weight.device
    return (_whole(weight, options) if whole else _chunked(weight, options, name)), None


def _whole(weight: torch.Tensor, options: QuantizeOptions) -> QuantizedTensor:
    layout = weight_layout(options.format.layout)
    return QuantizedTensor.of(layout.round(weight, options.format), layout)


def _chunked(weight: torch.Tensor, options: QuantizeOptions, name: str) -> QuantizedTensor:
    n, k = weight.shape
    device, grid = tiles.compute_device(weight, options), tiles.grid_of(options)
    layout = weight_layout(options.format.layout)
    shared = None
    if not grid.rows:
        shared = tiles.fitted_scale(weight, options)
    elif grid.wants_peak:
        shared = grid.scale_in_all(tiles.largest(weight, options))
    made: dict[int, tuple[torch.Tensor, Params]] = {}

    def quantize(start: int, stop: int) -> None:
        q, params = layout.round(weight[start:stop].to(device), options.format, shared)
        moved = {key: v.to(weight.device) if isinstance(v, torch.Tensor) else v for key, v in params.items()}
        made[start] = (q.to(weight.device), moved)

    # A multiple of the kernels' own chunk: the rotation then sees the same shapes, hence the same bits.
    multiple = max(1, CHUNK // k) if grid.rotation else 1
    multiple = lcm(multiple, max(grid.rows, 1), options.format.row_step)
    chunks.in_chunks(n, options.row_chunk, quantize, multiple=multiple, name=name)
    parts = [made[start] for start in sorted(made)]
    if shared is not None and not grid.rows:
        return QuantizedTensor.of((torch.cat([q for q, _ in parts]), parts[0][1]), layout)
    return QuantizedTensor.of(layout.join_rows(parts), layout)


def _searched(weight: torch.Tensor, options: QuantizeOptions, name: str) -> QuantizedTensor:
    q, grid = torch.empty(weight.shape, dtype=torch.int8, device=weight.device), tiles.grid_of(options)
    scale = tiles.layer_scale(weight, options, name)
    for part, work in tiles.row_tiles(weight, options):
        q[part] = grid.round(work, grid.view(scale, part, weight.shape[1]))
    return tiles.wrap(q, scale.to(weight.device), weight.dtype, options)
