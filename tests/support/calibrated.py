"""Layers with calibration, and what an algorithm made of them."""

import numpy as np
import oracle
import torch
from inputs import heavy

from convert_to_quant.formats.work import DAMPING
from convert_to_quant.quant.algorithms import LayerStats


def tokens(n: int, k: int, seed: int = 0, rank: int | None = None) -> torch.Tensor:
    """Correlated tokens [n, K] with channels of uneven size; a low `rank` plants a strong correlation."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, rank or k, generator=g)
    mixing = torch.randn(rank or k, k, generator=torch.Generator().manual_seed(99)) / (rank or k) ** 0.5
    return hidden @ mixing * torch.linspace(0.3, 3, k) + 0.02 * torch.randn(n, k, generator=g)


def layer(n: int, k: int, seed: int = 0):
    """A weight [n, k] and statistics of its inputs."""
    return heavy(n, k, seed=seed), LayerStats(samples=tokens(3 * k, k, seed))


def integers(result) -> np.ndarray:
    """The stored integers."""
    return oracle.array(result.weight._qdata)


def spread_scale(result) -> np.ndarray:
    """The scale of every weight [n, k]."""
    params, shape = result.weight._layout_params, tuple(result.weight.shape)
    scale = oracle.array(params["scale"])
    edge = params.get("block_size")
    if edge:
        return np.kron(scale, np.ones((edge, edge)))[: shape[0], : shape[1]]
    return np.broadcast_to(scale, shape)


def damped(stats, rotation: int = 0, damping: float = DAMPING) -> np.ndarray:
    """The damped Hessian in float64."""
    x = oracle.array(stats.samples)
    h = oracle.hessian(x, rotation) / len(x)
    return h + damping * np.trace(h) / len(h) * np.eye(len(h))


def loss(weight, result, h, rotation: int = 0) -> float:
    """tr((W - Q) H (W - Q)^T) in the space of the integers."""
    error = oracle.rotate(oracle.array(weight), rotation) - integers(result) * spread_scale(result)
    return float(np.trace(error @ h @ error.T))
