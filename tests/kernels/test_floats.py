"""dequantize_floats, quantize_float8 and float_linear: FP8, MXFP8 and NVFP4, against float64."""

import importlib

import format_cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert_to_quant import kernels
from convert_to_quant.kernels.tiled_scales import tiled

module = importlib.import_module("convert_to_quant.kernels.float_linear")  # the package exports the function

KINDS = ("e4m3", "e5m2", "e4m3 rows", "mxfp8", "nvfp4")


def weight(kind: str, n: int = 144, k: int = 192):
    """Random finite bytes of every value, and scales, as `dequantize_floats` takes them."""
    g = torch.Generator().manual_seed(0)
    name = kind.split()[0]
    q = torch.randint(0, 256, (n, k // 2 if kind == "nvfp4" else k), generator=g).to(torch.uint8)
    if kind != "nvfp4":
        q[(q & 0x7F) >= (0x7C if kind == "e5m2" else 0x7F)] = 0x3C
    if name in kernels.floats.FP8:
        scale = torch.rand((n, 1) if "rows" in kind else (), generator=g) + 0.5
        return q, name, scale, None
    blocks = torch.randint(0, 126, (n, k // kernels.floats.BLOCKS[kind]), generator=g).to(torch.uint8)
    if kind == "mxfp8":
        return q, kind, None, tiled(blocks + 64)
    return q, kind, torch.tensor(0.013), tiled(blocks)


def float64(q, kind, scale, block_scale) -> torch.Tensor:
    """The weight by the formats' own decoders, in float64."""
    tensors = {"weight": q.numpy()}
    if kind == "nvfp4":
        tensors |= {"weight_scale": block_scale.numpy(), "weight_scale_2": scale.numpy()}
        return torch.from_numpy(format_cases.nvfp4(tensors, {}))
    tensors["weight_scale"] = (scale if block_scale is None else block_scale).numpy()
    decoder = {"e4m3": format_cases.float8(4), "e5m2": format_cases.float8(5), "mxfp8": format_cases.mxfp8}
    return torch.from_numpy(decoder[kind](tensors, {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantize_against_float64(kind, dtype):
    operands = weight(kind)
    got, want = kernels.dequantize_floats(*operands, dtype), float64(*operands)
    assert (got.dtype, got.shape) == (dtype, (144, 192))
    # Two products of float32 at most (both scales of nvfp4, and the value), then one rounding to the dtype.
    bound = want.abs() * (torch.finfo(dtype).eps / 2 + 2.0**-23) + torch.finfo(torch.float32).smallest_normal
    assert ((got.double() - want).abs() <= bound).all()


def test_what_is_no_number_shows():
    nan = torch.tensor([[0x7F, 0xFF, 0x38, 0]], dtype=torch.uint8)
    assert kernels.dequantize_floats(nan, "e4m3").isnan().tolist() == [[True, True, False, False]]
    blocks = torch.zeros(128, 4, dtype=torch.uint8)
    blocks[0, 0] = 255
    ones = torch.full((1, 64), 0x38, dtype=torch.uint8)
    found = kernels.dequantize_floats(ones, "mxfp8", None, blocks)
    assert found[0, :32].isnan().all()
    assert not found[0, 32:].any()  # a stored 0 is none


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
@pytest.mark.parametrize("static", [False, True])
def test_quantize_float8(kind, static, dtype):
    """Rounds to the nearest value that the scale allows, and says the scale; NaN stays."""
    x = torch.randn(7, 123).mul_(torch.logspace(-6, 2, 123)).to(dtype)
    given = torch.tensor(0.01) if static else None
    q, scale = kernels.quantize_float8(x, kind, given)
    top = torch.finfo(kernels.floats.FP8[kind]).max
    want = given if static else x.float().abs().max() / top
    torch.testing.assert_close(scale, want, rtol=1e-6, atol=0)
    levels = torch.arange(256, dtype=torch.uint8).view(q.dtype).double()
    levels = levels[levels.isfinite()].unique() * scale.double()
    nearest = np.abs(x.double().numpy()[..., None] - levels.numpy()).min(-1)
    away = (q.double() * scale.double() - x.double()).abs().numpy()
    assert (away <= nearest * (1 + 1e-5) + 1e-30).all()
    x[3, 5] = float("nan")
    assert kernels.quantize_float8(x, kind, torch.tensor(1.0))[0].float()[3, 5].isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_linear_is_that_of_the_floats(kind, dtype):
    x, bias = torch.randn(2, 3, 192).to(dtype), torch.randn(144)
    operands = weight(kind)
    got = kernels.float_linear(x, *operands, bias)
    want = F.linear(x, kernels.dequantize_floats(*operands, dtype), bias.to(dtype))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)  # float16 overflows on the way


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_fp8_products(kind, static, monkeypatch):
    """Where the device has them: the product of rounded activations, with scales and bias."""
    monkeypatch.setattr(module, "has_fp8_product", lambda device: True)
    x, bias = torch.randn(2, 20, 192).bfloat16(), torch.randn(144)
    operands, given = weight(kind), torch.tensor(0.02) if static else None
    got = kernels.float_linear(x, *operands, bias, given)
    rounded, scale = kernels.quantize_float8(x, "e4m3", given)
    w = float64(*operands)
    want = (rounded.double() * scale.double()) @ w.t() + bias.double()
    # Rounded to bfloat16 twice, before the bias and after it.
    bound = 2.0**-7 * (want.abs() + bias.double().abs()) + 1e-4 * want.abs().max()
    assert ((got.double() - want).abs() <= bound).all()
    dense = kernels.float_linear(x, *operands, bias, given, exact=True)
    assert not torch.equal(dense, got)


@pytest.mark.parametrize("operands", ["e4m3 rows", "mxfp8", "nvfp4", "ragged", "float32"])
def test_what_is_no_fp8_product(operands, monkeypatch):
    """Scales per row or block, and sizes that the product does not take, keep activations as they are."""
    monkeypatch.setattr(module, "has_fp8_product", lambda device: True)
    monkeypatch.delattr(torch, "_scaled_mm")
    kind = "e4m3" if operands in ("ragged", "float32") else operands
    stored = weight(kind, k=200 if operands == "ragged" else 192)
    x = torch.randn(3, stored[0].shape[1] * (2 if operands == "nvfp4" else 1))
    x = x if operands == "float32" else x.bfloat16()
    want = F.linear(x, kernels.dequantize_floats(*stored, x.dtype))
    torch.testing.assert_close(kernels.float_linear(x, *stored), want, rtol=0, atol=0, equal_nan=True)


def test_a_cpu_has_no_fp8_product_and_a_gpu_is_asked(monkeypatch):
    assert not module.has_fp8_product(torch.device("cpu"))
    for error, found in ((None, True), (RuntimeError("needs compute capability 8.9"), False)):
        module.has_fp8_product.cache_clear()

        def product(*args, error=error, **kwargs):
            if error is not None:
                raise error

        monkeypatch.setattr(torch, "_scaled_mm", product)
        assert module.has_fp8_product(torch.device("meta")) is found
    module.has_fp8_product.cache_clear()


@pytest.mark.parametrize("kind", ["e4m3", "nvfp4"])
def test_declared_as_torch_wants(kind):
    q, name, scale, blocks = weight(kind, 16, 64)
    ops = torch.ops.convert_to_quant
    torch.library.opcheck(ops.dequantize_floats.default, (q, name, scale, blocks, torch.bfloat16))
    torch.library.opcheck(ops.float_linear.default, (torch.randn(3, 64), q, name, scale, blocks))
    torch.library.opcheck(ops.quantize_float8.default, (torch.randn(3, 64), "e4m3"))


Q, BLOCKS = torch.zeros(4, 64, dtype=torch.uint8), torch.zeros(128, 4, dtype=torch.uint8)
WRONG = [
    (ValueError, "kind", (Q, "e3m4")),
    (TypeError, "bytes", (Q.int(), "e4m3")),
    (ValueError, "2-D", (Q[0], "e4m3")),
    (ValueError, "one element", (Q, "e4m3", torch.ones(3, 1))),
    (ValueError, "one element", (Q, "mxfp8", torch.ones(4, 1), BLOCKS)),
    (ValueError, "no block_scale", (Q, "e4m3", None, BLOCKS)),
    (ValueError, "a block_scale", (Q, "mxfp8")),
    (ValueError, r"\[128, 4\]", (Q, "mxfp8", None, BLOCKS[:64])),
    (ValueError, "blocks of 16", (Q[:, :60], "nvfp4", None, BLOCKS)),
]


@pytest.mark.parametrize(("error", "words", "operands"), WRONG, ids=range(len(WRONG)))
def test_refusals(error, words, operands):
    with pytest.raises(error, match=words):
        kernels.dequantize_floats(*operands)


def test_refusals_of_the_linear_and_the_quantizer():
    x = torch.zeros(2, 64)
    for words, operands in {
        "in_features": (x[:, :32], Q, "e4m3"),
        "bias": (x, Q, "e4m3", None, None, torch.ones(3)),
        "input_scale": (x, Q, "e4m3", None, None, None, torch.ones(2)),
    }.items():
        with pytest.raises(ValueError, match=words):
            kernels.float_linear(*operands)
    with pytest.raises(ValueError, match="kind"):
        kernels.quantize_float8(x, "mxfp8")
    with pytest.raises(ValueError, match="one element"):
        kernels.quantize_float8(x, "e4m3", torch.ones(2))
