"""Rows of quantized and plain tensors: taking, joining, swapping. Exact: no integer changes."""

import torch

from ...formats import CheckpointError
from ..layouts import weight_layout
from ..tensor import QuantizedTensor


def take_rows(tensor: torch.Tensor, start: int, stop: int, what: str = "tensor") -> torch.Tensor:
    """Return rows [start, stop) in memory of their own.

    Scales follow their rows. CheckpointError where rows share a scale with rows outside.
    """
    if not isinstance(tensor, QuantizedTensor):
        return tensor[start:stop].clone()
    layout = weight_layout(tensor._layout_type)
    form = layout.form(tensor._layout_params)
    try:
        return QuantizedTensor.of(
            layout.take_rows(tensor._qdata, tensor._layout_params, start, stop), form.layout
        )
    except ValueError as e:
        raise CheckpointError(f"{what}: {e}; cannot split it exactly") from e


def join_rows(parts: list[torch.Tensor], what: str = "tensor") -> torch.Tensor:
    """Return the parts below each other; quantized parts must be stored alike.

    Scales per tensor become scales per row. CheckpointError when parts do not fit.
    """
    if len(parts) == 1:
        return parts[0]
    quantized = [p for p in parts if isinstance(p, QuantizedTensor)]
    if not quantized:
        return torch.cat(parts)
    if len(quantized) < len(parts):
        raise CheckpointError(
            f"{what}: some of its parts are quantized and some are not; quantize all of them or none"
        )
    kinds = {(p._layout_type, p.shape[1]) for p in quantized}
    listed = ", ".join(map(repr, parts))
    if len(kinds) > 1:
        raise CheckpointError(f"{what}: its parts are quantized in different ways: {listed}")
    layout = weight_layout(quantized[0]._layout_type)
    form = layout.form(quantized[0]._layout_params)
    try:
        return QuantizedTensor.of(
            layout.join_rows([(p._qdata, p._layout_params) for p in quantized]), form.layout
        )
    except ValueError as e:
        raise CheckpointError(f"{what}: its parts cannot be joined: {e}: {listed}") from e


def swap_halves(tensor: torch.Tensor, what: str = "tensor") -> torch.Tensor:
    """Return the second half of the rows above the first."""
    half = tensor.shape[0] // 2
    return join_rows([take_rows(tensor, half, 2 * half, what), take_rows(tensor, 0, half, what)], what)
