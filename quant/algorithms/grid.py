"""The grid of a weight: its scales, in tiles of rows that fit a cache.

Everything here handles the weight a tile of rows at a time. A tile has the same rows whatever chunk
or device budget is in force, so each GEMM sees the same shapes and returns the same bits.
"""

from collections.abc import Iterator

import torch

from ...kernels import rotate
from ...kernels.scales import QMAX, absmax_rows, scale_from_absmax
from .. import chunks
from ..int8_layouts import BlockWiseINT8Layout, TensorWiseINT8Layout
from ..tensor import QuantizedTensor
from .types import QuantizeOptions

SHRINKS = tuple(1 - i / 50 for i in range(31))
"""Candidates of the scale search, as shares of absmax / 127: 1.00 to 0.40."""


def tile_rows(columns: int, device: torch.device, options: QuantizeOptions) -> int:
    """Rows in a tile: a power of two, a multiple of the block size, set by K and the device type alone.

    On two CPU cores 1024 rows of 3072 columns took 0.35 s of per-column overhead for a square layer
    where 256 took 1.2 s. A GPU wants more rows a launch. From K = 8192 on the tile shrinks as 1 / K^2:
    it shall stay small beside the Hessian, which is what those layers are short of memory for.
    """
    most, area = (1024, 1 << 35) if device.type == "cpu" else (4096, 1 << 37)
    rows = min(most, max(64, 1 << ((area // columns**2).bit_length() - 1) if area > columns**2 else 64))
    return max(rows, options.block_size) if options.scaling == "block" else rows


def float_tile(weight: torch.Tensor, options: QuantizeOptions, device: torch.device) -> torch.Tensor:
    """Rows of the weight as fresh float32 on `device`, rotated as the options say."""
    work = weight.to(device=device, dtype=torch.float32)
    if options.rotation:
        return rotate(work, options.rotation)
    return work.clone() if work.data_ptr() == weight.data_ptr() else work


def row_tiles(
    weight: torch.Tensor,
    options: QuantizeOptions,
    rows: slice | None = None,
    ready: torch.Tensor | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield ``(slice, float32 rows)`` on the device of the computation.

    rows: the rows to cover, starting on a tile; None for all. ready: what `whole` made of the weight: its
    rows are then yielded as they lie there.
    """
    device = compute_device(weight, options)
    tile = tile_rows(weight.shape[1], device, options)
    rows = rows or slice(0, weight.shape[0])
    for start in range(rows.start, rows.stop, tile):
        part = slice(start, min(start + tile, rows.stop))
        yield part, float_tile(weight[part], options, device) if ready is None else ready[part]


def whole(weight: torch.Tensor, options: QuantizeOptions) -> torch.Tensor | None:
    """The weight as the options' space has it, float32, when all rows are taken at once.

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
    """Where to compute: the options' device, else the weight's."""
    return weight.device if options.device is None else torch.device(options.device)


def layer_scale(
    weight: torch.Tensor, options: QuantizeOptions, name: str = "", ready: torch.Tensor | None = None
) -> torch.Tensor:
    """The scales that the options ask for. ValueError, naming the layer, for NaN or Inf in the weight.

    ready: what `whole` made of the weight, if it did.
    """
    find = search_scale if options.scale_search else absmax_scale
    scale = find(weight, options, ready)
    refuse_non_finite(scale, name)
    return scale


def refuse_non_finite(scale: torch.Tensor, name: str) -> None:
    """A scale from an absmax is finite exactly when its weights are."""
    if not torch.isfinite(scale).all():
        raise ValueError(f"{name or 'layer'}: the weight holds NaN or Inf")


def absmax_scale(
    weight: torch.Tensor, options: QuantizeOptions, ready: torch.Tensor | None = None
) -> torch.Tensor:
    """absmax / 127 of the (rotated) weight: float32 [], [N, 1] or [ceil(N / b), ceil(K / b)]."""
    peaks = [_absmax(work, options) for _, work in row_tiles(weight, options, ready=ready)]
    return scale_from_absmax(torch.stack(peaks).amax() if options.scaling == "tensor" else torch.cat(peaks))


def _absmax(work: torch.Tensor, options: QuantizeOptions) -> torch.Tensor:
    if options.scaling == "block":
        return _blocks(work.abs(), options.block_size).amax((1, 3))
    peak = absmax_rows(work)
    return peak.amax() if options.scaling == "tensor" else peak


def _blocks(work: torch.Tensor, edge: int) -> torch.Tensor:
    """[rows, K] as [row blocks, edge, column blocks, edge], padded with zeros."""
    rows, columns = work.shape
    padded = torch.nn.functional.pad(work, (0, -columns % edge, 0, -rows % edge))
    return padded.view(padded.shape[0] // edge, edge, padded.shape[1] // edge, edge)


def search_scale(
    weight: torch.Tensor, options: QuantizeOptions, ready: torch.Tensor | None = None
) -> torch.Tensor:
    """The scale of least squared rounding error among SHRINKS times absmax / 127; shapes as there.

    The larger scale wins a tie.
    """
    start = absmax_scale(weight, options, ready)
    if not torch.isfinite(start).all():
        return start
    errors = []
    for part, work in row_tiles(weight, options, ready=ready):
        fine = rows_of(start, part, weight.shape, options)
        errors.append(torch.stack([_squared_error(work, fine * s, options) for s in SHRINKS]))
    total = torch.stack(errors).sum(0) if options.scaling == "tensor" else torch.cat(errors, 1)
    shrinks = torch.tensor(SHRINKS, device=total.device)
    return start * shrinks[total.argmin(0)]


def _squared_error(work: torch.Tensor, scale: torch.Tensor, options: QuantizeOptions) -> torch.Tensor:
    error = torch.addcmul(work, _rounded(work, scale), scale.expand_as(work), value=-1).square_()
    if options.scaling == "block":
        return _blocks(error, options.block_size).sum((1, 3))
    return error.sum() if options.scaling == "tensor" else error.sum(1, keepdim=True)


def _rounded(work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (work * scale.reciprocal()).round_().clamp_(-QMAX, QMAX)


def round_to(work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The integers (as float32) nearest to work / scale, saturated at +-127."""
    return _rounded(work, scale)


def rows_of(scale: torch.Tensor, part: slice, shape: torch.Size, options: QuantizeOptions) -> torch.Tensor:
    """The scale of rows `part`, broadcastable to them: [], [n, 1], or [n, K] for block scales."""
    if options.scaling == "tensor":
        return scale
    if options.scaling == "row":
        return scale[part]
    return block_rows(scale, part, options.block_size).repeat_interleave(options.block_size, 1)[:, : shape[1]]


def block_rows(scale: torch.Tensor, part: slice, edge: int) -> torch.Tensor:
    """Block scales of rows `part`: [n, ceil(K / b)]."""
    return scale[torch.arange(part.start, part.stop, device=scale.device) // edge]


def wrap(
    q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, options: QuantizeOptions
) -> QuantizedTensor:
    """Integers and scales as a QuantizedTensor of the layout that the options name."""
    if options.scaling == "block":
        params = {"scale": scale, "block_size": options.block_size, "orig_dtype": dtype}
        return QuantizedTensor(q, BlockWiseINT8Layout, params)
    params = {"scale": scale, "rotation": options.rotation, "orig_dtype": dtype}
    return QuantizedTensor(q, TensorWiseINT8Layout, params)
