"""The linear of weights of small floats: FP8 by FP8 where the device has that, else exact activations."""

from functools import lru_cache

import torch
import torch.nn.functional as F

from . import _checks
from ._library import define
from .floats import FP8, FloatWeight, _dequantize_floats, _quantize_float8, as_bytes, check_floats


@lru_cache(maxsize=32)
def has_fp8_product(device: torch.device) -> bool:
    """Return whether ``torch._scaled_mm`` is the way to multiply FP8 on `device`: Ada, Hopper, Blackwell.

    One small product tells, on GPUs only: on a CPU exact activations cost no more.
    """
    if device.type == "cpu":
        return False
    try:
        ones = torch.ones(32, 32, device=device).to(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        torch._scaled_mm(ones, ones.t(), one, one, out_dtype=torch.bfloat16)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def check(x, q, kind, scale, block_scale, bias, input_scale) -> FloatWeight:
    """Return the weight's shape; TypeError or ValueError for operands that do not fit."""
    n, k = found = check_floats(q, kind, scale, block_scale)
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    if x.shape[-1] != k:
        raise ValueError(f"in_features differ: x has {x.shape[-1]} columns, the weight {k}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"bias must have shape ({n},), not {tuple(bias.shape)}")
    if input_scale is not None and input_scale.numel() != 1:
        raise ValueError(f"input_scale must have one element, not shape {tuple(input_scale.shape)}")
    return found


def multiplies_fp8(x: _checks.Described, weight: FloatWeight, kind: str, scale, exact: bool) -> bool:
    """Return whether a call is an FP8 product: 16-bit x, one scale in all, N and K multiples of 16."""
    one = scale is None or scale.numel() == 1
    fits = kind in FP8 and one and weight.n % 16 == weight.k % 16 == 0 and x.dtype != torch.float32
    return fits and not exact and has_fp8_product(x.device)


def scaled_mm(rows8, q, kind: str, scale, found, bias, out) -> torch.Tensor:
    """Write rows8 (e4m3 bytes [M, K], times `found`) by the FP8 weight into out [M, N]; return it."""
    one = found.new_ones(()) if scale is None else scale.float().reshape(())
    a, b = rows8.view(torch.float8_e4m3fn), q.view(FP8[kind]).t()
    torch._scaled_mm(a, b, found, one, out_dtype=out.dtype, out=out)
    return out if bias is None else out.add_(bias)


def _float_linear(x, q, kind, scale=None, block_scale=None, bias=None, input_scale=None, exact=False):
    weight = check(x, q, kind, scale, block_scale, bias, input_scale)
    if multiplies_fp8(x, weight, kind, scale, exact):
        rows8, found = _quantize_float8(x.reshape(-1, weight.k), "e4m3", input_scale)
        out = torch.empty(rows8.shape[0], weight.n, dtype=x.dtype, device=x.device)
        return scaled_mm(rows8, q, kind, scale, found, bias, out).view(*x.shape[:-1], weight.n)
    dense = _dequantize_floats(q, kind, scale, block_scale, x.dtype)
    return F.linear(x, dense, None if bias is None else bias.to(x.dtype))


def _fake(x, q, kind, scale=None, block_scale=None, bias=None, input_scale=None, exact=False):
    return torch.empty((*x.shape[:-1], q.shape[0]), dtype=x.dtype, device=x.device)


_op = define(
    "float_linear(Tensor x, Tensor q, str kind, Tensor? scale=None, Tensor? block_scale=None, "
    "Tensor? bias=None, Tensor? input_scale=None, bool exact=False) -> Tensor",
    eager=_float_linear,
    fake=_fake,
    device="float_linear.float_linear",
)


def float_linear(
    x: torch.Tensor,
    q: torch.Tensor,
    kind: str,
    scale: torch.Tensor | None = None,
    block_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    exact: bool = False,
) -> torch.Tensor:
    """Return x W^T + bias in x's dtype, [.., K] -> [.., N], for a weight of small floats.

    Where the device multiplies FP8, the weight is FP8 with one scale and x has 16 bits, x is rounded to e4m3
    with one scale first, `input_scale` or what its absmax asks for. Else, and with `exact`, it stays as is.

    x: float32, float16 or bfloat16. q, kind, scale, block_scale: as in `dequantize_floats`. bias: [N] or
        None.
    TypeError for dtypes, ValueError for shapes that do not fit.
    """
    return _op(x, as_bytes(q), kind, scale, as_bytes(block_scale), bias, input_scale, exact)
