"""accumulate_hessian_: h += X^T X over calibration tokens."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import GROUPS, heavy, short, strided, whole

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.accumulate_hessian_.default


def check(h: torch.Tensor, x: torch.Tensor, rotation: int = 0) -> None:
    """Entry by entry within the worst float32 summation: n roundings of the sum of magnitudes."""
    exact = oracle.array(x).reshape(-1, x.shape[-1])
    size = np.abs(oracle.rotate(exact, rotation)) + oracle.rotation_error(exact, rotation)
    # Sums of n terms in blocks err like sqrt(n) U; the rotation errs in each of both factors.
    moved = oracle.rotation_error(exact, rotation)
    bound = (4 * len(exact) ** 0.5 + 4) * oracle.U * (size.T @ size) + moved.T @ size + size.T @ moved
    assert (np.abs(oracle.array(h) - oracle.hessian(oracle.array(x), rotation)) <= bound + 1e-30).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 123), (300, 77), (3, 5, 33), (2, 3, 4, 16), (64,)], ids=short)
def test_against_float64(shape, dtype):
    x = heavy(*shape, dtype=dtype)
    h = torch.zeros(shape[-1], shape[-1])
    assert kernels.accumulate_hessian_(h, x) is h
    check(h, x)
    assert torch.equal(h, h.t())


@pytest.mark.parametrize("group", GROUPS)
def test_rotated_against_float64(group, dtype):
    x = heavy(40, group, dtype=dtype)
    h = torch.zeros(group, group)
    kernels.accumulate_hessian_(h, x, group)
    check(h, x, group)
    assert torch.equal(h, h.t())


@pytest.mark.parametrize("tokens", [(5000,), (7, 1000)], ids=short)
def test_more_tokens_than_one_part_of_whole_numbers_is_exact(tokens, dtype):
    x = whole(*tokens, 24, dtype=dtype)
    h = torch.zeros(24, 24)
    kernels.accumulate_hessian_(h, x)
    assert np.array_equal(oracle.array(h), oracle.hessian(oracle.array(x)))


@pytest.mark.parametrize("columns", [1024, 1500, 2049])
def test_wider_than_one_mirrored_block(columns):
    x = heavy(9, columns)
    h = torch.zeros(columns, columns)
    kernels.accumulate_hessian_(h, x)
    check(h, x)
    assert torch.equal(h, h.t())


@settings(max_examples=15)
@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=5), rotation=st.sampled_from([0, 4, 16]))
def test_calls_add_up(parts, rotation):
    x = whole(sum(parts), 32)
    h = torch.zeros(32, 32)
    for part in x.split(parts):
        kernels.accumulate_hessian_(h, part, rotation)
    assert np.array_equal(oracle.array(h), oracle.hessian(oracle.array(x), rotation))


def test_leaves_no_asymmetry():
    """A GEMM may round h[i, j] and h[j, i] apart; here they start apart, which shows on every machine."""
    h = torch.eye(1500)
    h[0, 1], h[1200, 1300], h[3, 1100] = 0.25, 0.5, 0.75
    kernels.accumulate_hessian_(h, torch.zeros(1, 1500))
    assert torch.equal(h, h.t())
    assert (h[1, 0], h[1300, 1200], h[1100, 3]) == (0.25, 0.5, 0.75)


def test_adds_to_what_is_there():
    x, start = whole(5, 16), whole(16, 16)
    start = start + start.t()
    h = start.clone()
    kernels.accumulate_hessian_(h, x)
    assert np.array_equal(oracle.array(h), oracle.array(start) + oracle.hessian(oracle.array(x)))


def test_strides_do_not_matter(dtype):
    x = whole(6, 64, dtype=dtype)
    want = oracle.hessian(oracle.array(x), 16)
    for name, view in strided(x).items():
        h = torch.zeros(64, 64)
        kernels.accumulate_hessian_(h, view, 16)
        assert np.array_equal(oracle.array(h), want), name


def test_input_is_left_alone(dtype):
    x = heavy(5, 64, dtype=dtype)
    before = x.clone()
    kernels.accumulate_hessian_(torch.zeros(64, 64), x, 64)
    assert torch.equal(x, before)


def test_no_tokens():
    h = torch.eye(8)
    kernels.accumulate_hessian_(h, torch.zeros(0, 8))
    assert torch.equal(h, torch.eye(8))


def test_nan_tokens_are_visible():
    x = heavy(5, 8)
    x[2, 3] = float("nan")
    h = torch.zeros(8, 8)
    kernels.accumulate_hessian_(h, x)
    assert h[3].isnan().all()


@pytest.mark.parametrize(
    ("h", "x", "rotation", "error", "match"),
    [
        (torch.zeros(8, 8), torch.zeros(2, 8).double(), 0, TypeError, "x must be float32"),
        (
            torch.zeros(8, 7),
            torch.zeros(2, 8),
            0,
            ValueError,
            r"h must be float32 \(8, 8\) for x with 8 columns",
        ),
        (torch.zeros(8, 8).double(), torch.zeros(2, 8), 0, ValueError, "not torch.float64"),
        (torch.zeros(8, 8), torch.zeros(2, 8), 16, ValueError, "does not divide 8 columns"),
        (torch.zeros(0, 0), torch.zeros(2, 0), 0, ValueError, r"not shape \(2, 0\)"),
    ],
    ids=short,
)
def test_refusals(h, x, rotation, error, match):
    with pytest.raises(error, match=match):
        kernels.accumulate_hessian_(h, x, rotation)


@pytest.mark.parametrize(("shape", "rotation"), [((5, 7), 0), ((2, 3, 16), 16), ((4,), 4)], ids=short)
def test_opcheck(shape, rotation):
    torch.library.opcheck(op, (torch.zeros(shape[-1], shape[-1]), heavy(*shape), rotation))
