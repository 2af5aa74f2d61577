"""descend_: one column block of coordinate descent, against the definition in float64."""

import itertools

import numpy as np
import oracle
import pytest
import torch
from inputs import heavy, int8, short, strided

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.descend_.default


def problem(n: int, b: int, levels: int = 127):
    """Weights, their codes rounded to nearest, row scales, and a damped Hessian of correlated inputs."""
    g = torch.Generator().manual_seed(b)
    x = torch.randn(3 * b, b, generator=g) @ torch.randn(b, b, generator=g)
    h = x.T @ x / len(x)
    h += 0.05 * h.diagonal().mean() * torch.eye(b)
    w = heavy(n, b)
    scale = (w.abs().amax(1, keepdim=True) / levels).clamp_min(1e-30)
    return w, (w / scale).round().to(torch.int8), scale, h


def gradient(w, q, scale, h):
    return (w - q * scale) @ h


def loss(w, q, scale, h) -> np.ndarray:
    """(w - q s) H (w - q s)^T per row, in float64."""
    error = oracle.array(w) - oracle.array(q) * oracle.array(scale)
    return np.einsum("ni,ij,nj->n", error, oracle.array(h), error)


@pytest.mark.parametrize(("n", "b"), [(1, 1), (5, 7), (123, 128), (64, 33)], ids=short)
@pytest.mark.parametrize("levels", [127, 7])
def test_each_code_is_the_best_for_those_before_and_after_it(n, b, levels):
    """Column j sees the new codes before it and the old ones after it: no other code there may lose less."""
    w, before, scale, h = problem(n, b, levels)
    q = before.clone()
    changes = kernels.descend_(q, gradient(w, before, scale, h), h, scale, levels)
    for j in range(b):
        mixed = torch.cat((q[:, : j + 1], before[:, j + 1 :]), 1)
        best = loss(w, mixed, scale, h)
        for step in (-1, 1):
            other = mixed.clone()
            other[:, j] = (other[:, j].int() + step).clamp(-levels, levels).to(torch.int8)
            # A thousandth of a step's own loss: what float32 sums of 128 terms can hide.
            slack = 1e-3 * oracle.array(h[j, j] * scale.square()).ravel()
            assert (best <= loss(w, other, scale, h) + slack).all()
    assert torch.equal(changes, (q.float() - before.float()) * scale)
    assert q.abs().max() <= levels
    if b > 30:
        assert (q != before).float().mean() > 0.05, "the test must see codes move"


def test_the_loss_falls_and_comes_to_rest():
    w, q, scale, h = problem(40, 96)
    losses = [loss(w, q, scale, h)]
    for _ in range(30):
        changes = kernels.descend_(q, gradient(w, q, scale, h), h, scale)
        losses.append(loss(w, q, scale, h))
    assert all((b <= a * (1 + 1e-5)).all() for a, b in itertools.pairwise(losses))
    assert losses[1].sum() < 0.8 * losses[0].sum()
    assert not changes.any()


def test_by_hand():
    """Binary fractions throughout: nothing is rounded but the codes."""
    q = torch.tensor([[1, 2, -3], [0, 0, 7]], dtype=torch.int8)
    h = torch.tensor([[2.0, 1.0, 0.5], [9.0, 1.0, -1.0], [9.0, 9.0, 4.0]])
    g = torch.tensor([[1.5, 0.25, 8.0], [-1.0, 3.0, 40.0]])
    changes = kernels.descend_(q, g, h, torch.tensor(0.5), levels=7)
    # Row 0: 1 + 1.5 / 1 = 2.5 -> 2, d = .5; .25 - .5 = -.25, 2 - .5 = 1.5 -> 2, d = 0;
    #        8 - .25 = 7.75, -3 + 3.875 = .875 -> 1, d = 2.
    # Row 1: 0 - 1 = -1, d = -.5; 3 + .5 = 3.5, 0 + 7 = 7, d = 3.5; 40 + .25 + 3.5 = 43.75: held at 7, d = 0.
    assert q.tolist() == [[2, 2, 1], [-1, 7, 7]]
    assert changes.tolist() == [[0.5, 0.0, 2.0], [-0.5, 3.5, 0.0]]


def test_strides_one_scale_and_no_rows():
    w, before, scale, h = problem(12, 32)
    g = gradient(w, before, scale, h)
    q = before.clone()
    changes = kernels.descend_(q, g, h, scale)
    for name, view in strided(g).items():
        wide = before.repeat(1, 3)
        given = view.clone()
        assert torch.equal(kernels.descend_(wide[:, 32:64], view, h.t().contiguous().t(), scale), changes), (
            name
        )
        assert torch.equal(wide, torch.cat((before, q, before), 1)), name
        assert torch.equal(view, given), name
    one, many = before.clone(), before.clone()
    kernels.descend_(one, g, h, torch.tensor(0.05))
    kernels.descend_(many, g, h, torch.full((12, 1), 0.05))
    assert torch.equal(one, many)
    assert kernels.descend_(int8(0, 8), torch.zeros(0, 8), torch.eye(8), torch.ones(0, 1)).shape == (0, 8)


Q, G, EYE, ONE = int8(5, 8), torch.zeros(5, 8), torch.eye(8), torch.ones(())


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((Q.float(), G, EYE, ONE), TypeError, "q must be int8, not torch.float32"),
        ((int8(5, 129), torch.zeros(5, 129), torch.eye(129), ONE), ValueError, "1 to 128 columns, not 129"),
        ((Q, G[:4], EYE, ONE), ValueError, r"gradient must be float32 \(5, 8\) like q"),
        (
            (Q, G, torch.eye(7), ONE),
            ValueError,
            r"hessian must be float32 \(8, 8\), not torch.float32 \(7, 7\)",
        ),
        ((Q, G, EYE, torch.ones(5)), ValueError, r"one element or shape \(5, 1\), not \(5,\)"),
        ((Q, G, EYE, ONE, 128), ValueError, "levels must lie between 1 and 127"),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.descend_(*args)


def test_opcheck():
    w, q, scale, h = problem(33, 16)
    torch.library.opcheck(op, (q, gradient(w, q, scale, h), h, scale))
