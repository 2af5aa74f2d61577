"""Learned rounding: optimise up or down against the output error, starting from the best known integers.

The objective is tr((W - Q) H (W - Q)^T), LDLQ's own (Nagel et al., "AdaRound", 2020, derive it too). Each
integer may move one step towards lower loss by h in [0, 1]; h is relaxed to a stretched sigmoid, driven to
0 or 1 by AdaRound's regulariser, and rounded. A few passes of coordinate descent (Behdin et al.,
"QuantEase", 2023) then settle what the relaxation left. Every row keeps the best of all it passed through,
so no row ends above its start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...formats.work import DESCENT_PASSES
from .. import chunks
from ..grid import Grid
from ..tensor import QuantizedTensor
from . import tiles
from .descent import coordinate_descent_, damped_
from .hessian import has_hessian, layer_factor, layer_hessian
from .ldlq import quantize_with_factor
from .types import LayerStats, QuantizeOptions

OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "original": (lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9), 1.0),
    "adamw": (lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.0), 0.2),
    "radam": (lambda params, lr: torch.optim.RAdam(params, lr=lr), 1.0),
}
"""Name -> (optimiser of the latent, its own learning rate in units of the latent)."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
}
"""Name -> learning-rate factor at progress t in [0, 1)."""

RANK = 16
"""Singular directions that stand in for calibration where there is none."""

# Share of the regulariser: 1 to 5 gain the same on MiniLM (12 % with "original"), 0.3 gains half.
_REGULAR = 2.0
_STRETCH = (-0.1, 1.1)


def learned(
    weight: torch.Tensor, stats: LayerStats | None, options: QuantizeOptions, name: str = ""
) -> tuple[QuantizedTensor, str]:
    """Quantize `weight` [N, K] from LDLQ's integers onwards; the note says what was gained.

    Without samples H = I + D^T D, with D the weight's top right singular directions: the note says so.
    Scales are those of LDLQ. ValueError naming the layer when H cannot be factored.
    """
    known = stats is not None and has_hessian(stats, options)
    metric = stats if known else LayerStats(extra_directions=_singular_directions(weight, options))
    assert metric is not None
    device = tiles.compute_device(weight, options)
    factor = layer_factor(metric, options, device, name)
    scale = tiles.layer_scale(weight, options, name, cost=factor.cost())
    q = quantize_with_factor(weight, factor, scale, options, name)
    damping = factor.damping
    del factor
    h = damped_(layer_hessian(metric, options, device), damping)
    before, after = _improve_(q, weight, h, scale, options, name)
    basis = "" if known else "no calibration samples: learned along the top singular directions; "
    return tiles.wrap(q, scale.to(weight.device), weight.dtype, options), basis + _gain(before, after)


def _gain(before: float, after: float) -> str:
    if not after < before:
        return "learned rounding found nothing better than LDLQ and returns it"
    return f"learned rounding took {100 * (1 - after / before):.1f} % off LDLQ's output error"


def _improve_(
    q: torch.Tensor,
    weight: torch.Tensor,
    h: torch.Tensor,
    scale: torch.Tensor,
    options: QuantizeOptions,
    name: str,
) -> tuple[float, float]:
    """Improve LDLQ's integers q [N, K] in place; returns the objective summed before and after."""
    make, rate = OPTIMISERS[options.algorithm]
    descent = Descent(options.steps, make, options.learning_rate or rate, SCHEDULES[options.schedule])
    grid = tiles.grid_of(options)
    tile = tiles.tile_rows(weight.shape[1], h.device, grid)
    sums: dict[int, tuple[float, float]] = {}

    def work(start: int, stop: int) -> None:
        for part, w in tiles.row_tiles(weight, options, slice(start, stop)):
            s = grid.view(scale, part, weight.shape[1])
            given = q[part].to(device=h.device, dtype=torch.float32)
            best = Best(Problem(w, h, s, grid), given)
            first = best.loss.sum().item()
            best.offer(grid.round(w, s))
            best.offer(_relax(best.q, best.problem, descent))
            codes = best.q.to(torch.int8)
            coordinate_descent_(codes, best.problem.error(best.q), h, grid, scale, part, DESCENT_PASSES)
            best.offer(codes.float())
            q[part] = best.q.to(device=q.device, dtype=torch.int8)
            sums[part.start] = (first, best.loss.sum().item())

    chunks.in_chunks(weight.shape[0], options.row_chunk, work, multiple=tile, name=name)
    return sum(a for a, _ in sums.values()), sum(b for _, b in sums.values())


@dataclass(frozen=True)
class Problem:
    """What the codes of some rows shall fit: w [n, K] in the metric h [K, K].

    s: the rows' scale, broadcastable to w. grid: what codes mean.
    """

    w: torch.Tensor
    h: torch.Tensor
    s: torch.Tensor
    grid: Grid

    def error(self, q: torch.Tensor) -> torch.Tensor:
        """Return what the codes q [n, K] (as float32) leave of w."""
        return self.w - self.grid.values(q, self.s)

    def loss(self, q: torch.Tensor) -> torch.Tensor:
        """Return (w - value) H (w - value)^T per row, [n]."""
        error = self.error(q)
        return ((error @ self.h) * error).sum(1)


class Best:
    """The best codes of each row so far, and their loss."""

    def __init__(self, problem: Problem, q: torch.Tensor) -> None:
        self.problem = problem
        self.q, self.loss = q, problem.loss(q)

    def offer(self, q: torch.Tensor) -> None:
        """Take the rows of q that are better."""
        loss = self.problem.loss(q)
        better = loss < self.loss
        self.q = torch.where(better.unsqueeze(1), q, self.q)
        self.loss = torch.where(better, loss, self.loss)


@dataclass(frozen=True)
class Descent:
    """How the loop optimises: steps, optimiser factory, learning rate and its schedule."""

    steps: int
    make: Callable[..., torch.optim.Optimizer]
    rate: float
    schedule: Callable[[float], float]


def _relax(q: torch.Tensor, problem: Problem, descent: Descent) -> torch.Tensor:
    """Run AdaRound around the codes q [n, K]: which of them should move one step down the gradient."""
    low, high = _STRETCH
    w, h, s, grid = problem.w, problem.h, problem.s, problem.grid
    error = problem.error(q)
    direction = torch.where(error @ h < 0, -1.0, 1.0)
    step = grid.change(q, direction, s)
    # In units of a step of one code on a mean channel, so that one rate serves every layer.
    slope = step / (grid.unit(w, s) * h.diagonal().mean())
    latent = torch.full_like(w, math.log(0.1 / 0.9)).requires_grad_()
    optimiser = descent.make([latent], lr=descent.rate)
    for done in range(descent.steps):
        t = done / descent.steps
        optimiser.param_groups[0]["lr"] = descent.rate * descent.schedule(t)
        soft = torch.sigmoid(latent.detach())
        moved = (soft * (high - low) + low).clamp_(0, 1)
        grad = -2 * slope * ((error - step * moved) @ h)
        if t >= 0.2:
            grad += _regulariser_grad(moved, 20 - 18 * t)
        inside = (moved > 0) & (moved < 1)
        latent.grad = grad * inside * soft * (1 - soft) * (high - low)
        optimiser.step()
    up = torch.sigmoid(latent.detach()) > 0.5
    return grid.clamp_(q + direction * up)


def _regulariser_grad(moved: torch.Tensor, beta: float) -> torch.Tensor:
    """Return d/dh of 1 - |2h - 1|^beta, which pushes h away from one half."""
    away = 2 * moved - 1
    return -2 * beta * _REGULAR * away.sign() * away.abs().pow(beta - 1)


def _singular_directions(weight: torch.Tensor, options: QuantizeOptions, rounds: int = 4) -> torch.Tensor:
    """Return the weight's top right singular vectors times their singular values, [r, K].

    By subspace iteration, `rounds` times.
    """
    k = weight.shape[1]
    rank = min(RANK, *weight.shape)
    basis = torch.randn(k, rank, generator=torch.Generator().manual_seed(options.seed)).to(weight.device)
    for _ in range(rounds):
        image = torch.zeros_like(basis)
        for rows in weight.split(1024):
            rows = rows.float()
            image += rows.t() @ (rows @ basis)
        basis = torch.linalg.qr(image).Q
    return basis.t() * image.norm(dim=0).sqrt().unsqueeze(1)
