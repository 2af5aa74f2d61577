"""quantize_tensorwise: one scale for all."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import GROUPS, SHAPES, heavy, short, strided, whole

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.quantize_tensorwise.default


@pytest.mark.parametrize("shape", SHAPES, ids=short)
def test_against_float64(shape, dtype):
    x = heavy(*shape, dtype=dtype)
    q, scale = kernels.quantize_tensorwise(x)
    assert (q.dtype, q.shape, scale.dtype, scale.shape) == (torch.int8, x.shape, torch.float32, ())
    exact, s = oracle.array(x), oracle.array(scale)
    assert s == oracle.tensor_scale(exact)
    assert oracle.count(oracle.array(q), exact / s).mismatches == 0
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(exact, s))


@pytest.mark.parametrize("group", GROUPS)
def test_rotated_against_float64(group, dtype):
    x = heavy(9, 2 * group, dtype=dtype)
    q, scale = kernels.quantize_tensorwise(x, rotation=group)
    exact, s = oracle.array(x), oracle.array(scale)
    y, slack = oracle.rotate(exact, group), oracle.rotation_error(exact, group)
    assert abs(s - oracle.tensor_scale(y)) <= slack.max() / 127 + oracle.U * s
    assert oracle.count(oracle.array(q), y / s, oracle.TIE + slack / s).mismatches == 0


@pytest.mark.parametrize("group", [0, 16, 256])
def test_whole_numbers_by_the_letter_over_several_chunks(group):
    x = whole(1100, 512)
    x[1099, 3] = 300  # the largest element stands in the last part
    y = oracle.rotate(oracle.array(x), group)
    q, scale = kernels.quantize_tensorwise(x, rotation=group)
    assert oracle.array(scale) == oracle.tensor_scale(y)
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(y, oracle.tensor_scale(y)))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=short)
def test_given_scale_saturates(shape, dtype):
    x = heavy(5, 48, dtype=dtype)
    given_scale = torch.full(shape, 0.015)
    q, scale = kernels.quantize_tensorwise(x, given_scale)
    assert scale.shape == ()
    assert scale == 0.015
    assert scale.data_ptr() != given_scale.data_ptr()
    s = oracle.array(scale)
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(oracle.array(x), s))
    assert q.abs().max() == 127


def test_strides_do_not_matter(dtype):
    x = heavy(6, 128, dtype=dtype)
    q, scale = kernels.quantize_tensorwise(x, rotation=64)
    for name, view in strided(x).items():
        got = kernels.quantize_tensorwise(view, rotation=64)
        assert torch.equal(got[0], q), name
        assert torch.equal(got[1], scale), name


@pytest.mark.parametrize("shape", [(3, 8), (0, 8)], ids=["zeros", "no rows"])
def test_nothing_to_scale(shape, dtype):
    q, scale = kernels.quantize_tensorwise(torch.zeros(shape, dtype=dtype))
    assert q.shape == shape
    assert not q.any()
    assert scale == 1e-30


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 1099])
def test_nan_and_inf_show_in_the_scale(bad, row, dtype):
    x = heavy(1100, 512, dtype=dtype)
    x[row, 7] = bad
    assert not kernels.quantize_tensorwise(x)[1].isfinite()


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_round_trip_and_again(shape, seed):
    x = heavy(*shape, seed=seed)
    q, scale = kernels.quantize_tensorwise(x)
    back = kernels.dequantize(q, scale)
    assert ((back - x).abs() <= scale * (0.5 + 2 * oracle.TIE)).all()
    again, scale2 = kernels.quantize_tensorwise(back)
    assert torch.equal(again, q)
    torch.testing.assert_close(scale2, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        (torch.zeros(2, 8, dtype=torch.float64), {}, TypeError, "x must be float32"),
        (torch.zeros(()), {}, ValueError, "last axis"),
        (torch.zeros(2, 8), {"rotation": 16}, ValueError, "does not divide 8 columns"),
        (torch.zeros(2, 8), {"scale": torch.ones(2, 1)}, ValueError, r"one element, not shape \(2, 1\)"),
    ],
    ids=short,
)
def test_refusals(x, options, error, match):
    with pytest.raises(error, match=match):
        kernels.quantize_tensorwise(x, **options)


@pytest.mark.parametrize(
    ("shape", "scale", "rotation"),
    [((5, 123), None, 0), ((2, 3, 64), None, 16), ((4, 7), (), 0), ((4, 16), (1, 1), 4)],
    ids=short,
)
def test_opcheck(shape, scale, rotation):
    torch.library.opcheck(op, (heavy(*shape), None if scale is None else torch.rand(scale) + 0.1, rotation))
