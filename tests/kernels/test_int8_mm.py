"""int8_mm: int8 x int8 -> int32 with scales, bias, activation and rounding in the epilogue."""

import importlib

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import int8, short, strided

from convert_to_quant import kernels

module = importlib.import_module("convert_to_quant.kernels.int8_mm")  # the package exports the function
pytestmark = pytest.mark.usefixtures("poisoned_memory")
op = torch.ops.convert_to_quant.int8_mm.default


def scale_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.01 + 0.001


def check(got, a, b, a_scale, b_scale, bias, blocks=1):
    """Within the rounding of the float32 epilogue and of the output dtype. Scales are one an element."""
    bias = np.zeros(b.shape[0]) if bias is None else oracle.array(bias)
    a, b = oracle.array(a), oracle.array(b)
    want = oracle.linear(a, b, a_scale, b_scale, bias)
    # Each block's term sees three roundings, and each addition one of the sum of magnitudes.
    size = (
        oracle.linear(np.abs(a), np.abs(b), a_scale, b_scale, np.abs(bias))
        if blocks > 1
        else np.abs(want - bias)
    )
    bound = (4 + blocks) * oracle.U * (size + np.abs(bias)) + torch.finfo(got.dtype).eps / 2 * np.abs(
        want
    ) * 1.01
    assert (np.abs(oracle.array(got) - want) <= bound + 2.0**-25).all()


SHAPES = (
    ((5,), 123, 77),
    ((123,), 123, 123),
    ((1,), 7, 1),
    ((3, 5), 130, 33),
    ((), 64, 16),
    ((2, 3, 4), 1024, 9),
)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("granules", ["row row", "tensor row", "row tensor", "tensor tensor"])
@pytest.mark.parametrize(("rows", "k", "n"), SHAPES, ids=short)
def test_against_float64(rows, k, n, granules, with_bias, dtype):
    a, b = int8(*rows, k), int8(n, k, seed=1)
    of_a, of_b = granules.split()
    a_scale = scale_of(*rows, 1) if of_a == "row" else scale_of()
    b_scale = scale_of(n, 1, seed=1) if of_b == "row" else scale_of(seed=1)
    bias = torch.randn(n) if with_bias else None
    got = kernels.int8_mm(a, b, a_scale, b_scale, bias, dtype)
    assert (got.shape, got.dtype) == ((*rows, n), dtype)
    check(got, a, b, oracle.array(a_scale), oracle.array(b_scale), bias)


@pytest.mark.parametrize(
    ("m", "k", "n", "block"),
    [(5, 123, 77, 16), (33, 256, 256, 128), (7, 300, 129, 128), (1, 64, 40, 32)],
    ids=short,
)
def test_block_wise_against_float64(m, k, n, block, dtype):
    a, b, bias = int8(m, k), int8(n, k, seed=1), torch.randn(n)
    a_scale, b_scale = scale_of(m, -(-k // block)), scale_of(-(-n // block), -(-k // block), seed=1)
    got = kernels.int8_mm(a, b, a_scale, b_scale, bias, dtype)
    of_a = oracle.spread(oracle.array(a_scale), (m, k), 1, block)
    of_b = oracle.spread(oracle.array(b_scale), (n, k), block, block)
    check(got, a, b, of_a, of_b, bias, blocks=b_scale.shape[1])


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (5, 123, 77), (3, 5000, 2), (17, 1024, 513), (40, 2056, 24)], ids=short
)
def test_integers_are_summed_exactly(m, k, n):
    a, b = int8(m, k), int8(n, k, seed=1)
    want = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T
    got = module.int32_mm(a, b)
    assert got.dtype == torch.int32
    assert np.array_equal(got.numpy(), want)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", [127, -128])
def test_largest_sums_are_exact(sign, value):
    """The extremes pass 2 ** 24, where float32 loses units; -128 occurs in files made by others."""
    a = torch.full((2, 9001), value, dtype=torch.int8)
    b = torch.full((3, 9001), sign * 127, dtype=torch.int8)
    b[:, -1] = 1
    want = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T
    assert np.array_equal(module.int32_mm(a, b).numpy(), want)


def test_large_odd_sums_are_exact():
    """Beyond 2 ** 24 float32 has even numbers only; half of these sums are odd."""
    a = torch.full((2, 9001), 127, dtype=torch.int8)
    b = torch.randint(126, 128, (64, 9001), dtype=torch.int8)
    want = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T
    assert np.array_equal(module.int32_mm(a, b).numpy(), want)


@pytest.mark.parametrize(("m", "k", "n"), [(33, 64, 16), (17, 2048, 8)], ids=short)
def test_hardware_int8_path_gives_the_same_sums(m, k, n, monkeypatch):
    a, b = int8(m, k), int8(n, k, seed=1)
    plain = module.int32_mm(a, b)
    monkeypatch.setattr(module, "_has_int8_product", lambda device: True)
    assert torch.equal(module.int32_mm(a, b), plain)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 64, 16), (17, 123, 8), (5, 70, 13)], ids=short)
def test_any_shape_is_padded_for_the_library_product(m, k, n):
    a, b = int8(m, k), int8(n, k, seed=1)
    assert torch.equal(module._padded_int_mm(a, b), module.int32_mm(a, b))


@pytest.mark.parametrize("runs", [True, False])
def test_twins_on_a_gpu_use_the_library_product_where_it_runs(runs, monkeypatch):
    """Turing, an old Triton, Windows without one: the twin would otherwise multiply in float32."""
    product, served = torch._int_mm, []

    def int_mm(a, b):
        if not runs:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        served.append(a.shape)
        return product(a, b)

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    module._has_int8_product.cache_clear()
    device = torch.device("meta")  # any device that is no CPU
    for m, k, n in ((20, 64, 16), (3, 70, 13)):
        a, b = (torch.empty(size, dtype=torch.int8, device=device) for size in ((m, k), (n, k)))
        assert module.int32_mm(a, b).shape == (m, n)
    module._has_int8_product.cache_clear()
    assert served == ([(32, 32), (20, 64), (32, 72)] if runs else [])


def test_strides_do_not_matter():
    a, b, a_scale, b_scale = int8(6, 64), int8(10, 64, seed=1), scale_of(6, 1), scale_of(10, 1, seed=1)
    want = kernels.int8_mm(a, b, a_scale, b_scale)
    for name, view in strided(a).items():
        assert torch.equal(kernels.int8_mm(view, b, a_scale, b_scale), want), name
    for name, view in strided(b).items():
        assert torch.equal(kernels.int8_mm(a, view, a_scale, b_scale), want), name


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_output_activation(name, dtype):
    a, b, bias = int8(5, 64), int8(9, 64, seed=1), torch.randn(9)
    scales = scale_of(5, 1), scale_of(9, 1, seed=1)
    got = kernels.int8_mm(a, b, *scales, bias, dtype, name)
    y = kernels.int8_mm(a, b, *scales, bias, torch.float32).double()
    function = {
        "gelu": lambda v: 0.5 * v * (1 + torch.erf(v / 2**0.5)),
        "gelu_tanh": lambda v: 0.5 * v * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (v + 0.044715 * v**3))),
        "silu": lambda v: v / (1 + torch.exp(-v)),
    }[name]
    torch.testing.assert_close(got.double(), function(y), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("a_scale", [(), (0, 1)], ids=short)
def test_no_rows(a_scale):
    assert kernels.int8_mm(int8(0, 8), int8(4, 8), torch.ones(a_scale), torch.ones(4, 1)).shape == (0, 4)


@pytest.mark.parametrize("rows", [(0,), (2, 0)], ids=short)
def test_no_rows_block_wise(rows):
    got = kernels.int8_mm(int8(*rows, 8), int8(4, 8), torch.ones(*rows, 2), torch.ones(1, 2))
    assert got.shape == (*rows, 4)


@given(m=st.integers(1, 20), k=st.integers(1, 40), n=st.integers(1, 20), seed=st.integers(0, 99))
def test_unit_scales_give_the_integers(m, k, n, seed):
    a, b, one = int8(m, k, seed=seed), int8(n, k, seed=seed + 1), torch.ones(())
    got = kernels.int8_mm(a, b, one, one, out_dtype=torch.float32)
    assert np.array_equal(got.numpy(), a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T)


I8, ONE = int8(5, 8), torch.ones(())


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((I8.float(), int8(4, 8), ONE, ONE), TypeError, "a must be int8, not torch.float32"),
        ((I8, int8(4, 8).float(), ONE, ONE), TypeError, "qweight must be int8"),
        ((I8, int8(8), ONE, ONE), ValueError, r"qweight must be 2-D, not of shape \(8,\)"),
        ((I8, int8(4, 7), ONE, ONE), ValueError, "in_features differ: x has 8 columns, qweight has 7"),
        ((I8, int8(4, 8), ONE, ONE, torch.zeros(5)), ValueError, r"bias must have shape \(4,\), not \(5,\)"),
        (
            (I8, int8(4, 8), torch.ones(5), ONE),
            ValueError,
            r"a_scale must have one element or shape \(5, 1\), not \(5,\)",
        ),
        ((I8, int8(4, 8), torch.ones(1, 8), ONE), ValueError, r"not \(1, 8\)"),
        (
            (I8, int8(4, 8), ONE, torch.ones(4)),
            ValueError,
            r"scale of shape \(4,\) does not fit integers \[4, 8\]",
        ),
        (
            (I8, int8(4, 8), ONE, torch.ones(1, 4)),
            ValueError,
            r"block-wise b \(scale \(1, 4\)\) needs a_scale \(5, 4\)",
        ),
        ((I8, int8(4, 8), ONE, torch.ones(3, 1)), ValueError, r"\(3, 1\) does not fit"),
        (
            (I8, int8(4, 8), ONE, ONE, None, torch.float32, "relu"),
            ValueError,
            "one of gelu, gelu_tanh, silu, not 'relu'",
        ),
    ],
    ids=short,
)
def test_refusals(args, error, match):
    with pytest.raises(error, match=match):
        kernels.int8_mm(*args)


@pytest.mark.parametrize(
    ("a", "b", "a_scale", "b_scale", "bias", "dtype", "activation"),
    [
        ((5, 12), (7, 12), (5, 1), (7, 1), True, torch.bfloat16, None),
        ((2, 3, 12), (7, 12), (), (), False, torch.float32, "gelu"),
        ((3, 20), (9, 20), (3, 3), (2, 3), True, torch.float16, None),
    ],
    ids=short,
)
def test_opcheck(a, b, a_scale, b_scale, bias, dtype, activation):
    tensors = int8(*a), int8(*b), scale_of(*a_scale), scale_of(*b_scale), torch.randn(b[0]) if bias else None
    torch.library.opcheck(op, (*tensors, dtype, activation))
