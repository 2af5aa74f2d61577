"""LDLQ in float64, written from the paper alone: what the toolkit's float32 is held against.

Frantar et al., "GPTQ" (2022), Algorithm 1, one column at a time, with the Cholesky factor of the inverse.
"""

import torch

from convert_to_quant.kernels import hadamard


def rotate(x: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply each group of columns by the regular Hadamard matrix, in float64."""
    return (x.view(*x.shape[:-1], -1, group) @ hadamard(group, torch.float64)).reshape(x.shape)


def quip(weight: torch.Tensor, samples: torch.Tensor, group: int, damping: float) -> torch.Tensor:
    """Return the weight [N, K] as LDLQ in the rotated space leaves it, rotated back, float64."""
    w = rotate(weight.double(), group)
    x = rotate(samples.double(), group)
    h = x.T @ x / len(x)
    h.diagonal().add_(damping * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    scale = w.abs().amax(1) / 127
    out = torch.empty_like(w)
    for j in range(w.shape[1]):
        out[:, j] = (w[:, j] / scale).round().clamp(-127, 127) * scale
        error = (w[:, j] - out[:, j]) / upper[j, j]
        w[:, j + 1 :] -= torch.outer(error, upper[j, j + 1 :])
    return rotate(out, group)
