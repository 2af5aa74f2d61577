"""quantize_blockwise: one scale a block of rows and columns."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import heavy, short, strided

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.quantize_blockwise.default

CASES = (
    ((256, 384), 128, 128),
    ((123, 123), 128, 128),
    ((129, 257), 128, 128),
    ((5, 123), 4, 16),
    ((33, 65), 32, 64),
    ((7, 9), 1, 1),
    ((1, 1), 128, 128),
    ((300, 40), 16, 512),
)


@pytest.mark.parametrize(("shape", "block_m", "block_k"), CASES, ids=short)
def test_weights_against_float64(shape, block_m, block_k, dtype):
    x = heavy(*shape, dtype=dtype)
    q, scale = kernels.quantize_blockwise(x, block_m, block_k)
    exact = oracle.array(x)
    want = oracle.block_scale(exact, block_m, block_k)
    assert (q.dtype, q.shape, scale.dtype) == (torch.int8, x.shape, torch.float32)
    assert np.array_equal(oracle.array(scale), want)
    s = oracle.spread(want, shape, block_m, block_k)
    assert oracle.count(oracle.array(q), exact / s).mismatches == 0
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(exact, s))


@pytest.mark.parametrize("shape", [(5, 123), (3, 5, 256), (2, 3, 4, 130), (77,), (128,)], ids=short)
def test_activations_against_float64(shape, dtype):
    x = heavy(*shape, dtype=dtype)
    q, scale = kernels.quantize_blockwise(x, 1, 128)
    assert scale.shape == (*shape[:-1], -(-shape[-1] // 128))
    exact = oracle.array(x).reshape(-1, shape[-1])
    want = oracle.block_scale(exact, 1, 128)
    assert np.array_equal(oracle.array(scale).reshape(want.shape), want)
    s = oracle.spread(want, exact.shape, 1, 128)
    assert np.array_equal(oracle.array(q).reshape(exact.shape), oracle.integers_in_float32(exact, s))


@pytest.mark.parametrize(("block_m", "block_k"), [(128, 128), (1, 128), (512, 64)], ids=short)
def test_rows_beyond_one_chunk(block_m, block_k):
    x = heavy(1300, 517)
    q, scale = kernels.quantize_blockwise(x, block_m, block_k)
    want = oracle.block_scale(oracle.array(x), block_m, block_k)
    assert np.array_equal(oracle.array(scale), want)
    s = oracle.spread(want, x.shape, block_m, block_k)
    assert np.array_equal(oracle.array(q), oracle.integers_in_float32(oracle.array(x), s))


@pytest.mark.parametrize(("block_m", "block_k"), [(128, 128), (1, 128), (4, 16)], ids=short)
def test_strides_do_not_matter(block_m, block_k, dtype):
    x = heavy(6, 130, dtype=dtype)
    q, scale = kernels.quantize_blockwise(x, block_m, block_k)
    for name, view in strided(x).items():
        got = kernels.quantize_blockwise(view, block_m, block_k)
        assert torch.equal(got[0], q), name
        assert torch.equal(got[1], scale), name


@pytest.mark.parametrize("contiguous", [True, False])
def test_input_is_left_alone(contiguous):
    """The integers are computed in place in a work buffer, which must never be x."""
    x = heavy(8, 32) if contiguous else heavy(32, 8).t()
    before = x.clone()
    kernels.quantize_blockwise(x, 4, 16)
    assert torch.equal(x, before)


def test_zero_and_non_finite_blocks_keep_to_themselves(dtype):
    x = heavy(8, 12, dtype=dtype)
    clean, clean_scale = kernels.quantize_blockwise(x, 4, 4)
    x[:4, :4] = 0
    x[5, 5], x[6, 9] = float("nan"), float("-inf")
    q, scale = kernels.quantize_blockwise(x, 4, 4)
    assert scale[0, 0] == 1e-30
    assert not q[:4, :4].any()
    assert scale.isfinite().tolist() == [[True, True, True], [True, False, False]]
    assert torch.equal(scale[0, 1:], clean_scale[0, 1:])
    assert torch.equal(q[:4, 4:], clean[:4, 4:])
    assert torch.equal(q[4:, :4], clean[4:, :4])


def test_ragged_edge_uses_its_own_peak():
    x = torch.tensor([[1.0, 1.0, 100.0]])
    q, scale = kernels.quantize_blockwise(x, 128, 2)
    assert q.tolist() == [[127, 127, 127]]
    assert scale.shape == (1, 2)


@pytest.mark.parametrize(("shape", "want"), [((0, 8), (0, 2)), ((2, 0, 8), (2, 0, 2))], ids=short)
def test_no_rows(shape, want):
    q, scale = kernels.quantize_blockwise(torch.zeros(shape), 1, 4)
    assert q.shape == shape
    assert scale.shape == want


@given(
    m=st.integers(1, 40),
    k=st.integers(1, 40),
    block_m=st.sampled_from([1, 2, 8, 32]),
    block_k=st.sampled_from([1, 4, 16, 64]),
    seed=st.integers(0, 999),
)
def test_round_trip_and_again(m, k, block_m, block_k, seed):
    x = heavy(m, k, seed=seed)
    q, scale = kernels.quantize_blockwise(x, block_m, block_k)
    step = torch.from_numpy(oracle.spread(oracle.array(scale), (m, k), block_m, block_k).copy())
    back = kernels.dequantize(q, scale)
    assert ((back.double() - x.double()).abs() <= step * (0.5 + 2 * oracle.TIE)).all()
    again, scale2 = kernels.quantize_blockwise(back, block_m, block_k)
    assert torch.equal(again, q)
    torch.testing.assert_close(scale2, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((torch.zeros(2, 8, dtype=torch.float64), 1, 4), TypeError, "x must be float32"),
        ((torch.zeros(2, 0), 1, 4), ValueError, r"not shape \(2, 0\)"),
        ((torch.zeros(2, 8), 3, 4), ValueError, "block_m must be a power of two, not 3"),
        ((torch.zeros(2, 8), 1, 0), ValueError, "block_k must be a power of two, not 0"),
        ((torch.zeros(2, 8), -2, 4), ValueError, "block_m must be a power of two, not -2"),
        ((torch.zeros(2, 3, 8), 2, 4), ValueError, r"blocks of 2 rows need a 2-D x, not shape \(2, 3, 8\)"),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.quantize_blockwise(*args)


@pytest.mark.parametrize(
    ("shape", "block_m", "block_k"),
    [((5, 123), 4, 16), ((2, 3, 64), 1, 16), ((7,), 1, 128), ((4, 16), 4, 4)],
    ids=short,
)
def test_opcheck(shape, block_m, block_k):
    torch.library.opcheck(op, (heavy(*shape), block_m, block_k))
