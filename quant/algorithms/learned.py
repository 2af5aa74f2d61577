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

from ...kernels.scales import QMAX
from .. import chunks
from ..tensor import QuantizedTensor
from . import grid
from .hessian import column_order, factorize, has_hessian, layer_hessian
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

PASSES = 4
"""Coordinate-descent passes; measured, the fifth gains less than 0.01 dB."""

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
    known = has_hessian(stats, options)
    metric = stats if known else LayerStats(extra_directions=_singular_directions(weight, options))
    scale = grid.layer_scale(weight, options, name)
    device = grid.compute_device(weight, options)
    order = column_order(metric, options, device)
    factor = factorize(lambda: layer_hessian(metric, options, device, order), options, order, name)
    q = quantize_with_factor(weight, factor, scale, options, name)
    damping = factor.damping
    del factor
    h = layer_hessian(metric, options, device)
    h.diagonal().add_(damping * h.diagonal().mean())
    before, after = _improve_(q, weight, h, scale, options, name)
    basis = "" if known else "no calibration samples: learned along the top singular directions; "
    return grid.wrap(q, scale.to(weight.device), weight.dtype, options), basis + _gain(before, after)


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
    plan = Plan(options.steps, make, options.learning_rate or rate, SCHEDULES[options.schedule])
    tile = grid.tile_rows(weight.shape[1], h.device, options)
    sums: dict[int, tuple[float, float]] = {}

    def work(start: int, stop: int) -> None:
        for part, w in grid.row_tiles(weight, options, slice(start, stop)):
            s = grid.rows_of(scale, part, weight.shape, options)
            given = q[part].to(device=h.device, dtype=torch.float32)
            best = Best(w, h, s, given)
            first = best.loss.sum().item()
            best.offer(grid.round_to(w, s))
            best.offer(_relax(best.q, w, h, s, plan))
            best.offer(coordinate_descent(best.q, w, h, s))
            q[part] = best.q.to(device=q.device, dtype=torch.int8)
            sums[part.start] = (first, best.loss.sum().item())

    chunks.in_chunks(weight.shape[0], options.row_chunk, work, multiple=tile, name=name)
    return sum(a for a, _ in sums.values()), sum(b for _, b in sums.values())


def objective(q: torch.Tensor, w: torch.Tensor, h: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """(w - q s) H (w - q s)^T a row, [n]; q integers as float32, s broadcastable to w."""
    error = w - q * s
    return ((error @ h) * error).sum(1)


class Best:
    """The best integers of each row so far, and their loss."""

    def __init__(self, w: torch.Tensor, h: torch.Tensor, s: torch.Tensor, q: torch.Tensor) -> None:
        self.w, self.h, self.s = w, h, s
        self.q, self.loss = q, objective(q, w, h, s)

    def offer(self, q: torch.Tensor) -> None:
        """Take the rows of q that are better."""
        loss = objective(q, self.w, self.h, self.s)
        better = loss < self.loss
        self.q = torch.where(better.unsqueeze(1), q, self.q)
        self.loss = torch.where(better, loss, self.loss)


@dataclass(frozen=True)
class Plan:
    """How the loop optimises: steps, optimiser factory, learning rate and its schedule."""

    steps: int
    make: Callable[..., torch.optim.Optimizer]
    rate: float
    schedule: Callable[[float], float]


def _relax(q: torch.Tensor, w: torch.Tensor, h: torch.Tensor, s: torch.Tensor, plan: Plan) -> torch.Tensor:
    """AdaRound around the integers q [n, K]: which of them should move one step down the gradient."""
    low, high = _STRETCH
    error = w - q * s
    direction = torch.where(error @ h < 0, -1.0, 1.0)
    # In units of a step of one integer on a mean channel, so that one rate serves every layer.
    unit = (s * s).expand_as(w).mean(1, keepdim=True) * h.diagonal().mean()
    slope = direction * s / unit
    latent = torch.full_like(w, math.log(0.1 / 0.9)).requires_grad_()
    optimiser = plan.make([latent], lr=plan.rate)
    for step in range(plan.steps):
        t = step / plan.steps
        optimiser.param_groups[0]["lr"] = plan.rate * plan.schedule(t)
        soft = torch.sigmoid(latent.detach())
        moved = (soft * (high - low) + low).clamp_(0, 1)
        grad = -2 * slope * ((error - direction * s * moved) @ h)
        if t >= 0.2:
            grad += _regulariser_grad(moved, 20 - 18 * t)
        inside = (moved > 0) & (moved < 1)
        latent.grad = grad * inside * soft * (1 - soft) * (high - low)
        optimiser.step()
    up = torch.sigmoid(latent.detach()) > 0.5
    return (q + direction * up).clamp_(-QMAX, QMAX)


def _regulariser_grad(moved: torch.Tensor, beta: float) -> torch.Tensor:
    """d/dh of 1 - |2h - 1|^beta, which pushes h away from one half."""
    away = 2 * moved - 1
    return -2 * beta * _REGULAR * away.sign() * away.abs().pow(beta - 1)


def coordinate_descent(
    q: torch.Tensor,
    w: torch.Tensor,
    h: torch.Tensor,
    s: torch.Tensor,
    passes: int = PASSES,
    block: int = 128,
) -> torch.Tensor:
    """Set each column in turn to the integers that minimise the objective given the others.

    Blocks of columns share one GEMM; inside a block the gradient follows column by column.
    """
    q, diagonal = q.clone(), h.diagonal().clamp_min(1e-30)
    s = s.expand_as(w)
    for _ in range(passes):
        changed = False
        for c0 in range(0, w.shape[1], block):
            cols = slice(c0, min(c0 + block, w.shape[1]))
            gradient = ((w - q * s) @ h[:, cols]).t().contiguous()
            moves = _descend_block(q[:, cols], gradient, h[cols, cols], s[:, cols], diagonal[cols])
            changed |= bool(moves.any())
            q[:, cols] += moves
        if not changed:
            break
    return q


def _descend_block(
    q: torch.Tensor, gradient: torch.Tensor, h: torch.Tensor, s: torch.Tensor, diagonal: torch.Tensor
) -> torch.Tensor:
    """Integer moves [n, B] of one block; gradient [B, n] is (W - Q) H of its columns, overwritten."""
    old, scale = q.t().contiguous(), s.t().contiguous()
    moves = torch.zeros_like(old)
    weighted = torch.zeros_like(old)
    for j in range(old.shape[0]):
        if j:
            gradient[j].addmv_(weighted[:j].t(), h[:j, j], alpha=-1.0)
        target = old[j] + gradient[j] / (scale[j] * diagonal[j])
        moves[j] = target.round_().clamp_(-QMAX, QMAX) - old[j]
        weighted[j] = moves[j] * scale[j]
    return moves.t()


def _singular_directions(weight: torch.Tensor, options: QuantizeOptions, rounds: int = 4) -> torch.Tensor:
    """The weight's top right singular vectors times their singular values, [r, K], by subspace iteration."""
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
