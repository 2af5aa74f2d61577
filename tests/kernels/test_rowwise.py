"""quantize_rowwise: one scale a row, with the rotation in the same pass."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import GROUPS, SHAPES, heavy, short, strided, whole

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.quantize_rowwise.default


def check(x: torch.Tensor, rotation: int, q: torch.Tensor, scale: torch.Tensor) -> None:
    """Scales within float32 of the reference, integers equal to it outside ties, ties few."""
    exact = oracle.array(x)
    y, slack = oracle.rotate(exact, rotation), oracle.rotation_error(exact, rotation)
    s = oracle.array(scale)
    want = oracle.row_scale(y)
    assert (np.abs(s - want) <= slack.max(-1, keepdims=True) / 127 + oracle.U * want * (rotation > 0)).all()
    band = oracle.TIE + slack / s
    counts = oracle.count(oracle.array(q), y / s, band)
    assert counts.mismatches == 0, counts
    assert counts.ties <= 2 + band.mean() * counts.elements, counts


@pytest.mark.parametrize("shape", SHAPES, ids=short)
def test_against_float64(shape, dtype):
    x = heavy(*shape, dtype=dtype)
    q, scale = kernels.quantize_rowwise(x)
    assert (q.dtype, q.shape) == (torch.int8, x.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (*shape[:-1], 1))
    check(x, 0, q, scale)


@pytest.mark.parametrize("shape", SHAPES, ids=short)
def test_by_the_letter(shape, dtype):
    """round(x * (1 / scale)) in float32 leaves no freedom: equal everywhere, ties too."""
    x = heavy(*shape, dtype=dtype, seed=1)
    q, scale = kernels.quantize_rowwise(x)
    assert np.array_equal(oracle.array(scale), oracle.row_scale(oracle.array(x)))
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(oracle.array(x), oracle.array(scale)))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [(5,), (2, 3), ()], ids=short)
def test_rotated_against_float64(group, rows, dtype):
    x = heavy(*rows, 2 * group, dtype=dtype)
    check(x, group, *kernels.quantize_rowwise(x, group))


@pytest.mark.parametrize("group", GROUPS)
def test_rotated_whole_numbers_by_the_letter(group, dtype):
    x = whole(7, 3 * group, dtype=dtype)
    y = oracle.rotate(oracle.array(x), group)
    q, scale = kernels.quantize_rowwise(x, group)
    assert np.array_equal(oracle.array(scale), oracle.row_scale(y))
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(y, oracle.row_scale(y)))


def test_rounds_half_to_even():
    halves = torch.arange(-127, 127) + 0.5
    x = torch.cat([halves, torch.tensor([127.0])])
    q, scale = kernels.quantize_rowwise(x)
    assert scale.item() == 1
    assert q[:-1].tolist() == [round(v) for v in halves.tolist()]


@pytest.mark.parametrize("rotation", [0, 64])
def test_rows_beyond_one_chunk(rotation):
    x = heavy(1100, 512)
    check(x, rotation, *kernels.quantize_rowwise(x, rotation))


@pytest.mark.parametrize("rotation", [0, 16])
def test_rows_are_independent(rotation):
    x = heavy(9, 128)
    q, scale = kernels.quantize_rowwise(x, rotation)
    for i in range(9):
        qi, si = kernels.quantize_rowwise(x[i], rotation)
        assert torch.equal(q[i], qi)
        assert torch.equal(scale[i], si)


@pytest.mark.parametrize("rotation", [0, 64])
def test_strides_do_not_matter(rotation, dtype):
    x = heavy(6, 128, dtype=dtype)
    q, scale = kernels.quantize_rowwise(x, rotation)
    for name, view in strided(x).items():
        got = kernels.quantize_rowwise(view, rotation)
        assert torch.equal(got[0], q), name
        assert torch.equal(got[1], scale), name


@pytest.mark.parametrize("static", [(), (1,), (1, 1), (5, 1)], ids=short)
@pytest.mark.parametrize("rotation", [0, 16])
def test_given_scale_saturates(static, rotation, dtype):
    x = heavy(5, 48, dtype=dtype)
    given_scale = torch.full(static, 0.01) + torch.rand(static) * 0.01
    q, scale = kernels.quantize_rowwise(x, rotation, given_scale)
    assert torch.equal(scale, given_scale.expand(5, 1))
    exact = oracle.array(x)
    y, s = oracle.rotate(exact, rotation), oracle.array(scale)
    counts = oracle.count(oracle.array(q), y / s, oracle.TIE + oracle.rotation_error(exact, rotation) / s)
    assert counts.mismatches == 0
    assert q.abs().max() == 127, "the test must reach saturation"
    assert q.min() >= -127


def test_given_scale_is_not_aliased():
    given_scale = torch.ones(3, 1)
    _, scale = kernels.quantize_rowwise(heavy(3, 8), 0, given_scale)
    scale.zero_()
    assert given_scale.sum() == 3


@pytest.mark.parametrize("shape", [(8,), (3, 8)], ids=short)
def test_given_scale_of_one_element_and_more_axes_than_x(shape):
    _, scale = kernels.quantize_rowwise(heavy(*shape), 0, torch.full((1, 1), 0.5))
    assert torch.equal(scale, torch.full((*shape[:-1], 1), 0.5))


@pytest.mark.parametrize("rotation", [0, 16])
def test_zero_rows(rotation, dtype):
    x = heavy(4, 16, dtype=dtype)
    x[1] = 0
    x[2] = -0.0
    q, scale = kernels.quantize_rowwise(x, rotation)
    assert not q[1:3].any()
    assert (scale[1:3] == 1e-30).all()
    assert (q[[0, 3]] != 0).any()


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-30, 1e-28, 3e-28, 1e-20, 1e20, 1e38, 3.4e38])
def test_subnormal_and_huge(size):
    x = torch.linspace(-1, 1, 31).double().mul(size).float()[None]
    q, scale = kernels.quantize_rowwise(x)
    assert scale.isfinite().all()
    assert scale.item() >= float(np.float32(1e-30))
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(oracle.array(x), oracle.array(scale)))
    if size > 3e-28:
        assert q[0, [0, -1]].tolist() == [-127, 127]


def test_float16_subnormals():
    x = torch.arange(1, 12).mul(2.0**-24).half()[None]
    q, _scale = kernels.quantize_rowwise(x)
    assert q[0].tolist() == [round(127 * i / 11) for i in range(1, 12)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rotation", [0, 4])
def test_nan_and_inf_show_in_the_scale_of_their_row_alone(bad, rotation, dtype):
    x = heavy(5, 12, dtype=dtype)
    clean, clean_scale = kernels.quantize_rowwise(x, rotation)
    x[3, 7] = bad
    q, scale = kernels.quantize_rowwise(x, rotation)
    assert not scale[3].isfinite()
    others = [0, 1, 2, 4]
    assert torch.equal(scale[others], clean_scale[others])
    assert torch.equal(q[others], clean[others])


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=short)
def test_no_rows(shape):
    q, scale = kernels.quantize_rowwise(torch.zeros(shape), 4)
    assert q.shape == shape
    assert scale.shape == (*shape[:-1], 1)


@given(
    rows=st.integers(1, 6), columns=st.integers(1, 70), power=st.integers(-80, 100), seed=st.integers(0, 999)
)
def test_round_trip_error_is_half_a_step(rows, columns, power, seed):
    x = heavy(rows, columns, seed=seed) * 2.0**power
    q, scale = kernels.quantize_rowwise(x)
    error = np.abs(oracle.array(q) * oracle.array(scale) - oracle.array(x))
    assert (error <= oracle.array(scale) * (0.5 + oracle.TIE)).all()


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 20),
    rotation=st.sampled_from([0, 4, 16]),
    seed=st.integers(0, 999),
)
def test_dequantized_quantizes_to_the_same_integers(rows, columns, rotation, seed):
    x = heavy(rows, columns * max(rotation, 1), seed=seed)
    q, scale = kernels.quantize_rowwise(x, rotation)
    again, scale2 = kernels.quantize_rowwise(kernels.dequantize(q, scale, torch.float32, rotation), rotation)
    assert torch.equal(again, q)
    torch.testing.assert_close(scale2, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((torch.zeros(2, 8, dtype=torch.float64),), TypeError, "x must be float32, float16 or bfloat16"),
        ((torch.zeros(2, 8, dtype=torch.int32),), TypeError, "not torch.int32"),
        ((torch.zeros(()),), ValueError, "last axis"),
        ((torch.zeros(2, 0),), ValueError, r"not shape \(2, 0\)"),
        ((torch.zeros(2, 8), 16), ValueError, "16 does not divide 8 columns .*is 4"),
        ((torch.zeros(2, 8), 5), ValueError, "rotation must be 0 or one of"),
        ((torch.zeros(2, 8), 0, torch.ones(2)), ValueError, r"one element or shape \(2, 1\), not \(2,\)"),
        ((torch.zeros(2, 8), 0, torch.ones(1, 8)), ValueError, r"not \(1, 8\)"),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.quantize_rowwise(*args)


@pytest.mark.parametrize(
    ("shape", "rotation", "scale"),
    [((5, 123), 0, None), ((2, 3, 64), 16, None), ((7,), 0, (1,)), ((4, 16), 4, (4, 1))],
    ids=short,
)
def test_opcheck(shape, rotation, scale):
    torch.library.opcheck(op, (heavy(*shape), rotation, None if scale is None else torch.rand(scale) + 0.1))
