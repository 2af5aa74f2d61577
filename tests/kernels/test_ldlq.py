"""ldlq_: one column block of LDLQ, against the definition of LDLQ in float64.

The op is written as GPTQ (errors fed forward through the Cholesky factor of the inverse Hessian);
the reference as LDLQ (differences fed forward through the UDU factor of the Hessian). A float32
rounding near a half-integer moves every later column, so the reference is given the integers that
the op chose before: each must then be the nearest to its own target.
"""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import heavy, int8, short, strided

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.ldlq_.default


def problem(n: int, b: int, seed: int = 0, damping: float = 0.05):
    """Weights, their row scale, a damped Hessian of correlated inputs (float64) and its feedback."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * b, b, generator=g) @ torch.randn(b, b, generator=g)
    h = oracle.hessian(oracle.array(x)) / len(x)
    h += damping * np.trace(h) / b * np.eye(b)
    feedback = np.linalg.cholesky(np.linalg.inv(h)).T
    w = heavy(n, b, seed=seed)
    scale = (w.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
    return w, scale, h, torch.from_numpy(feedback.copy()).float()


def excess(w, q, scale, h) -> float:
    """How far the worst integer is from being the nearest to its target, in steps beyond one half."""
    s = oracle.array(scale)
    targets = oracle.ldlq_targets(oracle.array(w), oracle.array(q), s, oracle.ldlq_factor(h)) / s
    distance = np.abs(targets - oracle.array(q))
    clipped = (np.abs(oracle.array(q)) == 127) & (
        np.sign(targets - oracle.array(q)) == np.sign(oracle.array(q))
    )
    return float(np.where(clipped, 0, distance - 0.5).max())


SHAPES = ((1, 1), (5, 7), (123, 128), (300, 33), (64, 64))


@pytest.mark.parametrize(("n", "b"), SHAPES, ids=short)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_integer_is_nearest_to_its_target(n, b, seed):
    w, scale, h, feedback = problem(n, b, seed)
    q = torch.empty(n, b, dtype=torch.int8)
    kernels.ldlq_(q, w, feedback, scale)
    # 1e-3 of a step: float32 sums of up to 128 corrections of up to 127 steps.
    assert excess(w, q, scale, h) < 1e-3
    rounded = oracle.integers(oracle.array(w) / oracle.array(scale))
    if b >= 32:
        assert (rounded != oracle.array(q)).mean() > 0.1, "the test must see feedback at work"


@pytest.mark.parametrize(("n", "b"), SHAPES, ids=short)
def test_errors_are_what_the_later_columns_need(n, b):
    """(w - q s) A = -e U beyond the block, here checked as e = (W - Q s) U_inverse row by row."""
    w, scale, _, feedback = problem(n, b)
    q = torch.empty(n, b, dtype=torch.int8)
    errors = oracle.array(kernels.ldlq_(q, w, feedback, scale))
    # The corrected column j is w_j - sum_{i<j} e_i U_ij = q_j s + e_j U_jj, so W - Q s = e U.
    difference = oracle.array(w) - oracle.array(q) * oracle.array(scale)
    size = np.abs(errors) @ np.abs(oracle.array(feedback)) + np.abs(oracle.array(w))
    assert (np.abs(difference - errors @ np.triu(oracle.array(feedback))) <= 4 * oracle.U * b * size).all()


@pytest.mark.parametrize("seed", range(3))
def test_proxy_loss_beats_rounding(seed):
    w, scale, h, feedback = problem(40, 96, seed, damping=0.01)
    q = torch.empty(40, 96, dtype=torch.int8)
    kernels.ldlq_(q, w, feedback, scale)

    def loss(integers):
        d = oracle.array(w) - integers * oracle.array(scale)
        return np.trace(d @ h @ d.T)

    assert loss(oracle.array(q)) < 0.6 * loss(oracle.integers(oracle.array(w) / oracle.array(scale)))


@pytest.mark.parametrize("diagonal", [1.0, 4.0])
def test_without_feedback_it_is_rounding(diagonal):
    w, scale, _, _ = problem(20, 48)
    q = torch.empty(20, 48, dtype=torch.int8)
    errors = kernels.ldlq_(q, w, torch.eye(48) * diagonal, scale)
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(oracle.array(w), oracle.array(scale)))
    torch.testing.assert_close(errors, (w - q * scale) / diagonal, rtol=1e-5, atol=1e-6)


def test_by_hand():
    """Binary fractions throughout: nothing is rounded but the weights."""
    w = torch.tensor([[0.75, 0.0, 3.0], [0.5, -0.25, -1.5]])
    feedback = torch.tensor([[0.5, 0.25, -1.0], [9.0, 1.0, 0.5], [9.0, 9.0, 2.0]])
    q = torch.empty(2, 3, dtype=torch.int8)
    errors = kernels.ldlq_(q, w, feedback, torch.tensor(1.0))
    # Row 0: q=1, e=-.5; 0+.125=.125 -> 0, e=.125; 3-.5-.0625=2.4375 -> 2, e=.21875.
    # Row 1: q=0 (half to even), e=1; -.25-.25=-.5 -> 0, e=-.5; -1.5+1+.25=-.25 -> 0, e=-.125.
    assert q.tolist() == [[1, 0, 2], [0, 0, 0]]
    assert errors.tolist() == [[-0.5, 0.125, 0.21875], [1.0, -0.5, -0.125]]


def test_saturates_and_feeds_the_clipped_error():
    w = torch.tensor([[300.0, 0.0]])
    q = torch.empty(1, 2, dtype=torch.int8)
    errors = kernels.ldlq_(q, w, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor(1.0))
    assert q.tolist() == [[127, -86]]
    assert errors.tolist() == [[173.0, -0.5]]
    kernels.ldlq_(q, torch.tensor([[-300.0, 0.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor(1.0))
    assert q.tolist() == [[-127, 86]]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=short)
def test_one_scale_for_all(shape):
    w, _, _, feedback = problem(20, 48)
    one, many = (torch.empty(20, 48, dtype=torch.int8) for _ in range(2))
    kernels.ldlq_(one, w, feedback, torch.full(shape, 0.05))
    kernels.ldlq_(many, w, feedback, torch.full((20, 1), 0.05))
    assert torch.equal(one, many)


@settings(max_examples=15)
@given(tiles=st.integers(2, 6), cut=st.integers(1, 5), b=st.integers(1, 128), seed=st.integers(0, 99))
def test_rows_are_independent(tiles, cut, b, seed):
    """Splitting by rows, as streaming does, changes no bit: in multiples of 16, which fill vectors."""
    n, cut = 16 * tiles, 16 * min(cut, tiles - 1)
    w, scale, _, feedback = problem(n, b, seed)
    whole, parts = torch.empty(n, b, dtype=torch.int8), torch.empty(n, b, dtype=torch.int8)
    errors = kernels.ldlq_(whole, w, feedback, scale)
    split = [kernels.ldlq_(parts[r], w[r], feedback, scale[r]) for r in (slice(0, cut), slice(cut, n))]
    assert torch.equal(whole, parts)
    assert torch.equal(errors, torch.cat(split))


def test_lower_triangle_is_not_read():
    w, scale, _, feedback = problem(20, 48)
    q, poisoned = torch.empty(20, 48, dtype=torch.int8), torch.empty(20, 48, dtype=torch.int8)
    errors = kernels.ldlq_(q, w, feedback, scale)
    bad = feedback.clone()
    bad[tuple(torch.tril_indices(48, 48, -1))] = float("nan")
    assert torch.equal(kernels.ldlq_(poisoned, w, bad, scale), errors)
    assert torch.equal(q, poisoned)


@pytest.mark.parametrize(
    "memory",
    ["contiguous", "one row", "transposed"],
)
def test_weights_are_left_alone(memory):
    w, scale, _, feedback = problem(1 if memory == "one row" else 12, 32)
    w = w.t().contiguous().t() if memory == "transposed" else w
    before = w.clone()
    kernels.ldlq_(torch.empty(w.shape, dtype=torch.int8), w, feedback, scale)
    assert torch.equal(w, before)


def test_strides_do_not_matter():
    w, scale, _, feedback = problem(12, 32)
    q = torch.empty(12, 32, dtype=torch.int8)
    errors = kernels.ldlq_(q, w, feedback, scale)
    for name, view in strided(w).items():
        got = torch.empty(12, 32, dtype=torch.int8)
        assert torch.equal(kernels.ldlq_(got, view, feedback, scale), errors), name
        assert torch.equal(got, q), name
    wide = torch.full((12, 96), 5, dtype=torch.int8)
    kernels.ldlq_(wide[:, 32:64], w, feedback.t().contiguous().t(), scale)
    assert torch.equal(wide[:, 32:64], q)
    assert (wide[:, :32] == 5).all()
    assert (wide[:, 64:] == 5).all()


def test_no_rows():
    assert kernels.ldlq_(int8(0, 8), torch.zeros(0, 8), torch.eye(8), torch.ones(0, 1)).shape == (0, 8)


Q, W, EYE, ONE = int8(5, 8), torch.zeros(5, 8), torch.eye(8), torch.ones(())


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((Q.float(), W, EYE, ONE), TypeError, "q must be int8, not torch.float32"),
        ((Q[0], W[0], EYE, ONE), ValueError, r"q must be 2-D, not of shape \(8,\)"),
        ((int8(5, 129), torch.zeros(5, 129), torch.eye(129), ONE), ValueError, "1 to 128 columns, not 129"),
        ((Q, W[:4], EYE, ONE), ValueError, r"w must be float32 \(5, 8\) like q, not torch.float32 \(4, 8\)"),
        ((Q, W.bfloat16(), EYE, ONE), ValueError, "not torch.bfloat16"),
        (
            (Q, W, torch.eye(7), ONE),
            ValueError,
            r"feedback must be float32 \(8, 8\), not torch.float32 \(7, 7\)",
        ),
        ((Q, W, EYE.double(), ONE), ValueError, "not torch.float64"),
        ((Q, W, EYE, torch.ones(5)), ValueError, r"one element or shape \(5, 1\), not \(5,\)"),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.ldlq_(*args)


@pytest.mark.parametrize(("n", "b", "per_row"), [(5, 7, True), (33, 16, False), (1, 1, True)], ids=short)
def test_opcheck(n, b, per_row):
    w, scale, _, feedback = problem(n, b)
    torch.library.opcheck(op, (int8(n, b), w, feedback, scale if per_row else scale.amax()))


@pytest.mark.parametrize("levels", [1, 2, 7, 31, 127])
def test_the_level_count_bounds_the_codes_and_their_errors_are_fed_on(levels):
    """Against the float64 loop of the docstring."""
    w, _, _, feedback = problem(30, 20)
    scale = (w.abs().amax(1, keepdim=True) / levels * 0.8).clamp_min(1e-30)
    q = torch.zeros(30, 20, dtype=torch.int8)
    errors = kernels.ldlq_(q, w, feedback, scale, levels)
    left, u = w.double().clone(), feedback.double()
    for j in range(20):
        code = (left[:, j] / scale[:, 0].double()).round().clamp(-levels, levels)
        near = (left[:, j] / scale[:, 0].double() - code).abs()
        settled = (near - 0.5).abs() > 1e-4
        assert torch.equal(q[settled, j].double(), code[settled])
        left[:, j] = (left[:, j] - q[:, j].double() * scale[:, 0].double()) / u[j, j]
        left[:, j + 1 :] -= left[:, j : j + 1] * u[j, j + 1 :]
    assert q.abs().max() == levels
    torch.testing.assert_close(errors.double(), left, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", [0, -1, 128])
def test_a_level_count_beyond_int8_is_refused(levels):
    q, w = torch.zeros(3, 4, dtype=torch.int8), torch.randn(3, 4)
    with pytest.raises(ValueError, match="levels must lie between 1 and 127"):
        kernels.ldlq_(q, w, torch.eye(4), torch.ones(3, 1), levels)
