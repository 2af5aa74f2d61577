"""A linear in two halves: quantize_activations, once, and the product of each weight that reads it."""

import pytest
import torch
from inputs import heavy, short

from convert_to_quant import kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")
ops = torch.ops.convert_to_quant


@pytest.mark.parametrize("activation", [None, "silu", "swiglu"])
@pytest.mark.parametrize("kind", ["rotated", "static", "blocks"])
def test_two_halves_are_the_linear(kind, activation, dtype):
    """The whole is proven against float64 in its own tests."""
    k = 128
    x = heavy(2, 9, k * kernels.activations.halves(activation), dtype=dtype)
    w, bias, rotation = heavy(33, k, seed=1), torch.randn(33), 16 if kind == "rotated" else 0
    static, block = torch.tensor(0.03) if kind == "static" else None, 32 if kind == "blocks" else 0
    if block:
        weight = kernels.quantize_blockwise(w, block, block)
    else:
        weight = kernels.quantize_rowwise(w, rotation)
    q, scale = kernels.quantize_activations(x, rotation, static, activation, block)
    assert (q.shape, scale.shape) == ((2, 9, k), (2, 9, k // block if block else 1))
    got = kernels.int8_linear_prequantized(q, scale, *weight, bias, dtype, "gelu")
    assert torch.equal(got, kernels.int8_linear(x, *weight, bias, rotation, static, None, activation, "gelu"))


@pytest.mark.parametrize("bits", [4, 6])
def test_two_halves_are_the_packed_linear(bits, dtype):
    x, rows, bias = heavy(2, 9, 192, dtype=dtype), torch.rand(40, 1), torch.randn(40)
    qweight = torch.randint(-128, 128, (40, 192 * bits // 8), dtype=torch.int8)
    groups = torch.randint(0, 125, (40, 12), dtype=torch.uint8)
    weight = qweight, bits, rows, groups, None, bias
    halves = kernels.quantize_activations(x, 64)
    got = kernels.packed_linear_prequantized(*halves, *weight, dtype, "silu")
    assert torch.equal(got, kernels.packed_linear(x, *weight, 64, None, "silu"))


X, Q, S = torch.zeros(2, 3, 32), torch.zeros(2, 3, 32, dtype=torch.int8), torch.ones(2, 3, 1)
W, ROWS = torch.zeros(8, 32, dtype=torch.int8), torch.ones(8, 1)


@pytest.mark.parametrize(
    ("op", "args", "error", "match"),
    [
        ("quantize_activations", (X.double(),), TypeError, "x must be float32"),
        ("quantize_activations", (X, 64), ValueError, "64 does not divide 32"),
        ("quantize_activations", (X, 0, torch.ones(2)), ValueError, "input_scale must have one element"),
        ("quantize_activations", (X, 0, None, "relu"), ValueError, "input activation must be"),
        ("quantize_activations", (X[..., :31], 0, None, "swiglu"), ValueError, "halves its input.* 31"),
        ("quantize_activations", (X, 0, None, None, 24), ValueError, "power of two"),
        ("quantize_activations", (X, 16, None, None, 16), ValueError, "no rotation"),
        ("int8_linear_prequantized", (X, S, W, ROWS), TypeError, "must be int8"),
        ("int8_linear_prequantized", (Q, S[:1], W, ROWS), ValueError, "a_scale must"),
        ("int8_linear_prequantized", (Q, S, W[:, :16], ROWS), ValueError, "in_features differ"),
        (
            "int8_linear_prequantized",
            (Q, S, W, ROWS, None, torch.float32, None, X[:1]),
            ValueError,
            "q .*from",
        ),
        ("packed_linear_prequantized", (X, S, W, 4, ROWS), TypeError, "q must be int8"),
        ("packed_linear_prequantized", (Q, S[0], W[:, :16], 4, ROWS), ValueError, "q_scale must have shape"),
        ("packed_linear_prequantized", (Q, S, W, 4, ROWS), ValueError, "in_features differ"),
    ],
    ids=short,
)
def test_refusals(op, args, error, match):
    with pytest.raises(error, match=match):
        getattr(kernels, op)(*args)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (ops.quantize_activations.default, (heavy(3, 5, 64), 16, None, "swiglu")),
        (ops.quantize_activations.default, (heavy(3, 5, 64), 0, None, None, 16)),
        (ops.int8_linear_prequantized.default, (Q, S, W, ROWS, None, torch.float16, "silu", X, 16)),
        (ops.packed_linear_prequantized.default, (Q, S, W[:, :16].contiguous(), 4, ROWS)),
    ],
    ids=["gated", "blocks", "linear", "packed"],
)
def test_opcheck(op, args):
    torch.library.opcheck(op, args)
