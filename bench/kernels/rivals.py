"""Other ways to run the same linear layer. Each is optional: `Missing` says why one is left out.

A rival is built once from the float layer (its own quantization is not timed) and returns a
call of the activations [M, K] alone.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F

from convert_to_quant import kernels

Call = Callable[[torch.Tensor], torch.Tensor]


class Missing(Exception):
    """This rival cannot run here, for the reason given."""


def _import(name: str):
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation of a rival must not stop the bench
        raise Missing(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def bf16_linear(weight, bias, rotation) -> Call:
    """Return cuBLAS in bfloat16: what the layer costs without quantization."""
    return lambda x: F.linear(x, weight, bias)


def int_mm(weight, bias, rotation) -> Call:
    """Return ``torch._int_mm`` with the quantization and the epilogue as plain PyTorch around it."""
    n, k = weight.shape
    if k % 8 or n % 8:
        raise Missing("torch._int_mm needs N and K divisible by 8")
    q, scale = kernels.quantize_rowwise(weight, rotation)
    q, scale = q.t(), scale.view(1, -1)
    matrix = kernels.hadamard(rotation, weight.dtype, str(weight.device)) if rotation else None

    def call(x):
        if x.shape[0] <= 16:
            raise Missing("torch._int_mm needs more than 16 rows")
        if matrix is not None:
            x = (x.view(-1, rotation) @ matrix).view(x.shape)
        row = x.abs().amax(1, keepdim=True).float() / 127
        xq = (x / row).round().clamp(-127, 127).to(torch.int8)
        return (torch._int_mm(xq, q).float() * row * scale + bias).to(x.dtype)

    return call


def torchao_dynamic(weight, bias, rotation) -> Call:
    """Return torchao's int8 dynamic activations, int8 weights; it has no rotation."""
    ao = _import("torchao.quantization")
    layer = _layer(weight, bias)
    ao.quantize_(layer, ao.Int8DynamicActivationInt8WeightConfig())
    return torch.compile(layer) if weight.device.type != "cpu" else layer


def _kitchen(backend: str):
    def build(weight, bias, rotation) -> Call:
        kitchen = _import("comfy_kitchen")
        if rotation not in (0, 16, 64, 256):
            raise Missing(f"comfy-kitchen has no rotation group {rotation}")
        q, scale = kernels.quantize_rowwise(weight, rotation)
        if not kitchen.registry.is_available(backend):
            raise Missing(f"comfy-kitchen's {backend} backend is not available here")
        turned = {"convrot": bool(rotation), "convrot_groupsize": rotation or 256}

        def call(x):
            with kitchen.use_backend(backend):
                return kitchen.int8_linear(x, q, scale, bias, x.dtype, **turned)

        return call

    build.__doc__ = f"comfy-kitchen's int8_linear, {backend} backend, rotation included."
    return build


def gemlite_dynamic(weight, bias, rotation) -> Call:
    """Return gemlite's A8W8 int8 dynamic linear; it has no rotation."""
    helper = _import("gemlite.helper")
    build = getattr(helper, "A8W8_int8_dynamic", None) or getattr(helper, "A8W8_INT8_dynamic", None)
    if build is None:
        raise Missing("this gemlite has no A8W8 int8 dynamic linear")
    return build(device=str(weight.device), dtype=weight.dtype).from_linear(_layer(weight, bias))


def _layer(weight, bias) -> torch.nn.Linear:
    layer = torch.nn.Linear(*reversed(weight.shape), device="meta")
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return layer


RIVALS = {
    "bf16 F.linear": bf16_linear,
    "torch._int_mm, separate": int_mm,
    "torchao dynamic int8": torchao_dynamic,
    "comfy-kitchen cuda": _kitchen("cuda"),
    "comfy-kitchen triton": _kitchen("triton"),
    "comfy-kitchen eager": _kitchen("eager"),
    "gemlite A8W8": gemlite_dynamic,
}
