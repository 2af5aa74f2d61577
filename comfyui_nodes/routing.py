"""Sending ComfyUI's INT8 linears to this project's fused kernel where it is faster, by measurement."""

import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from .hooks import MissingHook

Mode = Literal["auto", "on", "off"]
MODES = ("auto", "on", "off")
_TIMED_RUNS = 3


class Router:
    """Stands in comfy-kitchen's dispatch table for linear products with TensorWiseINT8Layout weights.

    mode "auto": the first call of each (rows, shape, dtype, rotation, device), rows taken to the next power
        of two, is run both ways a few times and the faster is kept. "on": always the fused kernel.
        "off": as if it were not there.
    Under torch.compile and CUDA graph capture nothing is timed: a shape that has not been measured
    before takes comfy-kitchen's way.
    """

    def __init__(self) -> None:
        self.mode: Mode = "off"
        self.choices: dict[tuple, bool] = {}
        self._stock: dict[Any, Callable] = {}

    def set(self, mode: Mode) -> None:
        """Change the mode for the whole process. MissingHook where comfy-kitchen has no such table."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if mode != "off" and not self._stock:
            self._attach()
        elif mode == "off" and self._stock:
            for op, handler in self._stock.items():
                _table()[op][_layout()] = handler
            self._stock = {}
        self.mode = mode

    def _attach(self) -> None:
        try:
            found = {op: _table()[op][_layout()] for op in _products()}
        except (ImportError, AttributeError, KeyError) as e:
            raise MissingHook(f"comfy-kitchen has no linear of TensorWiseINT8Layout to route ({e!r})") from e
        self._stock = found
        for op in found:
            _table()[op][_layout()] = self._handler(op)

    def _handler(self, op: Any) -> Callable:
        from .kitchen_layouts import fused, operands

        stock = self._stock[op]

        def handler(qt: Any, args: tuple, kwargs: dict) -> torch.Tensor:
            found = operands(op, args, kwargs)
            if found is None or kwargs.get("out_dtype") or not _usable(*found):
                return stock(qt, args, kwargs)
            ours = lambda: fused(*found)
            if self._choose(found, ours, lambda: stock(qt, args, kwargs)):
                return ours()
            return stock(qt, args, kwargs)

        return handler

    def _choose(self, found: tuple, ours: Callable, stock: Callable) -> bool:
        """Whether the fused kernel takes this call."""
        if self.mode == "on":
            return True
        x, weight, _ = found
        params, rows = weight._params, x.numel() // x.shape[-1]
        bucket = 1 << (rows - 1).bit_length()
        rotation = params.convrot_groupsize if params.convrot else 0
        key = (bucket, *weight._qdata.shape, x.dtype, rotation, params.scale.dim(), str(x.device))
        if key not in self.choices:
            if _untimable(x):
                return False
            self.choices[key] = _seconds(ours, x) < _seconds(stock, x)
        return self.choices[key]


def _table() -> dict:
    from comfy_kitchen.tensor import base

    return base._LAYOUT_DISPATCH_TABLE


def _layout() -> type:
    from comfy_kitchen.tensor import TensorWiseINT8Layout

    return TensorWiseINT8Layout


def _products() -> tuple:
    from .kitchen_layouts import PRODUCTS

    return PRODUCTS


def _usable(x: torch.Tensor, weight: Any, bias: Any) -> bool:
    """A plain input and one scale in all, or one a row in the shape that means it."""
    scale = weight._params.scale
    return (
        type(x) is torch.Tensor
        and x.numel() > 0
        and (scale.numel() == 1 or tuple(scale.shape) == (weight._qdata.shape[0], 1))
    )


def _untimable(x: torch.Tensor) -> bool:
    if torch.compiler.is_compiling():
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _seconds(call: Callable[[], torch.Tensor], x: torch.Tensor) -> float:
    """The best of a few runs, after one that compiles and warms up."""
    best = float("inf")
    for i in range(_TIMED_RUNS + 1):
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        start = time.perf_counter()
        call()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        if i:
            best = min(best, time.perf_counter() - start)
    return best


ROUTER = Router()
"""The one of this process."""
