"""The weight-only INT8 linear (W8A16), for few rows: decode steps, modulation vectors."""

import torch

from ._library import define
from .dequantize import _dequantize
from .int8_linear import check_weight
from .rotation import CHUNK, _rotate
from .scales import granularity


def _int8_weight_only_linear(x, qweight, weight_scale, bias=None, rotation=0):
    check_weight(x, qweight, weight_scale, bias, rotation)
    n, k = qweight.shape
    # The rotation is orthogonal and symmetric: (R x) . q is x . (R q), and x is the smaller one.
    rows = _rotate(x.reshape(-1, k).float(), rotation)
    out = torch.empty(rows.shape[0], n, dtype=torch.float32, device=x.device)
    edge = 1 if weight_scale.numel() == 1 else granularity(n, k, weight_scale)[0]
    step = -(-max(1, CHUNK // k) // edge) * edge if x.device.type == "cpu" else n
    for n0 in range(0, n, step):
        scale = (
            weight_scale if weight_scale.numel() == 1 else weight_scale[n0 // edge : -(-(n0 + step) // edge)]
        )
        weight = _dequantize(qweight[n0 : n0 + step], scale, torch.float32)
        torch.mm(rows, weight.t(), out=out[:, n0 : n0 + step])
    if bias is not None:
        out.add_(bias)
    return out.to(x.dtype).view(*x.shape[:-1], n)


def _fake(x, qweight, weight_scale, bias=None, rotation=0):
    return torch.empty((*x.shape[:-1], qweight.shape[0]), dtype=x.dtype, device=x.device)


_op = define(
    "int8_weight_only_linear(Tensor x, Tensor qweight, Tensor weight_scale, Tensor? bias=None, "
    "int rotation=0) -> Tensor",
    eager=_int8_weight_only_linear,
    fake=_fake,
    device="weight_only.int8_weight_only_linear",
)


def int8_weight_only_linear(
    x: torch.Tensor,
    qweight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    rotation: int = 0,
) -> torch.Tensor:
    """Return rotate(x) (q * scale)^T + bias with x unquantized: [.., K] -> [.., N] in x's dtype.

    Arguments and errors as in `int8_linear`. Every int8 weight is read once, so for a few rows
    it costs the memory traffic of half a bf16 linear and adds no activation noise.
    """
    return _op(x, qweight, weight_scale, bias, rotation)
