"""INT8 matrix product with its epilogue: int8 x int8 -> int32, scales, bias, activation, out dtype."""

from functools import lru_cache

import torch
import torch.nn.functional as F

from . import _checks, activations
from ._library import define
from .scales import granularity

EXACT_K = 1024
"""Columns whose int8 products sum exactly in float32: 1024 * 127 * 127 < 2 ** 24."""

_CHUNK_ROWS = 512


@lru_cache(maxsize=32)
def _has_int8_product(device: torch.device) -> bool:
    """Return whether ``torch._int_mm`` is the way to multiply int8 on `device`.

    On a CPU it is with int8 instructions (VNNI, AMX); without them it took 24 times as long as float32.
    On a GPU it is wherever it runs, which one small product tells.
    """
    if device.type == "cpu":
        return torch.cpu._is_vnni_supported()
    try:
        ones = torch.ones(32, 32, dtype=torch.int8, device=device)
        torch._int_mm(ones, ones.t())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def int32_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply a int8 [M, K] by b int8 [N, K] transposed, exactly; return int32 [M, N].

    By ``torch._int_mm`` where that is fast, else in float32 over pieces of K short enough to be exact.
    """
    m, k = a.shape
    n = b.shape[0]
    if _has_int8_product(a.device):
        if m > 16 and k % 8 == 0 and n % 8 == 0:
            return torch._int_mm(a, b.t())
        if a.device.type != "cpu":
            return _padded_int_mm(a, b)
    out = torch.zeros(m, n, dtype=torch.int32, device=a.device)
    for k0 in range(0, k, EXACT_K):
        left = a[:, k0 : k0 + EXACT_K].float()
        for n0 in range(0, n, _CHUNK_ROWS):
            right = b[n0 : n0 + _CHUNK_ROWS, k0 : k0 + EXACT_K].float()
            out[:, n0 : n0 + _CHUNK_ROWS] += (left @ right.t()).to(torch.int32)
    return out


def _padded_int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `int32_mm` of any shape by ``torch._int_mm``, which wants 17 rows and multiples of 8."""
    (m, k), n = a.shape, b.shape[0]
    columns = -k % 8
    a = F.pad(a, (0, columns, 0, max(0, 32 - m)))
    b = F.pad(b, (0, columns, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def _check(a, b, a_scale, b_scale, bias) -> None:
    _checks.int8("a", a)
    _checks.linear_weight(a, b, bias)
    edges = granularity(b.shape[0], b.shape[1], b_scale)
    blocks = a_scale.shape[-1] if a_scale.dim() else 1
    if is_blockwise(b, b_scale):
        want = b_scale.shape[1]
        if a_scale.shape != (*a.shape[:-1], want):
            raise ValueError(
                f"a block-wise b (scale {tuple(b_scale.shape)}) needs a_scale {(*a.shape[:-1], want)}: one "
                f"entry per row and block of {edges[1]} columns, not {tuple(a_scale.shape)}"
            )
    elif a_scale.numel() != 1 and (blocks != 1 or a_scale.shape != (*a.shape[:-1], 1)):
        raise ValueError(
            f"a_scale must have one element or shape {(*a.shape[:-1], 1)}, not {tuple(a_scale.shape)}"
        )


def is_blockwise(weight: _checks.Described, scale: _checks.Described) -> bool:
    """Return whether `scale` holds one entry per block of `weight` [N, K], not one in all or one per row."""
    return scale.numel() != 1 and tuple(scale.shape) != (weight.shape[0], 1)


def _int8_mm(a, b, a_scale, b_scale, bias=None, out_dtype=torch.bfloat16, output_activation=None):
    _check(a, b, a_scale, b_scale, bias)
    activations.check(output_activation)
    rows = a.reshape(-1, a.shape[-1])
    if is_blockwise(b, b_scale):
        acc = _blockwise_product(rows, b, a_scale.reshape(-1, b_scale.shape[1]), b_scale)
    else:
        row_scale = a_scale.float().reshape(-1, 1)
        acc = int32_mm(rows, b).float().mul_(row_scale).mul_(b_scale.float().reshape(1, -1))
    if bias is not None:
        acc.add_(bias)
    acc = activations.apply(output_activation, acc)
    return acc.to(out_dtype).view(*a.shape[:-1], b.shape[0])


def _blockwise_product(a, b, a_scale, b_scale) -> torch.Tensor:
    """Return float32 [M, N]: the int32 products of each K block times both its scales, summed over blocks."""
    n, k = b.shape
    edge_n, edge_k = granularity(n, k, b_scale)
    of_column = torch.arange(n, device=b.device) // edge_n
    acc = torch.zeros(a.shape[0], n, dtype=torch.float32, device=a.device)
    for j, k0 in enumerate(range(0, k, edge_k)):
        part = int32_mm(a[:, k0 : k0 + edge_k], b[:, k0 : k0 + edge_k]).float()
        acc.addcmul_(part.mul_(a_scale[:, j : j + 1]), b_scale[of_column, j].unsqueeze(0))
    return acc


def _fake(a, b, a_scale, b_scale, bias=None, out_dtype=torch.bfloat16, output_activation=None):
    return torch.empty((*a.shape[:-1], b.shape[0]), dtype=out_dtype, device=a.device)


_op = define(
    "int8_mm(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor? bias=None, "
    "ScalarType out_dtype=bfloat16, str? output_activation=None) -> Tensor",
    eager=_int8_mm,
    fake=_fake,
    device="int8_mm.int8_mm",
)


def int8_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    output_activation: str | None = None,
) -> torch.Tensor:
    """Return act((a b^T) * a_scale * b_scale + bias) of quantized operands a [.., K] and b [N, K]: [.., N].

    a, b: int8. a_scale: float32 [] or [.., 1]; [.., K / block] when b is block-wise.
    b_scale: float32 [], [N, 1], or one entry per block [ceil(N / b), ceil(K / b)].
    bias: [N] or None. output_activation: None or a name of `activations.ACTIVATIONS`.
    Integers are summed exactly, the rest is float32, rounded once to `out_dtype`.
    TypeError for dtypes, ValueError for shapes that do not fit.
    """
    return _op(a, b, a_scale, b_scale, bias, out_dtype, output_activation)
