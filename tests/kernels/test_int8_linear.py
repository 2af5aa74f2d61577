"""int8_linear (W8A8): quantized activations times quantized weights."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from inputs import GROUPS, heavy, int8, short, strided, whole

from convert_to_quant import kernels
from convert_to_quant.kernels import activations

pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.int8_linear.default


def sqnr(got: torch.Tensor, want: torch.Tensor) -> float:
    error = (got.double() - want.double()).square().sum()
    return float(10 * torch.log10(want.double().square().sum() / error))


@pytest.mark.parametrize("granule", ["row", "tensor"])
@pytest.mark.parametrize("group", [0, *GROUPS])
@pytest.mark.parametrize("rows", [(5,), (2, 3), ()], ids=short)
def test_is_quantize_then_multiply(rows, group, granule, dtype):
    """The parts are proven against float64 in their own tests; the whole is the parts, bit for bit."""
    k = 2 * group or 123
    x, w, bias = heavy(*rows, k, dtype=dtype), heavy(33, k, seed=1), torch.randn(33)
    quantize = kernels.quantize_rowwise if granule == "row" else kernels.quantize_tensorwise
    q, scale = quantize(w, rotation=group)
    got = kernels.int8_linear(x, q, scale, bias, group)
    assert (got.shape, got.dtype) == ((*rows, 33), dtype)
    a, a_scale = kernels.quantize_rowwise(x, group)
    assert torch.equal(got, kernels.int8_mm(a, q, a_scale, scale, bias, dtype))


@pytest.mark.parametrize(
    ("n", "k", "block"), [(77, 123, 16), (256, 256, 128), (129, 300, 128), (100, 100, 128)], ids=short
)
@pytest.mark.parametrize("rows", [(5,), (2, 3)], ids=short)
def test_block_wise_is_quantize_then_multiply(rows, n, k, block, dtype):
    x, w, bias = heavy(*rows, k, dtype=dtype), heavy(n, k, seed=1), torch.randn(n)
    q, scale = kernels.quantize_blockwise(w, block, block)
    a, a_scale = kernels.quantize_blockwise(x, 1, block)
    got = kernels.int8_linear(x, q, scale, bias)
    assert torch.equal(got, kernels.int8_mm(a, q, a_scale, scale, bias, dtype))


@pytest.mark.parametrize("group", [0, *GROUPS])
def test_exact_where_quantization_is(group):
    """Whole numbers whose absmax, rotated, is 127 lose nothing: the float64 product comes out exactly."""
    k = 2 * group or 96
    x, w = whole(6, k), whole(8, k, seed=1)
    x[:, 0], w[:, 0] = 127, -127
    if group:
        x, w = kernels.rotate(x, group), kernels.rotate(w, group)
    want = oracle.array(x) @ oracle.array(w).T
    q, scale = kernels.quantize_rowwise(w, group)
    assert torch.equal(scale, torch.ones(8, 1))
    assert (oracle.array(kernels.int8_linear(x, q, scale, rotation=group)) == want).all()


@pytest.mark.parametrize(
    ("layout", "floor"), [("row", 31), ("rotated", 39), ("tensor", 26), ("block", 27)], ids=short
)
def test_quality_against_the_float_linear(layout, floor):
    """Floors are one dB below what is measured; a swapped scale or a forgotten rotation gives about -3 dB."""
    x, w, bias = torch.randn(64, 512), heavy(200, 512, seed=1) + torch.randn(200, 512), torch.randn(200)
    rotation = 256 if layout == "rotated" else 0
    if layout == "block":
        q, scale = kernels.quantize_blockwise(w, 128, 128)
    elif layout == "tensor":
        q, scale = kernels.quantize_tensorwise(w)
    else:
        q, scale = kernels.quantize_rowwise(w, rotation)
    assert sqnr(kernels.int8_linear(x, q, scale, bias, rotation), F.linear(x, w, bias)) > floor


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=short)
def test_static_input_scale(group, shape, dtype):
    x, (q, scale) = heavy(5, 64, dtype=dtype), kernels.quantize_rowwise(heavy(33, 64, seed=1), group)
    static = torch.full(shape, 0.02)
    a, a_scale = kernels.quantize_rowwise(x, group, static)
    want = kernels.int8_mm(a, q, a_scale, scale, None, dtype)
    assert torch.equal(kernels.int8_linear(x, q, scale, None, group, static), want)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=short)
def test_out_dtype(out_dtype, dtype):
    x, (q, scale) = heavy(5, 64, dtype=dtype), kernels.quantize_rowwise(heavy(33, 64, seed=1))
    got = kernels.int8_linear(x, q, scale, out_dtype=out_dtype)
    assert got.dtype == out_dtype
    assert torch.equal(got, kernels.int8_linear(x.float(), q, scale).to(out_dtype))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("granule", ["row", "block"])
def test_input_activation_is_rounded_as_an_unfused_model_rounds_it(name, granule, dtype):
    x, w = heavy(5, 64, dtype=dtype), heavy(33, 64, seed=1)
    q, scale = kernels.quantize_rowwise(w) if granule == "row" else kernels.quantize_blockwise(w, 16, 16)
    function = {"gelu": F.gelu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "silu": F.silu}[name]
    got = kernels.int8_linear(x, q, scale, input_activation=name)
    assert torch.equal(got, kernels.int8_linear(function(x), q, scale))


@pytest.mark.parametrize("granule", ["row", "block"])
def test_a_gated_input_activation_halves_the_columns(granule, dtype):
    x, w = heavy(2, 5, 128, dtype=dtype), heavy(33, 64, seed=1)
    q, scale = kernels.quantize_rowwise(w) if granule == "row" else kernels.quantize_blockwise(w, 16, 16)
    gate, up = x.float()[..., :64], x.float()[..., 64:]
    got = kernels.int8_linear(x, q, scale, input_activation="swiglu")
    assert got.shape == (2, 5, 33)
    assert torch.equal(got, kernels.int8_linear((F.silu(gate) * up).to(dtype), q, scale))


def test_output_activation():
    x, (q, scale) = heavy(5, 64), kernels.quantize_rowwise(heavy(33, 64, seed=1))
    got = kernels.int8_linear(x, q, scale, output_activation="silu")
    assert torch.equal(got, F.silu(kernels.int8_linear(x, q, scale)))


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=short)
def test_bias_of_another_dtype(bias_dtype, dtype):
    x, (q, scale) = heavy(5, 64, dtype=dtype), kernels.quantize_rowwise(heavy(33, 64, seed=1))
    bias = torch.randn(33).to(bias_dtype)
    assert torch.equal(kernels.int8_linear(x, q, scale, bias), kernels.int8_linear(x, q, scale, bias.float()))


def test_strides_do_not_matter(dtype):
    x, (q, scale) = heavy(6, 64, dtype=dtype), kernels.quantize_rowwise(heavy(33, 64, seed=1), 16)
    want = kernels.int8_linear(x, q, scale, None, 16)
    for name, view in strided(x).items():
        assert torch.equal(kernels.int8_linear(view, q, scale, None, 16), want), name
    for name, view in strided(q).items():
        assert torch.equal(kernels.int8_linear(x, view, scale, None, 16), want), name


@pytest.mark.parametrize("rows", [(0,), (2, 0)], ids=short)
@pytest.mark.parametrize("scale", [(), (4, 1), (1, 2)], ids=short)
def test_no_rows(rows, scale):
    assert kernels.int8_linear(torch.zeros(*rows, 8), int8(4, 8), torch.ones(scale)).shape == (*rows, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_token_is_visible_and_keeps_to_itself(bad):
    x, (q, scale) = heavy(5, 64), kernels.quantize_rowwise(heavy(33, 64, seed=1))
    clean = kernels.int8_linear(x, q, scale)
    x[2, 3] = bad
    got = kernels.int8_linear(x, q, scale)
    assert not got[2].isfinite().any()
    assert torch.equal(got[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


X, Q = torch.zeros(5, 16), int8(4, 16)
ROW, BLOCK = torch.ones(4, 1), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((X.double(), Q, ROW), TypeError, "x must be float32, float16 or bfloat16, not torch.float64"),
        ((X, Q.float(), ROW), TypeError, "qweight must be int8"),
        ((X, Q[0], ROW), ValueError, "qweight must be 2-D"),
        ((X[:, :8], Q, ROW), ValueError, "in_features differ: x has 8 columns, qweight has 16"),
        ((X, Q, ROW, torch.zeros(4, 1)), ValueError, r"bias must have shape \(4,\), not \(4, 1\)"),
        ((X, Q, torch.ones(4)), ValueError, r"scale of shape \(4,\) does not fit"),
        ((X, Q, torch.ones(1, 4, 1)), ValueError, r"scale of shape \(1, 4, 1\) does not fit"),
        (
            (X, Q, ROW, None, 64),
            ValueError,
            r"64 does not divide 16 columns \(the largest group that does is 16\)",
        ),
        ((X, Q, ROW, None, 0, torch.ones(2)), ValueError, r"scale must have one element .*not \(2,\)"),
        ((X, Q, BLOCK, None, 16), ValueError, "block-wise weights have no rotation"),
        (
            (X, Q, BLOCK, None, 0, torch.ones(())),
            ValueError,
            "block-wise weights take dynamic activation blocks",
        ),
        ((X, Q, ROW, None, 0, None, None, "relu"), ValueError, "gelu, gelu_tanh, silu, swiglu, not 'relu'"),
        ((X, Q, ROW, None, 0, None, None, "swiglu"), ValueError, "a gated activation takes twice as many"),
        ((X, Q, ROW, None, 0, None, None, None, "swiglu"), ValueError, "silu, not 'swiglu'"),
        ((X, Q, ROW, None, 0, None, None, None, "x"), ValueError, "not 'x'"),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.int8_linear(*args)


@pytest.mark.parametrize(
    ("rows", "scale", "options"),
    [
        ((5,), (7, 1), {"rotation": 16, "bias": torch.ones(7)}),
        ((2, 3), (), {"input_scale": torch.tensor(0.1), "out_dtype": torch.bfloat16}),
        ((5,), (1, 2), {"input_activation": "silu", "output_activation": "gelu"}),
        ((5,), (), {"input_activation": "swiglu"}),
    ],
    ids=short,
)
def test_opcheck(rows, scale, options):
    columns = 16 * activations.halves(options.get("input_activation"))
    torch.library.opcheck(op, (heavy(*rows, columns), int8(7, 16), torch.rand(scale) + 0.1), options)


@pytest.mark.parametrize("rotation", [0, 16])
def test_a_norm_is_taken_first(dtype, rotation):
    """Against float64, and to the bit what an unfused norm that rounds once would give."""
    x, w = heavy(2, 9, 128, dtype=dtype), heavy(33, 128, seed=1)
    norm, eps = torch.rand(128) + 0.5, 1e-5
    q, scale = kernels.quantize_rowwise(w, rotation)
    got = kernels.int8_linear(x, q, scale, None, rotation, norm_weight=norm, norm_eps=eps)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * norm.double()
    unfused = kernels.norm.apply(x, norm, eps)
    assert unfused.dtype == dtype
    torch.testing.assert_close(unfused.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert torch.equal(got, kernels.int8_linear(unfused, q, scale, None, rotation))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", ["rows", "blocks"])
def test_a_residual_is_added_before_the_result_is_rounded(dtype, scaled, kind):
    x, w, bias = heavy(2, 9, 128, dtype=dtype), heavy(33, 128, seed=1), torch.randn(33)
    weight = kernels.quantize_rowwise(w) if kind == "rows" else kernels.quantize_blockwise(w, 32, 32)
    residual, by = heavy(2, 9, 33, dtype=dtype, seed=2), torch.randn(33) if scaled else None
    got = kernels.int8_linear(
        x, *weight, bias, output_activation="silu", residual=residual, residual_scale=by
    )
    y = kernels.int8_linear(x, *weight, bias, out_dtype=torch.float32, output_activation="silu")
    assert torch.equal(got, (residual.float() + (y if by is None else by * y)).to(dtype))


NORM, RESIDUAL = torch.ones(32), torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"norm_weight": NORM[:16]}, ValueError, r"norm_weight must have shape \(32,\), not \(16,\)"),
        ({"norm_weight": NORM.long()}, TypeError, "norm_weight must be float32"),
        ({"norm_weight": NORM, "norm_eps": -1.0}, ValueError, "0 or more, not -1.0"),
        ({"norm_weight": NORM, "norm_eps": float("nan")}, ValueError, "0 or more, not nan"),
        ({"norm_weight": NORM, "input_activation": "silu"}, ValueError, "a norm and silu"),
        ({"residual": RESIDUAL[:1]}, ValueError, r"result's shape \(2, 8\), not \(1, 8\)"),
        ({"residual": RESIDUAL.int()}, TypeError, "residual must be float32"),
        (
            {"residual": RESIDUAL, "residual_scale": NORM},
            ValueError,
            r"residual_scale must have shape \(8,\)",
        ),
        ({"residual_scale": NORM[:8]}, ValueError, "without a residual"),
    ],
)
def test_refuses_a_norm_or_residual_that_does_not_fit(more, error, match):
    with pytest.raises(error, match=match):
        kernels.int8_linear(
            torch.zeros(2, 32), torch.zeros(8, 32, dtype=torch.int8), torch.ones(8, 1), **more
        )


def test_refuses_a_norm_of_activations_in_blocks():
    blocks = torch.zeros(32, 32, dtype=torch.int8), torch.ones(2, 2)
    with pytest.raises(ValueError, match="in blocks have no norm"):
        kernels.int8_linear(torch.zeros(2, 32), *blocks, norm_weight=NORM)
