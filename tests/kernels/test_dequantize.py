"""dequantize: integers and scales of every granularity back to floats."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import GROUPS, heavy, int8, short, strided

from convert_to_quant import kernels
from convert_to_quant.kernels.scales import granularity

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.dequantize.default

# Shape of the integers, shape of the scale, block edges.
SCALES = (
    ((5, 123), (), (1, 1)),
    ((5, 123), (1,), (1, 1)),
    ((5, 123), (1, 1), (1, 1)),
    ((5, 123), (5, 1), (1, 1)),
    ((3, 5, 123), (3, 5, 1), (1, 1)),
    ((3, 5, 123), (), (1, 1)),
    ((77,), (1,), (1, 1)),
    ((256, 384), (2, 3), (128, 128)),
    ((123, 123), (1, 1), (128, 128)),
    ((129, 257), (2, 3), (128, 128)),
    ((300, 40), (19, 1), (16, 64)),
    ((5, 123), (5, 8), (1, 16)),
    ((7, 9), (7, 9), (1, 1)),
    ((1, 256), (1, 2), (128, 128)),
)


def scale_for(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.001


@pytest.mark.parametrize(("shape", "scale_shape", "edges"), SCALES, ids=short)
def test_against_float64(shape, scale_shape, edges, dtype):
    """One float32 product, rounded once: equal to the float64 product rounded through float32."""
    q, scale = int8(*shape), scale_for(scale_shape)
    s = oracle.spread(oracle.array(scale), shape, *edges)
    want = torch.from_numpy((oracle.array(q) * s).astype(np.float32)).to(dtype)
    got = kernels.dequantize(q, scale, dtype)
    assert got.dtype == dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("scale_shape", [(), (6, 1)], ids=short)
def test_rotated_against_float64(group, scale_shape, dtype):
    q, scale = int8(6, 2 * group), scale_for(scale_shape)
    floats = oracle.array(q) * oracle.array(scale)
    want = oracle.dequantize(oracle.array(q), oracle.array(scale), group)
    bound = oracle.rotation_error(floats, group) + np.abs(want) * torch.finfo(dtype).eps / 2 + 2.0**-25
    assert (np.abs(oracle.array(kernels.dequantize(q, scale, dtype, group)) - want) <= 1.01 * bound).all()


@pytest.mark.parametrize("group", GROUPS)
def test_rotation_with_a_scale_of_a_power_of_two_is_exact(group):
    q = int8(6, 2 * group)
    want = oracle.dequantize(oracle.array(q), np.array(0.25), group)
    assert np.array_equal(oracle.array(kernels.dequantize(q, torch.tensor(0.25), torch.float32, group)), want)


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("granule", ["tensor", "row"])
def test_rows_beyond_one_chunk(group, granule):
    q, scale = int8(1300, 512), 2.0 ** torch.randint(-9, 3, (1300, 1) if granule == "row" else ())
    want = oracle.dequantize(oracle.array(q), oracle.array(scale), group)
    assert np.array_equal(oracle.array(kernels.dequantize(q, scale, torch.float32, group)), want)


def test_block_rows_beyond_one_chunk():
    q, scale = int8(1300, 517), scale_for((11, 5))
    s = oracle.spread(oracle.array(scale), (1300, 517), 128, 128)
    want = (oracle.array(q) * s).astype(np.float32)
    assert np.array_equal(kernels.dequantize(q, scale).numpy(), want)


@pytest.mark.parametrize("rotation", [0, 16])
def test_strides_do_not_matter(rotation):
    q, scale = int8(6, 128), scale_for((6, 1))
    want = kernels.dequantize(q, scale, torch.float32, rotation)
    for name, view in strided(q).items():
        assert torch.equal(kernels.dequantize(view, scale, torch.float32, rotation), want), name
    assert torch.equal(kernels.dequantize(q, scale.expand(6, 3)[:, 1:2], torch.float32, rotation), want)


def test_inputs_are_left_alone():
    q, scale = int8(6, 64), scale_for((6, 1))
    kept = q.clone(), scale.clone()
    kernels.dequantize(q, scale, torch.float32, 64)
    assert torch.equal(q, kept[0])
    assert torch.equal(scale, kept[1])


def test_foreign_integers_of_minus_128():
    assert kernels.dequantize(torch.tensor([[-128]], dtype=torch.int8), torch.tensor(2.0)).item() == -256


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=short)
def test_no_rows(shape):
    assert kernels.dequantize(torch.zeros(shape, dtype=torch.int8), torch.ones(*shape[:-1], 1)).shape == shape


def test_overflow_of_float16_is_visible():
    assert kernels.dequantize(
        torch.tensor([[127]], dtype=torch.int8), torch.tensor(1000.0), torch.float16
    ).isinf()


@given(
    m=st.integers(1, 300),
    k=st.integers(1, 300),
    block_m=st.sampled_from([2**i for i in range(10)]),
    block_k=st.sampled_from([2**i for i in range(10)]),
)
def test_the_shape_of_a_scale_says_its_blocks(m, k, block_m, block_k):
    """No block size is stored beside a scale, so shapes alone must name the edges, one way only."""
    scale = torch.ones(-(-m // block_m), -(-k // block_k))
    edge_m, edge_k = granularity(m, k, scale)
    assert (edge_m == block_m) if scale.shape[0] > 1 else edge_m == m
    assert (edge_k == block_k) if scale.shape[1] > 1 else edge_k == k


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    group=st.sampled_from([4, 16, 64]),
    seed=st.integers(0, 99),
)
def test_undoes_the_rotation(rows, groups, group, seed):
    x = heavy(rows, groups * group, seed=seed)
    q, scale = kernels.quantize_rowwise(x, group)
    error = kernels.dequantize(q, scale, torch.float32, group) - x
    # A step of rounding is at most half a scale a rotated element, and rotation keeps the 2-norm.
    assert (error.norm(dim=-1, keepdim=True) <= 0.5001 * scale * (groups * group) ** 0.5).all()


@pytest.mark.parametrize(
    ("q", "scale", "options", "error", "match"),
    [
        (torch.zeros(2, 8), torch.ones(()), {}, TypeError, "q must be int8, not torch.float32"),
        (torch.zeros(2, 8, dtype=torch.uint8), torch.ones(()), {}, TypeError, "not torch.uint8"),
        (
            int8(2, 8),
            torch.ones(()),
            {"dtype": torch.float64},
            TypeError,
            "dtype must be .*not torch.float64",
        ),
        (int8(2, 8), torch.ones(()), {"dtype": torch.int8}, TypeError, "not torch.int8"),
        (int8(2, 8), torch.ones(()), {"rotation": 16}, ValueError, "does not divide 8 columns"),
        (
            int8(5, 8),
            torch.ones(4, 1),
            {},
            ValueError,
            r"scale of shape \(4, 1\) does not fit integers \[5, 8\]",
        ),
        (int8(5, 8), torch.ones(5, 3), {}, ValueError, r"\(5, 3\) does not fit .*power-of-two edges"),
        (int8(5, 8), torch.ones(0, 1), {}, ValueError, r"\(0, 1\) does not fit"),
        (int8(5, 8), torch.ones(5, 9), {}, ValueError, r"\(5, 9\) does not fit"),
        (int8(5, 8), torch.ones(5), {}, ValueError, r"\(5,\) does not fit"),
        (int8(8, 8), torch.ones(8), {}, ValueError, r"\(8,\) does not fit"),
        (int8(2, 4, 8), torch.ones(8, 1), {}, ValueError, r"\(8, 1\) does not fit"),
    ],
    ids=short,
)
def test_refusals(q, scale, options, error, match):
    with pytest.raises(error, match=match):
        kernels.dequantize(q, scale, **options)


@pytest.mark.parametrize(
    ("shape", "scale", "dtype", "rotation"),
    [
        ((5, 123), (), torch.float32, 0),
        ((5, 64), (5, 1), torch.bfloat16, 16),
        ((33, 65), (2, 3), torch.float16, 0),
        ((2, 3, 16), (2, 3, 1), torch.float32, 4),
    ],
    ids=short,
)
def test_opcheck(shape, scale, dtype, rotation):
    torch.library.opcheck(op, (int8(*shape), scale_for(scale), dtype, rotation))
