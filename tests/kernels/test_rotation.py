"""rotate: the group-wise regular Hadamard."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import GROUPS, heavy, short, strided, whole

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.rotate.default


@pytest.mark.parametrize("group", GROUPS)
def test_matrix_is_the_regular_hadamard(group):
    h = oracle.array(kernels.hadamard(group, torch.float64))
    some = np.random.default_rng(0).integers(0, group, (500, 2))
    assert all(h[i, j] == oracle.hadamard_entry(i, j, group) for i, j in some)
    assert np.array_equal(h, h.T)
    assert np.array_equal(h @ h, np.eye(group))
    assert np.array_equal(h.sum(0), np.ones(group)), "regular: every row of H / sqrt(g) sums to 1"


def test_matrix_of_the_published_order_4():
    want = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]
    assert kernels.hadamard(4).mul(2).tolist() == want


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [(1,), (5,), (3, 7), ()], ids=short)
def test_whole_numbers_rotate_exactly(group, rows, dtype):
    x = whole(*rows, 3 * group, dtype=dtype)
    want = torch.from_numpy(oracle.rotate(oracle.array(x), group)).to(dtype)
    got = kernels.rotate(x, group)
    assert got.dtype == dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("group", GROUPS)
def test_error_is_within_the_bound(group, dtype):
    x = heavy(33, 2 * group, dtype=dtype)
    exact = oracle.array(x)
    want = oracle.rotate(exact, group)
    rounding = np.abs(want) * torch.finfo(dtype).eps / 2 * (dtype != torch.float32) + 2.0**-25
    error = np.abs(oracle.array(kernels.rotate(x, group)) - want)
    assert (error <= 1.01 * rounding + oracle.rotation_error(exact, group)).all()


@pytest.mark.parametrize("group", [16, 256])
def test_rows_beyond_one_chunk(group):
    """More elements than are handled at once, with a last part that is shorter."""
    x = whole(1100, 512)
    assert np.array_equal(oracle.array(kernels.rotate(x, group)), oracle.rotate(oracle.array(x), group))


@pytest.mark.parametrize("group", [0, 4, 64, 256])
def test_strides_do_not_matter(group, dtype):
    x = heavy(6, 256, dtype=dtype)
    want = kernels.rotate(x, group)
    for name, view in strided(x).items():
        got = kernels.rotate(view, group)
        assert torch.equal(got, want), name
        assert got.is_contiguous(), name


@given(
    rows=st.integers(1, 9), groups=st.integers(1, 4), group=st.sampled_from(GROUPS), seed=st.integers(0, 99)
)
def test_twice_is_the_identity(rows, groups, group, seed):
    x = heavy(rows, groups * group, seed=seed)
    back = kernels.rotate(kernels.rotate(x, group), group)
    error = np.abs(oracle.array(back) - oracle.array(x))
    assert (error <= 2.01 * oracle.rotation_error(oracle.array(x), group)).all()


def test_group_0_is_a_copy():
    x = heavy(3, 5)
    got = kernels.rotate(x, 0)
    assert torch.equal(got, x)
    assert got.data_ptr() != x.data_ptr()


def test_input_is_left_alone(dtype):
    x = heavy(3, 256, dtype=dtype)
    before = x.clone()
    kernels.rotate(x, 256)
    assert torch.equal(x, before)


def test_no_rows():
    assert kernels.rotate(torch.zeros(0, 64), 16).shape == (0, 64)


def test_nan_stays_in_its_row():
    x = heavy(4, 64)
    x[2, 5] = float("nan")
    got = kernels.rotate(x, 64)
    assert got[2].isnan().all()
    assert torch.equal(got[[0, 1, 3]], kernels.rotate(x[[0, 1, 3]], 64))


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference", "meta"]
)
def test_matrix_cached_under_a_mode_serves_outside_it(mode):
    kernels.hadamard.cache_clear()
    with mode():
        kernels.hadamard(64)
    x = torch.randn(2, 64, requires_grad=True)
    (x @ kernels.hadamard(64)).sum().backward()
    assert x.grad.shape == (2, 64)


@pytest.mark.parametrize(
    ("x", "group", "error", "match"),
    [
        (torch.zeros(2, 8), 8, ValueError, r"rotation must be 0 or one of \(4, 16, 64, 256, 1024\), not 8"),
        (torch.zeros(2, 8), -4, ValueError, "not -4"),
        (
            torch.zeros(2, 72),
            64,
            ValueError,
            r"64 does not divide 72 columns \(the largest group that does is 4\)",
        ),
        (torch.zeros(2, 7), 4, ValueError, r"4 does not divide 7 columns \(no group does\)"),
        (torch.zeros(2, 8, dtype=torch.float64), 4, TypeError, "x must be float32, .*not torch.float64"),
        (torch.zeros(2, 8, dtype=torch.int8), 4, TypeError, "not torch.int8"),
        (torch.zeros(()), 4, ValueError, r"last axis with at least one element, not shape \(\)"),
        (torch.zeros(2, 0), 4, ValueError, r"not shape \(2, 0\)"),
    ],
    ids=short,
)
def test_refusals(x, group, error, match):
    with pytest.raises(error, match=match):
        kernels.rotate(x, group)


def test_matrix_refuses_other_orders():
    with pytest.raises(ValueError, match="not 32"):
        kernels.hadamard(32)


@pytest.mark.parametrize(
    ("columns", "group"), [(4096, 256), (3072, 256), (192, 64), (48, 16), (20, 0), (7, 0)], ids=short
)
def test_largest_group(columns, group):
    assert kernels.largest_group(columns) == group


@pytest.mark.parametrize(
    ("shape", "group"), [((3, 64), 16), ((2, 3, 256), 256), ((8,), 4), ((2, 4), 0)], ids=short
)
def test_opcheck(shape, group):
    torch.library.opcheck(op, (heavy(*shape), group))
