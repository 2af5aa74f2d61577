"""ldlq_ and accumulate_hessian_ on QuantizedTensors: the ops reach the layouts."""

import pytest
import torch
from calibrated import tokens
from inputs import heavy
from options import options as options_of

from convert_to_quant import kernels
from convert_to_quant.quant import QuantizedTensor
from convert_to_quant.quant.algorithms import LayerStats, quantize_layer

ops = torch.ops.convert_to_quant
LAYOUTS = {
    "row": ("TensorWiseINT8Layout", {}),
    "rotated": ("TensorWiseINT8Layout", {"rotation": 64}),
    "tensor": ("TensorWiseINT8Layout", {"scaling": "tensor"}),
    "block": ("BlockWiseINT8Layout", {"block_size": 64}),
}


def hessian(x, rotation=0):
    return kernels.accumulate_hessian_(torch.zeros(x.shape[1], x.shape[1]), x, rotation).div_(len(x))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_ldlq_requantizes_in_place_like_the_algorithm(kind):
    layout, options = LAYOUTS[kind]
    weight, x = heavy(100, 192), tokens(600, 192)
    q = QuantizedTensor.from_float(torch.randn(100, 192), layout, **options)
    fresh = QuantizedTensor.from_float(weight, layout, **options)
    scale, rotation = fresh._layout_params["scale"], options.get("rotation", 0)
    errors = ops.ldlq_(q, weight, hessian(x, rotation), scale)
    scaling = {"row": "row", "rotated": "row"}.get(kind, kind)
    wanted = quantize_layer(
        weight, LayerStats(samples=x), options_of("ldlq", scaling, rotation, block_size=64)
    )
    assert torch.equal(q._qdata, wanted.weight._qdata)
    assert torch.equal(q._layout_params["scale"], scale)
    exact = kernels.rotate(weight, rotation)
    torch.testing.assert_close(errors, exact - kernels.dequantize(q._qdata, scale))
    assert not torch.equal(q._qdata, fresh._qdata)


def test_ldlq_refuses_what_does_not_fit():
    q = QuantizedTensor.from_float(heavy(8, 64), "TensorWiseINT8Layout")
    w, h, s = heavy(8, 64), torch.eye(64), q._layout_params["scale"]
    with pytest.raises(ValueError, match=r"a hessian \(64, 64\)"):
        ops.ldlq_(q, w, torch.eye(63), s)
    with pytest.raises(ValueError, match=r"scale must have shape \(8, 1\)"):
        ops.ldlq_(q, w, h, torch.ones(()))
    with pytest.raises(TypeError, match="not transposed"):
        ops.ldlq_(q.t(), w.t(), torch.eye(8), s)


@pytest.mark.parametrize("rotation", [0, 16, 64])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_hessian_of_quantized_tokens(kind, rotation):
    layout, options = LAYOUTS[kind]
    x = QuantizedTensor.from_float(tokens(50, 64), layout, **options)
    h, wanted = torch.zeros(64, 64), torch.zeros(64, 64)
    ops.accumulate_hessian_(h, x, rotation)
    kernels.accumulate_hessian_(wanted, x.dequantize(), rotation)
    torch.testing.assert_close(h, wanted, rtol=1e-5, atol=1e-4)
