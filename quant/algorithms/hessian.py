"""The Hessian of a layer, and the factor that LDLQ feeds errors back with.

H = X^T X / n over calibration tokens, in the space that is quantized. With H = R R^T, R upper
triangular, and U = inverse(R), inverse(H) = U^T U: Frantar et al., "GPTQ" (2022), take U from three
O(K^3) steps (Cholesky, inverse, Cholesky). LDLQ (Chee et al., "QuIP", 2023, eq. 4) needs no inverse:
R comes from one Cholesky factorization of H with both axes reversed, and only its diagonal
blocks are inverted. That is a third of the work, loses less to rounding, and can be done in H's own memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ...kernels import accumulate_hessian_, rotate
from ..grid import Grid
from .tiles import grid_of
from .types import LayerStats, QuantizeOptions

DAMPING_STEPS = 4
"""How often a failing factorization is tried again, with ten times the damping each time."""

_TOKEN_ELEMENTS = 1 << 22
"""Elements of X at once: 16 MiB of float32 where it is reordered, else 32 MiB of bf16 on the device."""


@dataclass(frozen=True)
class Factor:
    """What LDLQ needs of H, in one [K, K] float32 matrix over columns in factor order.

    matrix: for each block C of columns, the diagonal block holds U_CC and the block column above it
        R[<C, C] U_CC; what is below is not read. order: columns by rank, or None for as stored.
    blocks: (start, stop) of each. damping: the share of the mean diagonal that was added in the end.
    hessian: what was factored, without the damping and in the same order, where it was to be kept.
    """

    matrix: torch.Tensor
    order: torch.Tensor | None
    blocks: tuple[tuple[int, int], ...]
    damping: float
    hessian: torch.Tensor | None = None

    def cost(self) -> torch.Tensor:
        """Return 1 / U_jj^2 [K], columns as stored: what LDLQ's objective makes of a squared error in
        each."""
        cost = self.matrix.diagonal().square().reciprocal()
        return cost if self.order is None else torch.empty_like(cost).index_copy_(0, self.order, cost)


class NoCalibration(ValueError):
    """Nothing at hand tells one input direction from another: H would be the identity."""


def use_bf16(options: QuantizeOptions, device: torch.device) -> bool:
    """Return whether the GEMMs take bf16 operands: when asked, or on a GPU that multiplies them natively."""
    if options.bf16_compute == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return options.bf16_compute == "on"


def tokens(stats: LayerStats | None, options: QuantizeOptions) -> torch.Tensor | None:
    """Return the samples that may steer a rounding (never synthetic ones), at most `max_tokens` of them."""
    if stats is None or stats.synthetic or stats.samples is None or not stats.samples.shape[0]:
        return None
    n = stats.samples.shape[0]
    if options.max_tokens is None or n <= options.max_tokens:
        return stats.samples
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(options.seed))[: options.max_tokens]
    return stats.samples[chosen.sort().values.to(stats.samples.device)]


def has_hessian(stats: LayerStats | None, options: QuantizeOptions) -> bool:
    """Return whether `layer_hessian` would find anything to tell directions apart with."""
    return tokens(stats, options) is not None or (stats is not None and stats.extra_directions is not None)


def layer_hessian(
    stats: LayerStats | None,
    options: QuantizeOptions,
    device: torch.device,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return H [K, K] float32 of the layer's samples, rotated as the weight is, its columns in `order`.

    Extra directions D join as H + c D^T D with trace(c D^T D) = lora_weight x trace(H); without samples
    the background is the identity. NoCalibration when there is neither; ValueError for non-finite tokens.
    """
    x = tokens(stats, options)
    extra = None if stats is None else stats.extra_directions
    if x is None:
        if extra is None:
            raise NoCalibration("no calibration samples")
        h = torch.eye(extra.shape[1], device=device)
    else:
        h = torch.zeros(x.shape[1], x.shape[1], device=device)
        _accumulate(h, x, options, order)
        h.div_(x.shape[0])
    if extra is not None and extra.shape[0]:
        share = torch.zeros_like(h)
        _accumulate(share, extra, replace(options, bf16_compute="off"), order)
        weight = options.lora_weight * _mean_diagonal(h) / max(_mean_diagonal(share), 1e-30)
        h.add_(share, alpha=weight)
    return h


def _accumulate(
    h: torch.Tensor, x: torch.Tensor, options: QuantizeOptions, order: torch.Tensor | None
) -> None:
    bf16 = use_bf16(options, h.device)
    plain = order is None and not bf16
    step = max(1, (4 if plain else 1) * _TOKEN_ELEMENTS // x.shape[1])
    if plain:
        for start in range(0, x.shape[0], step):
            accumulate_hessian_(h, x[start : start + step].to(h.device), options.format.rotation)
        return
    for start in range(0, x.shape[0], step):
        part = _rotated(x[start : start + step], options, h.device)
        part = part if order is None else part[:, order]
        accumulate_hessian_(h, part.bfloat16() if bf16 else part)


def _rotated(x: torch.Tensor, options: QuantizeOptions, device: torch.device) -> torch.Tensor:
    part = x.to(device=device, dtype=torch.float32)
    return rotate(part, options.format.rotation) if options.format.rotation else part


def _mean_diagonal(h: torch.Tensor) -> float:
    return h.diagonal().double().mean().item()


def column_order(
    stats: LayerStats | None, options: QuantizeOptions, device: torch.device
) -> torch.Tensor | None:
    """Return the columns by descending diag(H) [K], or None unless `actorder` asks for it.

    Columns that share a scale stay together: their blocks descend by their sum, columns within.
    """
    x = tokens(stats, options)
    if not options.largest_first or x is None:
        return None
    step = max(1, _TOKEN_ELEMENTS // x.shape[1])
    diagonal = torch.zeros(x.shape[1], dtype=torch.float64, device=device)
    for start in range(0, x.shape[0], step):
        diagonal += _rotated(x[start : start + step], options, device).square().sum(0)
    edge, k = grid_of(options).columns, diagonal.shape[0]
    if not edge:
        return diagonal.argsort(descending=True, stable=True)
    # Stays last, because only the last block of a factor may be short.
    whole = k // edge
    sums = diagonal[: whole * edge].view(whole, edge).sum(1)
    starts = [int(b) * edge for b in sums.argsort(descending=True, stable=True)]
    starts += [whole * edge] if k % edge else []
    parts = [s + diagonal[s : s + edge].argsort(descending=True, stable=True) for s in starts]
    return torch.cat(parts)


def block_bounds(columns: int, grid: Grid) -> tuple[tuple[int, int], ...]:
    """Return column blocks of the grid's `span`, which holds the columns of whole scales."""
    return tuple((c, min(c + grid.span, columns)) for c in range(0, columns, grid.span))


def layer_factor(
    stats: LayerStats, options: QuantizeOptions, device: torch.device, name: str = "", keep: bool = False
) -> Factor:
    """Factor the Hessian of a layer's statistics, its columns in `column_order`; see `factorize`.

    A factor that `stats.kept` has from a call that would make the same one is returned again.
    """
    grid = grid_of(options)
    key = (
        *(options.format.rotation, grid.span),
        *(grid.columns if options.largest_first else 0, options.largest_first),
        *(
            options.damping,
            options.max_tokens,
            options.seed,
            options.bf16_compute,
            options.lora_weight,
            device,
        ),
    )
    if stats.kept is not None and key in stats.kept:
        return stats.kept[key]
    order = column_order(stats, options, device)
    factor = factorize(lambda: layer_hessian(stats, options, device, order), options, order, name, keep)
    if stats.kept is not None:
        stats.kept[key] = replace(factor, hessian=None)
    return factor


def factorize(
    make: Callable[[], torch.Tensor],
    options: QuantizeOptions,
    order: torch.Tensor | None = None,
    name: str = "",
    keep: bool = False,
) -> Factor:
    """Factor the damped Hessian that `make` returns (in `order`).

    The damping starts at options.damping x mean diagonal and rises tenfold each time the Cholesky
    factorization fails; after DAMPING_STEPS more it gives up with a ValueError that names the layer.
    options.in_place: factor in the memory that `make` returned, and call it again for another try,
    so that one [K, K] matrix is all that ever lives; otherwise H and the steps in between are kept.
    Both do the same operations on the same numbers, so the result is the same to the bit.
    keep: leave H in the factor, unless it was factored in place.
    """
    h = make()
    mean = _mean_diagonal(h)
    if not (mean > 0 and torch.isfinite(h.diagonal()).all()):
        raise ValueError(
            f"{name or 'layer'}: the calibration samples are all zero or not finite; record them again, with "
            "inputs that reach this layer"
        )
    damping = options.damping
    for attempt in range(DAMPING_STEPS + 1):
        if options.in_place:
            h = make() if attempt else h
            upper = _reversed_cholesky_(h, damping * mean)
        else:
            upper = _reversed_cholesky(h, damping * mean)
        if upper is not None:
            blocks = block_bounds(upper.shape[0], grid_of(options))
            _prepare_(upper, blocks)
            return Factor(upper, order, blocks, damping, h if keep and not options.in_place else None)
        damping *= 10
    raise ValueError(
        f"{name or 'layer'}: the Hessian is not positive definite even with damping "
        f"{damping / 10:g} of its mean diagonal"
    )


def _reversed_cholesky(h: torch.Tensor, shift: float) -> torch.Tensor | None:
    """Return R, upper triangular with R R^T = h + shift I, or None where there is none; h is kept."""
    damped = h.clone()
    damped.diagonal().add_(shift)
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1).mT, upper=True)
    return None if info else lower.mT.flip(0, 1)


def _reversed_cholesky_(h: torch.Tensor, shift: float) -> torch.Tensor | None:
    """Return the same in h's memory."""
    h.diagonal().add_(shift)
    _reverse_(h)
    info = torch.empty((), dtype=torch.int32, device=h.device)
    # LAPACK's matrices are column-major: the transposed view is what it can factor where it lies.
    torch.linalg.cholesky_ex(h.mT, upper=True, out=(h.mT, info))
    return None if info else _reverse_(h)


def _reverse_(h: torch.Tensor, step: int = 64) -> torch.Tensor:
    """Reverse both axes in place, through a few rows at a time."""
    k = h.shape[0]
    for start in range(0, k // 2, step):
        stop = min(start + step, k // 2)
        top = h[start:stop].flip(0, 1)
        h[start:stop] = h[k - stop : k - start].flip(0, 1)
        h[k - stop : k - start] = top
    if k % 2:
        h[k // 2] = h[k // 2].flip(0)
    return h


def _prepare_(upper: torch.Tensor, blocks: tuple[tuple[int, int], ...]) -> None:
    """Turn R into the matrix of a Factor, in place: U_CC on the diagonal, R[<C, C] U_CC above."""
    for c0, c1 in blocks:
        eye = torch.eye(c1 - c0, device=upper.device)
        inverse = torch.linalg.solve_triangular(upper[c0:c1, c0:c1], eye, upper=True)
        upper[c0:c1, c0:c1] = inverse
        if c0:
            upper[:c0, c0:c1] = upper[:c0, c0:c1] @ inverse
