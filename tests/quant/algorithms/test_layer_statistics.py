"""Bias correction, SmoothQuant and static scales: what a layer gains from measured inputs."""

import pytest
import torch
from inputs import heavy, short
from options import options as options_of

from convert_to_quant import kernels
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer
from convert_to_quant.quant.algorithms.smoothquant import pre_quant_scale


def tokens(n=400, k=64, mean=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=g) * torch.linspace(0.1, 2, k) + mean
    x[:, 5] *= 30
    return x


@pytest.mark.parametrize("rotation", [0, 64])
@pytest.mark.parametrize("scaling", ["row", "tensor"])
@pytest.mark.parametrize("given", ["channel_mean", "samples"])
def test_bias_correction_removes_the_mean_error_exactly(rotation, scaling, given):
    """After it the outputs' mean over the measured tokens is what the float layer's was."""
    weight, bias, x = heavy(40, 64), torch.randn(40), tokens(mean=3.0)
    stats = LayerStats(channel_mean=x.mean(0)) if given == "channel_mean" else LayerStats(samples=x)
    options = options_of("rtn", scaling, rotation, bias_correction=True)
    result = quantize_layer(weight, stats, options, bias)
    dense = result.weight.dequantize().double()
    wanted = (x.double() @ weight.double().T + bias).mean(0)
    left, before = ((x.double() @ dense.T + b).mean(0) - wanted for b in (result.bias, bias))
    assert before.abs().max() > 1e-2
    assert left.abs().max() < 1e-4 * before.abs().max() + 1e-5


def test_bias_correction_removes_a_planted_bias_exactly():
    """Weights of 0.4 steps all round to zero: the output is all rounding error, and one mean restores it."""
    weight = torch.full((3, 16), 0.4)
    weight[:, 0] = 127.0
    x = torch.ones(8, 16)
    x[:, 0] = 0
    stats = LayerStats(samples=x)
    result = quantize_layer(weight, stats, QuantizeOptions(bias_correction=True), torch.zeros(3))
    torch.testing.assert_close(result.bias, torch.full((3,), 15 * 0.4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
def test_corrected_bias_keeps_its_dtype(dtype):
    options = QuantizeOptions(bias_correction=True)
    result = quantize_layer(heavy(4, 64), LayerStats(samples=tokens()), options, torch.ones(4, dtype=dtype))
    assert result.bias.dtype == dtype


@pytest.mark.parametrize(
    ("stats", "bias", "note"),
    [
        (None, torch.ones(4), "no measured input mean"),
        (LayerStats(samples=tokens()), None, "no bias to correct"),
        (LayerStats(channel_mean=torch.ones(64), synthetic=True), torch.ones(4), "no measured input mean"),
    ],
    ids=["no calibration", "no bias", "synthetic"],
)
def test_bias_is_left_alone_otherwise(stats, bias, note):
    result = quantize_layer(heavy(4, 64), stats, QuantizeOptions(bias_correction=True), bias)
    assert result.bias is None
    assert note in result.note
    unasked = quantize_layer(heavy(4, 64), LayerStats(samples=tokens()), QuantizeOptions(), torch.ones(4))
    assert unasked.bias is None


@pytest.mark.parametrize("rotation", [0, 64])
@pytest.mark.parametrize("algorithm", ["rtn", "ldlq"])
def test_smoothquant_keeps_the_function_and_improves_w8a8(rotation, algorithm):
    weight, x = heavy(40, 64), tokens(2000)
    stats = LayerStats(x[:1000], x[:1000].abs().amax(0))
    wanted = x[1000:] @ weight.T

    def error(alpha):
        result = quantize_layer(weight, stats, options_of(algorithm, rotation=rotation, smoothquant=alpha))
        y = x[1000:] if alpha is None else x[1000:] * result.pre_quant_scale
        params = result.weight._layout_params
        got = kernels.int8_linear(y, result.weight._qdata, params["scale"], None, rotation)
        return float((got - wanted).square().sum() / wanted.square().sum())

    assert error(0.5) < 0.5 * error(None)
    assert error(0.5) < 1e-3


def test_smoothquant_formula():
    """Xiao et al. (2023), equation 4, on the maxima; dead channels are left alone."""
    weight = torch.tensor([[1.0, -4.0, 0.0, 1.0], [0.5, 2.0, 0.0, 1.0]])
    stats = LayerStats(channel_max=torch.tensor([16.0, 1.0, 3.0, 0.0]))
    got = pre_quant_scale(weight, stats, 0.5)
    torch.testing.assert_close(got, torch.tensor([0.25, 2.0, 1.0, 1.0]))


@pytest.mark.parametrize("stats", [None, LayerStats(tokens(), synthetic=True)], ids=["none", "synthetic"])
def test_smoothquant_needs_measured_inputs(stats):
    result = quantize_layer(heavy(4, 64), stats, QuantizeOptions(smoothquant=0.5))
    assert result.pre_quant_scale is None
    assert "SmoothQuant left out" in result.note


@pytest.mark.parametrize("smooth", [None, 0.5])
@pytest.mark.parametrize("rotation", [0, 64])
def test_static_scale_is_the_absmax_of_what_is_quantized(rotation, smooth):
    x = tokens()
    stats = LayerStats(x, x.abs().amax(0), x.mean(0), float(x.abs().max() / 127))
    options = options_of(rotation=rotation, smoothquant=smooth, static_activations=True)
    result = quantize_layer(heavy(4, 64), stats, options)
    seen = x if smooth is None else x * result.pre_quant_scale
    seen = kernels.rotate(seen, rotation) if rotation else seen
    torch.testing.assert_close(result.input_scale, seen.abs().max() / 127)
    assert result.input_scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("stats", "options", "note"),
    [
        (None, {}, "no calibration"),
        (LayerStats(input_scale=0.5), {"rotation": 64}, "no calibration samples to measure a rotated"),
        (LayerStats(tokens()), {"scaling": "block"}, "no static activation scale"),
    ],
    ids=["no calibration", "rotated without samples", "block"],
)
def test_static_scale_is_left_out_otherwise(stats, options, note):
    result = quantize_layer(heavy(128, 64), stats, options_of(static_activations=True, **options))
    assert result.input_scale is None
    assert note in result.note


def test_a_synthetic_static_scale_is_labelled():
    stats = LayerStats(input_scale=0.5, synthetic=True)
    result = quantize_layer(heavy(4, 64), stats, QuantizeOptions(static_activations=True))
    assert result.input_scale == 0.5
    assert "synthetic" in result.note


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["channel_mean", "samples"])
def test_a_mean_that_is_not_finite_corrects_no_bias(field, value):
    broken = torch.zeros(64) if field == "channel_mean" else tokens()[:9].clone()
    broken.view(-1)[3] = value
    result = quantize_layer(
        heavy(4, 64), LayerStats(**{field: broken}), QuantizeOptions(bias_correction=True), torch.ones(4)
    )
    assert result.bias is None
    assert "the measured input mean holds NaN or Inf" in result.note
