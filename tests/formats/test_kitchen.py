"""comfy-kitchen, what stock ComfyUI decodes and multiplies with, on every format that it knows."""

import numpy as np
import pytest
import torch
from format_cases import WRITTEN, decoded, described
from inputs import heavy
from peers import peer

from convert_to_quant.formats import read_format
from convert_to_quant.quant.algorithms import QuantizeOptions, quantize_layer
from convert_to_quant.quant.layouts import weight_layout
from convert_to_quant.quant.layouts.weight import loaded

kitchen = peer("comfy_kitchen.tensor")

N, K = 64, 256


def asym_w4a8(tensors, config):
    return "AsymW4A8Int8Layout", {
        "scale": tensors["weight_s_rel"],
        "s_channel": tensors["weight_s_channel"],
        "codebook": tensors.get("weight_codebook"),
        "group_size": config["group_size"],
        "convrot_groupsize": config["convrot_groupsize"],
    }


def int8(tensors, config):
    rotation = {k: config[k] for k in ("convrot", "convrot_groupsize") if k in config}
    return "TensorWiseINT8Layout", {"scale": tensors["weight_scale"], **rotation}


def fp8(tensors, config):
    return "TensorCoreFP8Layout", {"scale": tensors["weight_scale"]}


def int4(tensors, config):
    return "TensorCoreConvRotW4A4Layout", {
        "scale": tensors["weight_scale"],
        "convrot_groupsize": config["convrot_groupsize"],
        "linear_dtype": config["linear_dtype"],
    }


def mxfp8(tensors, config):
    return "TensorCoreMXFP8Layout", {"scale": tensors["weight_scale"]}


def nvfp4(tensors, config):
    blocks = {"block_scale": tensors["weight_scale"]}
    return "TensorCoreNVFP4Layout", {"scale": tensors["weight_scale_2"], **blocks}


PEERS = {
    "int8_tensorwise": int8,
    "asym_w4a8_int8": asym_w4a8,
    "convrot_w4a4": int4,
    "float8_e4m3fn": fp8,
    "float8_e5m2": fp8,
    "mxfp8": mxfp8,
    "nvfp4": nvfp4,
}
"""How ComfyUI's loader hands each format's tensors to comfy-kitchen: (layout, parameters)."""

known = pytest.mark.parametrize("case", [c for c in WRITTEN if c.form.name in PEERS], ids=str)


def layer(case):
    """(tensors, our loaded layout and its data, comfy-kitchen's weight) of a layer written in a format."""
    made = quantize_layer(heavy(N, K), None, QuantizeOptions(format=case.form)).weight
    layout = weight_layout(made._layout_type)
    _, tensors = layout.store(made._qdata, made._layout_params)
    form = read_format(case.config, described(tensors), "a")
    ours = (layout, *loaded(form, tensors, torch.float32))
    name, params = PEERS[case.form.name](tensors, case.config)
    params = kitchen.get_layout_class(name).Params(**params, orig_dtype=torch.float32, orig_shape=(N, K))
    return tensors, ours, kitchen.QuantizedTensor(tensors["weight"], name, params)


@known
def test_decodes_to_the_same_weight(case):
    tensors, (layout, qdata, params), theirs = layer(case)
    want = decoded(case, tensors)
    size = np.abs(want).max()
    for got in (layout.dequantize(qdata, **params), theirs.dequantize()):
        assert np.abs(got.double().numpy() - want).max() <= 1e-5 * size


@known
def test_multiplies_to_the_same_numbers(case):
    """Both round activations alike, so the outputs differ by float32's rounding and rare ties.

    Its code for CPUs rounds activations of int4 layers to four bits, whatever their linear_dtype says.
    """
    if case.form.name == "convrot_w4a4":
        pytest.skip("comfy-kitchen's reference has no activations of eight bits")
    _, (layout, qdata, params), theirs = layer(case)
    x = torch.randn(9, K, generator=torch.Generator().manual_seed(3))
    ours = layout.linear(x, qdata, params, None)
    other = torch.nn.functional.linear(x, theirs)
    assert (ours - other).norm() <= 2e-3 * other.norm()


OWN = {
    "w4a8": lambda c: {"bits": 4, "convrot_groupsize": c.rotation},
    "w6a8": lambda c: {"bits": 6, "convrot_groupsize": c.rotation},
    "int4": lambda c: {"convrot_groupsize": c.rotation},
    "mxfp8": lambda c: {},
    "nvfp4": lambda c: {},
}
"""What its own quantizers are asked for."""


@pytest.mark.parametrize("case", [c for c in WRITTEN if c.id in OWN], ids=str)
def test_rounds_better_than_its_own_quantizer(case):
    """Without calibration, on Gaussian weights and on heavy-tailed ones."""
    for seed in range(4):
        w = heavy(N, K, seed=seed) if seed else torch.randn(N, K)
        made = kitchen.QuantizedTensor.from_float(w, case.form.layout, **OWN[case.id](case))
        theirs = made.dequantize()
        ours = quantize_layer(w, None, QuantizeOptions(format=case.form)).weight.dequantize()
        assert (ours - w).square().sum() <= (theirs - w).square().sum()
