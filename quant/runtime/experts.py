"""A mixture's bank of expert weights as a module, with the methods of ComfyUI's ``MoEExperts``."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from ..tensor import QuantizedTensor


class Experts(nn.Module):
    """E Linears [N, K] whose weights lie in one tensor: weight [E, N, K], bias [E, N] or None.

    A quantized weight may also be the matrix [E N, K] of all their rows, as `runtime.stored.build_weight`
    makes it.
    """

    full_precision = False

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts, self.in_features, self.out_features = num_experts, in_features, out_features
        shape = (num_experts, out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)
        made = torch.empty(shape[:2], device=device, dtype=dtype) if bias else None
        self.bias = None if made is None else nn.Parameter(made, requires_grad=False)

    def expert_weight(self, i: int) -> torch.Tensor:
        """Return the weight [N, K] of expert `i` of 0 .. E - 1, quantized if the bank is."""
        weight = self.weight
        if not isinstance(weight, QuantizedTensor):
            return weight[i]
        return weight.view(-1, self.in_features)[i * self.out_features : (i + 1) * self.out_features]

    def expert_linear(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Return expert `i`'s output [.., N] for x [.., K], in x's dtype."""
        weight = self.expert_weight(i).to(dtype=x.dtype, device=x.device)
        if isinstance(weight, QuantizedTensor) and self.full_precision:
            weight = weight.dequantize()
        bias = None if self.bias is None else self.bias[i].to(dtype=x.dtype, device=x.device)
        return F.linear(x, weight, bias)

    @contextmanager
    def bank_resident(self, x: torch.Tensor) -> Iterator["Experts"]:
        """Yield the module itself: a loop over experts in ComfyUI's models has the bank cast once by this."""
        yield self
