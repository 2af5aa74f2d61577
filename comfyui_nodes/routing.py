"""Sending ComfyUI's INT8 linears to this project's fused kernel where it is faster, by measurement."""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Literal

import torch

from convert_to_quant.kernels import int8_linear

from .hooks import MissingHook

Mode = Literal["auto", "on", "off"]
MODES = ("off", "on", "auto")
BACKEND = "convert_to_quant"
"""The name in comfy-kitchen's list of back ends."""

_ACTIVATIONS = (None, "gelu_tanh", "swiglu", "rms_norm")
_TIMED_RUNS = 3
_log = logging.getLogger("convert_to_quant.comfyui_nodes")


class Router:
    """A back end of comfy-kitchen for ``int8_linear``, before the others in its order.

    So it gets every INT8 linear of ComfyUI: those of ``F.linear`` and those that ComfyUI's models call
    with an input activation or a residual.

    mode "auto": the first call of each (rows, shape, dtype, rotation, activation, residual, device), rows
        taken to the next power of two, is run both ways a few times and the faster is kept. "on": always
        the fused kernel. "off": as if it were not there.
    Where the fused kernel fails, the call goes where it would have gone, with one line in the log.
    During CUDA graph capture nothing is timed: a shape that has not been measured before takes the back end
    that comfy-kitchen would have taken. So does a call that the fused kernel does not know.
    """

    def __init__(self) -> None:
        self.mode: Mode = "off"
        self.choices: dict[tuple, bool] = {}

    def set(self, mode: Mode) -> None:
        """Change the mode for the whole process. MissingHook where comfy-kitchen takes no back ends."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if mode != "off":
            self._attach()
        elif self.mode != "off":
            registry = _registry()
            registry.set_priority(_others(registry))
        self.mode = mode

    def _attach(self) -> None:
        try:
            from comfy_kitchen.constraints import FunctionConstraints

            registry = _registry()
            anything = FunctionConstraints(default_devices=frozenset({"*"}))
            registry.register(BACKEND, SimpleNamespace(int8_linear=self), {"int8_linear": anything})
            registry.set_priority([BACKEND, *_others(registry)])
        except (ImportError, AttributeError, TypeError) as e:
            raise MissingHook(f"comfy-kitchen takes no back end for int8_linear ({e!r})") from e

    def __call__(self, **call: Any) -> torch.Tensor:
        """Compute comfy-kitchen's ``int8_linear``, given its keywords."""
        stock = _stock(call)
        if not _known(call):
            return stock()
        if self.mode == "on" or self._choose(call, stock):
            try:
                return fused(call)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a call that is wrong in itself fails below as well
                _say_once(type(error).__name__, str(error))
        return stock()

    def _choose(self, call: dict[str, Any], stock: Callable[[], torch.Tensor]) -> bool:
        """Tell whether the fused kernel takes this call."""
        x, weight = call["x"], call["weight"]
        rows = x.numel() // x.shape[-1]
        rotation = call["convrot_groupsize"] if call.get("convrot") else 0
        extras = call["weight_scale"].numel() == 1, call.get("input_act"), call.get("residual") is not None
        kind = x.dtype, call["out_dtype"], rotation, *extras, str(x.device)
        key = (1 << (rows - 1).bit_length(), *weight.shape, *kind)
        if key not in self.choices:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return False
            self.choices[key] = _fused_seconds(call) < _seconds(stock, x)
        return self.choices[key]


def fused(call: dict[str, Any]) -> torch.Tensor:
    """Compute a comfy-kitchen call on the fused kernel."""
    x, activation = call["x"], call.get("input_act")
    norm = call["input_act_weight"].to(x.dtype) if activation == "rms_norm" else None
    return int8_linear(
        x,
        call["weight"],
        call["weight_scale"].float(),
        call.get("bias"),
        call["convrot_groupsize"] if call.get("convrot") else 0,
        out_dtype=call["out_dtype"],
        input_activation=None if norm is not None else activation,
        norm_weight=norm,
        norm_eps=call.get("input_act_eps") or 0.0,
        residual=call.get("residual"),
        residual_scale=call.get("residual_scale"),
    )


def _known(call: dict[str, Any]) -> bool:
    """Tell whether a call has plain float rows, one scale in all or per row [N, 1], and known extras."""
    x, weight, scale = call["x"], call["weight"], call["weight_scale"]
    extras = {k for k, v in call.items() if v is not None and k not in _KEYWORDS}
    return (
        not extras
        and type(x) is torch.Tensor
        and x.is_floating_point()
        and x.numel() > 0
        and x.device == weight.device
        and (scale.numel() == 1 or tuple(scale.shape) == (weight.shape[0], 1))
        and call.get("input_act") in _ACTIVATIONS
    )


_KEYWORDS = (
    "x", "weight", "weight_scale", "bias", "out_dtype", "convrot", "convrot_groupsize", "input_act",
    "input_act_weight", "input_act_eps", "residual", "residual_scale",
)  # fmt: skip


def _registry() -> Any:
    from comfy_kitchen import registry

    return registry


def _others(registry: Any) -> list[str]:
    """Return the order of the other back ends, which comfy-kitchen has no public way to read."""
    return [name for name in registry._priority if name != BACKEND]


def _stock(call: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """Return the call on the back end that would have it without this one."""

    def run() -> torch.Tensor:
        registry = _registry()
        names = [n for n in _others(registry) if registry.is_available(n)]
        able = [n for n in names if registry.validate_backend_for_call(n, "int8_linear", call).success]
        # With none able, the last one's own error says why.
        chosen = able[0] if able else names[-1]
        return registry.get_implementation("int8_linear", backend=chosen, kwargs=call)(**call)

    return run


def _fused_seconds(call: dict[str, Any]) -> float:
    """Return the time of the fused kernel; infinite where it fails, as with a Triton that cannot build."""
    try:
        return _seconds(lambda: fused(call), call["x"])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _say_once(type(error).__name__, str(error))
        return float("inf")


@lru_cache(maxsize=64)
def _say_once(kind: str, message: str) -> None:
    first = (message or "no message").splitlines()[0]
    _log.warning("an INT8 linear stays with comfy-kitchen: the fused kernel failed (%s: %s)", kind, first)


def _seconds(call: Callable[[], torch.Tensor], x: torch.Tensor) -> float:
    """Return the best time of a few runs, after one that compiles and warms up."""
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
"""The router of this process."""
