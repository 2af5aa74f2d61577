"""Rows of quantized and plain tensors: taking, joining, swapping. Exact: no integer changes."""

from typing import Any

import torch

from ...formats.errors import CheckpointError
from ..tensor import QuantizedTensor


def take_rows(tensor: torch.Tensor, start: int, stop: int, what: str = "tensor") -> torch.Tensor:
    """Rows [start, stop) in memory of their own.

    Row scales follow their rows, a scale for all is kept. CheckpointError where block-wise rows do not
    start and end on a block.
    """
    if not isinstance(tensor, QuantizedTensor):
        return tensor[start:stop].clone()
    params: dict[str, Any] = dict(tensor._layout_params)
    scale = params["scale"]
    if tensor._layout_type == "BlockWiseINT8Layout":
        block, last = params["block_size"], tensor.shape[0]
        if start % block or (stop % block and stop != last):
            raise CheckpointError(
                f"{what}: rows {start} to {stop} do not lie on blocks of {block}; cannot split it exactly"
            )
        params["scale"] = scale[start // block : -(-stop // block)].clone()
    elif scale.numel() != 1:
        params["scale"] = scale[start:stop].clone()
    return QuantizedTensor(tensor._qdata[start:stop].clone(), tensor._layout_type, params)


def join_rows(parts: list[torch.Tensor], what: str = "tensor") -> torch.Tensor:
    """The parts below each other; quantized parts must agree in layout, rotation and the other parameters.

    Per-tensor scales become row scales where they differ. CheckpointError when parts do not fit.
    """
    if len(parts) == 1:
        return parts[0]
    if not any(isinstance(p, QuantizedTensor) for p in parts):
        return torch.cat(parts)
    if len({_kind(p, what) for p in parts}) != 1:
        raise CheckpointError(
            f"{what}: its parts are quantized in different ways: {', '.join(map(repr, parts))}"
        )
    quantized: list[Any] = parts
    first = quantized[0]
    params = dict(first._layout_params)
    if first._layout_type == "BlockWiseINT8Layout":
        ragged = [p.shape[0] for p in parts[:-1] if p.shape[0] % params["block_size"]]
        if ragged:
            raise CheckpointError(
                f"{what}: {ragged[0]} rows are no whole blocks of {params['block_size']}; cannot join exactly"
            )
        params["scale"] = torch.cat([p._layout_params["scale"] for p in quantized])
    else:
        params["scale"] = torch.cat(
            [p._layout_params["scale"].reshape(-1, 1).expand(p.shape[0], 1) for p in quantized]
        )
    return QuantizedTensor(torch.cat([p._qdata for p in quantized]), first._layout_type, params)


def _kind(part: torch.Tensor, what: str) -> tuple:
    if not isinstance(part, QuantizedTensor):
        raise CheckpointError(f"{what}: some of its parts are quantized and some are not")
    plain = {k: v for k, v in part._layout_params.items() if not isinstance(v, torch.Tensor)}
    smooth = part._layout_params.get("pre_quant_scale")
    return (
        part._layout_type,
        part.shape[1],
        str(sorted(plain.items(), key=str)),
        None if smooth is None else tuple(smooth.tolist()),
    )


def swap_halves(tensor: torch.Tensor, what: str = "tensor") -> torch.Tensor:
    """The second half of the rows above the first."""
    half = tensor.shape[0] // 2
    return join_rows([take_rows(tensor, half, 2 * half, what), take_rows(tensor, 0, half, what)], what)
