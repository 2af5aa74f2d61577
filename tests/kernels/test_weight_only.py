"""int8_weight_only_linear (W8A16): float activations times int8 weights."""

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from inputs import GROUPS, heavy, int8, short, strided, whole

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.int8_weight_only_linear.default


def scale_of(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.001


def check(got, x, q, spread_scale, bias, rotation):
    """At most twice the error of the plain float32 linear on dequantized weights, plus one rounding."""
    weight = oracle.array(q) * spread_scale
    want = oracle.rotate(oracle.array(x), rotation) @ weight.T + oracle.array(bias)
    rotated = torch.from_numpy(oracle.rotate(oracle.array(x), rotation)).float()
    plain = F.linear(rotated, torch.from_numpy(weight).float(), bias)
    allowed = 2 * np.abs(oracle.array(plain) - want).max() + np.abs(want) * torch.finfo(got.dtype).eps / 2
    # Rotating x in float32 moves the result by at most the bound on x times the weight.
    moved = oracle.rotation_error(oracle.array(x), rotation) @ np.abs(weight).T
    assert (np.abs(oracle.array(got) - want) <= allowed + moved + 2.0**-25).all()


@pytest.mark.parametrize("granule", ["row", "tensor"])
@pytest.mark.parametrize("group", [0, *GROUPS])
@pytest.mark.parametrize("rows", [(1,), (2, 3), ()], ids=short)
def test_against_float64(rows, group, granule, dtype):
    k = 2 * group or 123
    x, q, bias = heavy(*rows, k, dtype=dtype), int8(33, k), torch.randn(33)
    scale = scale_of(33, 1) if granule == "row" else scale_of()
    got = kernels.int8_weight_only_linear(x, q, scale, bias, group)
    assert (got.shape, got.dtype) == ((*rows, 33), dtype)
    check(got, x, q, oracle.array(scale), bias, group)


@pytest.mark.parametrize(
    ("n", "k", "block"),
    [(77, 123, 16), (256, 256, 128), (129, 300, 128), (1000, 1030, 128), (1300, 1030, 512)],
    ids=short,
)
def test_block_wise_against_float64(n, k, block, dtype):
    x, q, bias = heavy(3, k, dtype=dtype), int8(n, k), torch.randn(n)
    scale = scale_of(-(-n // block), -(-k // block))
    got = kernels.int8_weight_only_linear(x, q, scale, bias)
    check(got, x, q, oracle.spread(oracle.array(scale), (n, k), block, block), bias, 0)


@pytest.mark.parametrize("scale", [(1000, 1), (), (1, 1)], ids=short)
def test_weights_beyond_one_chunk(scale):
    """A power-of-two scale and whole numbers make every sum exact."""
    x, q = whole(2, 1024), int8(1000, 1024)
    s = 2.0 ** torch.randint(-4, 1, scale)
    want = oracle.rotate(oracle.array(x), 64) @ (oracle.array(q) * oracle.array(s)).T
    assert np.array_equal(oracle.array(kernels.int8_weight_only_linear(x, q, s, None, 64)), want)


def test_agrees_with_the_unrotated_weight():
    x, w = torch.randn(3, 256), heavy(40, 256, seed=1)
    q, scale = kernels.quantize_rowwise(w, 256)
    dense = kernels.dequantize(q, scale, torch.float32, 256)
    got = kernels.int8_weight_only_linear(x, q, scale, None, 256)
    torch.testing.assert_close(got, F.linear(x, dense), rtol=1e-5, atol=2e-4)


def test_strides_do_not_matter(dtype):
    x, q, scale = heavy(6, 64, dtype=dtype), int8(33, 64), scale_of(33, 1)
    want = kernels.int8_weight_only_linear(x, q, scale, None, 16)
    for name, view in strided(x).items():
        assert torch.equal(kernels.int8_weight_only_linear(view, q, scale, None, 16), want), name
    for name, view in strided(q).items():
        assert torch.equal(kernels.int8_weight_only_linear(x, view, scale, None, 16), want), name


@pytest.mark.parametrize("rows", [(0,), (2, 0)], ids=short)
@pytest.mark.parametrize("scale", [(), (4, 1), (1, 2)], ids=short)
def test_no_rows(rows, scale):
    assert kernels.int8_weight_only_linear(torch.zeros(*rows, 8), int8(4, 8), torch.ones(scale)).shape == (
        *rows,
        4,
    )


X, Q = torch.zeros(5, 16), int8(4, 16)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((X.double(), Q, torch.ones(())), TypeError, "x must be float32"),
        ((X, Q.float(), torch.ones(())), TypeError, "qweight must be int8"),
        ((X[:, :8], Q, torch.ones(())), ValueError, "in_features differ: x has 8"),
        ((X, Q, torch.ones(4)), ValueError, r"scale of shape \(4,\) does not fit"),
        ((X, Q, torch.ones(()), torch.zeros(3)), ValueError, r"bias must have shape \(4,\)"),
        ((X, Q, torch.ones(()), None, 64), ValueError, "does not divide 16"),
        ((X, Q, torch.ones(1, 2), None, 16), ValueError, "block-wise weights have no rotation"),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.int8_weight_only_linear(*args)


@pytest.mark.parametrize(
    ("rows", "scale", "bias", "rotation"),
    [((5,), (7, 1), True, 16), ((2, 3), (), False, 0), ((1,), (1, 2), True, 0)],
    ids=short,
)
def test_opcheck(rows, scale, bias, rotation):
    args = heavy(*rows, 16), int8(7, 16), torch.rand(scale) + 0.1, torch.randn(7) if bias else None, rotation
    torch.library.opcheck(op, args)
