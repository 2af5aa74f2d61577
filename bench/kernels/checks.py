"""Correctness before speed: an op that differs from its eager twin is not timed."""

import torch

from convert_to_quant import kernels


class Red(Exception):
    """An op's answer is wrong; its figures would be worth nothing."""


def quantizer(rotation: int, x: torch.Tensor) -> None:
    """Refuse integers more than one from the twin's, scales beyond the rotation's rounding, and NaN."""
    got = kernels.quantize_rowwise(x, rotation)
    with kernels.force_eager():
        want = kernels.quantize_rowwise(x, rotation)
    apart = (got[0].int() - want[0].int()).abs()
    wrong = apart.max() > (1 if rotation else 0) or apart.float().mean() > 4e-3
    scales = (got[1] / want[1] - 1).abs().max()
    if wrong or not scales <= (2**-15 if rotation else 0):
        raise Red(
            f"quantize_rowwise, rotation {rotation}: {int(apart.max())} apart, scales {float(scales):g}"
        )


def linear(q, scale, bias, rotation: int, x: torch.Tensor, slack: float = 1.05) -> None:
    """Refuse an error against float64 more than 5 % above the twin's: both have int8's own noise.

    All of x is multiplied, so that the tile of this M is what is judged; 64 of its rows are compared.
    """
    few = torch.randperm(x.shape[0], device=x.device)[:64]
    got = kernels.int8_linear(x, q, scale, bias, rotation)[few]
    x = x[few]
    weight = kernels.dequantize(q, scale, torch.float32, rotation)
    exact = x.double() @ weight.double().t() + bias.double()
    with kernels.force_eager():
        twin = kernels.int8_linear(x, q, scale, bias, rotation)
    mine, theirs = ((y.double() - exact).square().mean().sqrt() for y in (got, twin))
    if not mine <= slack * theirs + 1e-6:
        raise Red(f"int8_linear {tuple(q.shape)}: error {float(mine):g}, the twin's {float(theirs):g}")


def weight_only(q, scale, bias, rotation: int, x: torch.Tensor) -> None:
    """Refuse an error against the float64 product of more than twice the twin's."""
    x = x[:16]
    weight = kernels.dequantize(q, scale, torch.float32, rotation).double()
    exact = x.double() @ weight.t() + bias.double()
    got = kernels.int8_weight_only_linear(x, q, scale, bias, rotation)
    with kernels.force_eager():
        twin = kernels.int8_weight_only_linear(x, q, scale, bias, rotation)
    mine, theirs = ((y.double() - exact).square().mean().sqrt() for y in (got, twin))
    if not mine <= 2 * theirs + 1e-6:
        raise Red(f"int8_weight_only_linear: error {float(mine):g}, the twin's {float(theirs):g}")


def ldlq(q, w, feedback, scale) -> None:
    """Refuse integers that differ from the twin's in more than 2 % (ties), or are missing."""
    mine, twin = torch.full_like(q, -128), torch.full_like(q, -128)
    kernels.ldlq_(mine, w, feedback, scale)
    with kernels.force_eager():
        kernels.ldlq_(twin, w, feedback, scale)
    share = float((mine != twin).float().mean())
    if share > 0.02 or (mine == -128).any():
        raise Red(f"ldlq_: {share:.1%} of the integers differ from the twin's")


def descent(q, gradient, hessian, scale) -> None:
    """Refuse codes that differ from the twin's in more than 2 % (ties)."""
    mine, twin = q.clone(), q.clone()
    kernels.descend_(mine, gradient, hessian, scale)
    with kernels.force_eager():
        kernels.descend_(twin, gradient, hessian, scale)
    share = float((mine != twin).float().mean())
    if share > 0.02:
        raise Red(f"descend_: {share:.1%} of the codes differ from the twin's")
