"""The weight of a layer in tiles of rows that fit a cache, and its scales found tile by tile.

Everything here handles the weight a tile of rows at a time. A tile has the same rows whatever chunk
or device budget is in force, so each GEMM sees the same shapes and returns the same bits.
"""

from collections.abc import Iterator

import torch

from ...kernels import rotate
from ...kernels.scales import absmax_rows
from .. import chunks
from ..grid import Grid
from ..layouts import weight_layout
from ..tensor import QuantizedTensor
from .types import QuantizeOptions

SHRINKS = tuple(1 - i / 50 for i in range(31))
"""Candidates of the scale search, as shares of the scale from the peak: 1.00 to 0.40."""


def grid_of(options: QuantizeOptions) -> Grid:
    """Return the grid that the options' format rounds to."""
    return weight_layout(options.format.layout).grid(options.format)


def tile_rows(columns: int, device: torch.device, grid: Grid) -> int:
    """Return the rows in a tile: a power of two, a multiple of the grid's rows, set by K and the device type.

    On two CPU cores 1024 rows of 3072 columns took 0.35 s of per-column overhead for a square layer
    where 256 took 1.2 s. A GPU wants more rows per launch. From K = 8192 on the tile shrinks as 1 / K^2:
    it shall stay small beside the Hessian, which is what those layers are short of memory for.
    """
    most, area = (1024, 1 << 35) if device.type == "cpu" else (4096, 1 << 37)
    rows = min(most, max(64, 1 << ((area // columns**2).bit_length() - 1) if area > columns**2 else 64))
    return max(rows, grid.rows)


def float_tile(weight: torch.Tensor, rotation: int, device: torch.device) -> torch.Tensor:
    """Return rows of the weight [n, K] as fresh float32 on `device`, rotated by groups of `rotation`."""
    work = weight.to(device=device, dtype=torch.float32)
    if rotation:
        return rotate(work, rotation)
    return work.clone() if work.data_ptr() == weight.data_ptr() else work


def row_tiles(
    weight: torch.Tensor,
    options: QuantizeOptions,
    rows: slice | None = None,
    ready: torch.Tensor | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield ``(slice, float32 rows)`` on the device of the computation, in the space of the codes.

    rows: the rows to cover, starting on a tile; None for all. ready: what `whole` made of the weight: its
    rows are then yielded as they lie there.
    """
    device, grid = compute_device(weight, options), grid_of(options)
    tile = tile_rows(weight.shape[1], device, grid)
    rows = rows or slice(0, weight.shape[0])
    for start in range(rows.start, rows.stop, tile):
        part = slice(start, min(start + tile, rows.stop))
        yield part, float_tile(weight[part], grid.rotation, device) if ready is None else ready[part]


def whole(weight: torch.Tensor, options: QuantizeOptions) -> torch.Tensor | None:
    """Return the weight in the space of the codes, float32, when all rows are taken at once.

    None when they are not, or when the device has no room: the rows are then made tile by tile.
    """
    if options.row_chunk is not None:
        return None
    try:
        out = chunks.allocate(weight.shape[0], weight.shape[1], compute_device(weight, options))
    except torch.OutOfMemoryError:
        return None
    for part, rows in row_tiles(weight, options):
        out[part] = rows
    return out


def compute_device(weight: torch.Tensor, options: QuantizeOptions) -> torch.device:
    """Return where to compute: the options' device, else the weight's."""
    return weight.device if options.device is None else torch.device(options.device)


def layer_scale(
    weight: torch.Tensor,
    options: QuantizeOptions,
    name: str = "",
    ready: torch.Tensor | None = None,
    cost: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the scales that the options ask for, in `Grid.scale_shape`.

    ready: what `whole` made of the weight, if it did. cost: of a squared error in each column, [K], for
    grids that search by it. ValueError, naming the layer, for NaN or Inf in it.
    """
    if options.scale_search and not grid_of(options).fits:
        scale = search_scale(weight, options, ready)
    else:
        scale = fitted_scale(weight, options, ready, cost)
    refuse_non_finite(scale, name)
    return scale


def refuse_non_finite(scale: torch.Tensor, name: str) -> None:
    """Raise ValueError for NaN or Inf: a scale from an absmax is finite exactly when its weights are."""
    values = scale.float() if scale.element_size() == 1 else scale
    if not torch.isfinite(values).all():
        raise ValueError(f"{name or 'layer'}: the weight holds NaN or Inf")


def fitted_scale(
    weight: torch.Tensor,
    options: QuantizeOptions,
    ready: torch.Tensor | None = None,
    cost: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the scales, in `Grid.scale_shape`, that the grid finds for the (rotated) weights by itself."""
    grid, parts = grid_of(options), row_tiles(weight, options, ready=ready)
    peak = largest(weight, options, ready) if grid.wants_peak else None
    if grid.rows:
        return torch.cat([grid.fit(work, cost, peak) for _, work in parts])
    return grid.scale_from(torch.cat([grid.peaks(work) for _, work in parts]).amax(0, keepdim=True))


def largest(
    weight: torch.Tensor, options: QuantizeOptions, ready: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the largest magnitude of the (rotated) weight, float32 []; NaN where there is one."""
    parts = row_tiles(weight, options, ready=ready)
    return torch.stack([absmax_rows(work).amax() for _, work in parts]).amax()


def search_scale(
    weight: torch.Tensor, options: QuantizeOptions, ready: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the scales of least squared rounding error among SHRINKS times `fitted_scale`.

    Shaped likewise; the larger scale wins a tie. NaN and Inf pass through.
    """
    grid, start = grid_of(options), fitted_scale(weight, options, ready)
    if not torch.isfinite(start).all():
        return start
    tried = [grid.settle(start * s) for s in SHRINKS]
    errors = []
    for part, work in row_tiles(weight, options, ready=ready):
        errors.append(torch.stack([grid.errors(work, grid.view(s, part, weight.shape[1])) for s in tried]))
    total = torch.cat(errors, 1) if grid.rows else torch.stack(errors).sum(0)
    return torch.stack(tried).gather(0, total.argmin(0, keepdim=True))[0]


def wrap(
    q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, options: QuantizeOptions
) -> QuantizedTensor:
    """Return codes and scales as a QuantizedTensor of the layout that the options' format names.

    q: int8 [N, K]. scale: float32 in `Grid.scale_shape`, on q's device. dtype: of the float weight.
    """
    layout = weight_layout(options.format.layout)
    return QuantizedTensor.of(layout.pack(q, scale, options.format, dtype), layout)
