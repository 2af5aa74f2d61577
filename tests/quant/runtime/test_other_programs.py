"""What other programs do with tensors that they take for ordinary ones: saving, offloading, exporting."""

import copy

import pytest
import torch
from peers import peer
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.runtime import (
    Int8Linear,
    load_quantized,
    plain_state_dict,
    quantize_model,
    save_quantized,
)

LAYOUTS = ["int8_tensorwise", "int8_blockwise"]


@pytest.fixture(params=LAYOUTS)
def net(request) -> nn.Module:
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)).eval().requires_grad_(False)
    quantize_model(model, request.param, block_size=32)
    return model


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1))


def test_a_saver_of_plain_tensors_says_what_to_use(net, tmp_path):
    """safetensors asks for storage: the answer names both ways out, and nothing is written."""
    for save in (lambda p: save_file(net.state_dict(), p), lambda p: save_model(net, p)):
        with pytest.raises(RuntimeError, match=r"save_quantized\(model, path\).*plain_state_dict\(model\)"):
            save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_state_dict_is_what_a_checkpoint_holds(net, tmp_path):
    """The same tensors as save_quantized writes, from a module or from its state dict, and they load."""
    save_file(plain_state_dict(net), tmp_path / "a.safetensors")
    save_file(plain_state_dict(net.state_dict()), tmp_path / "b.safetensors")
    save_quantized(net, tmp_path / "c.safetensors")
    a, b, c = (load_file(tmp_path / f"{n}.safetensors") for n in "abc")
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[k], c[k]) and torch.equal(b[k], c[k]) for k in c)
    other = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128))
    load_quantized(other, tmp_path / "a.safetensors")
    assert torch.equal(other[0].weight, net[0].weight)


def test_a_parameter_is_made_anew_by_its_class(net):
    """``type(p)(value, requires_grad=...)``: the same storage, a parameter; plain values make plain ones."""
    w = net[0].weight
    again = type(w)(w, requires_grad=False)
    assert isinstance(again, nn.Parameter)
    assert isinstance(again, QuantizedTensor)
    assert again is not w
    assert again.data_ptr() == w.data_ptr() != net[2].weight.data_ptr()
    plain = type(w)(torch.ones(2), requires_grad=False)
    assert type(plain) is nn.Parameter
    with pytest.raises(RuntimeError, match="takes no gradient"):
        type(w)(w, requires_grad=True)


def test_data_takes_over_storage_and_leaves_its_source(net):
    """``p.data = moved``, as offloaders write it, moves the integers, and the source stays usable."""
    w, kept = net[0].weight, net[0].weight.data
    where, want = w.data_ptr(), w.dequantize()
    assert kept.data_ptr() == where
    w.data = w.data.to("meta")
    assert w.device.type == w._qdata.device.type == w._layout_params["scale"].device.type == "meta"
    assert isinstance(w, nn.Parameter)
    for _ in range(2):
        w.data = kept
        assert w.data_ptr() == kept.data_ptr() == where
        assert torch.equal(w.dequantize(), want)
        w.data = w.data.to("meta")
    assert kept.device.type == "cpu"
    with pytest.raises(TypeError, match="only take over the storage of another quantized tensor"):
        w.data = torch.zeros(w.shape)


def test_a_deep_copy_keeps_marks_and_sharing(net):
    net[0].weight.note = ["kept"]
    net.again = net[0]
    other = copy.deepcopy(net)
    assert other.again.weight is other[0].weight
    assert other[0].weight.data_ptr() != net[0].weight.data_ptr()
    assert isinstance(other[0].weight, nn.Parameter)
    assert other[0].weight.note == ["kept"]
    assert other[0].weight.note is not net[0].weight.note


def test_numpy_gives_the_float_values(net):
    w = net[0].weight
    assert torch.equal(torch.from_numpy(w.detach().cpu().numpy()), w.dequantize())


def test_accelerate_offloads_to_the_cpu(net, x):
    """Weights wait as integers beside an empty model and come back as they were, run after run."""
    accelerate = peer("accelerate")
    want = net(x)
    accelerate.cpu_offload(net, execution_device="cpu")
    assert all(p.device.type == "meta" for p in net.parameters())
    for _ in range(2):
        assert torch.equal(net(x), want)
        assert isinstance(net[0].weight, QuantizedTensor)


def test_accelerate_offloads_to_disk(net, x, tmp_path):
    """Its files hold floats: the model runs as its dequantized self."""
    accelerate = peer("accelerate")
    dense = copy.deepcopy(net)
    for i in (0, 2):
        dense[i].weight = nn.Parameter(dense[i].weight.dequantize(), requires_grad=False)
    want = dense(x)
    accelerate.disk_offload(net, tmp_path / "off", execution_device="cpu")
    for _ in range(2):
        assert torch.equal(net(x), want)


def test_accelerate_dispatches_by_a_device_map(net, x):
    accelerate = peer("accelerate")
    want = net(x)
    accelerate.dispatch_model(net, {"0": "cpu", "1": "cpu", "2": "cpu"}, force_hooks=True)
    assert torch.equal(net(x), want)


@pytest.mark.parametrize("bias", [True, False])
def test_the_module_of_plain_tensors_is_exported(bias, x):
    linear = Int8Linear.from_linear(nn.Linear(128, 64, bias=bias))
    program = torch.export.export(linear, (x,))
    assert torch.equal(program.module()(x), linear(x))
    assert {k for k, _ in linear.named_buffers()} == {"weight", "weight_scale", *(["bias"] if bias else [])}


@pytest.mark.parametrize("smooth", [False, True])
def test_the_module_is_differentiable_in_its_input(x, smooth):
    """The gradient is that of the float weight it stands for."""
    options = {"pre_quant_scale": torch.rand(128) + 0.5} if smooth else {}
    linear = nn.Linear(128, 64).requires_grad_(False)
    q = QuantizedTensor.from_float(linear.weight, "TensorWiseINT8Layout", rotation=64, **options)
    module = Int8Linear.from_quantized(q, linear.bias)
    y = x.clone().requires_grad_()
    (module(y) * 3).sum().backward()
    want = 3 * q.dequantize().sum(0).expand_as(x)
    assert torch.allclose(y.grad, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda net: net, lambda net: Int8Linear.from_quantized(net[0].weight, net[0].bias)]
)
def test_float64_is_taken_and_answered(net, x, make):
    """A model cast to double, or its input: the INT8 product, in float64."""
    module = make(net)
    with torch.no_grad():
        want = module(x)
        got = module.double()(x.double())
    assert got.dtype == torch.float64
    assert torch.allclose(got, want.double(), rtol=1e-5, atol=1e-5)


def test_an_embedding_answers_in_float64():
    table = nn.Embedding(40, 64)
    q = QuantizedTensor.from_float(table.weight, "TensorWiseINT8Layout", rotation=64)
    table.weight = nn.Parameter(q, requires_grad=False)
    index = torch.tensor([3, 1])
    want = table(index)
    assert torch.equal(table.double()(index), want.double())
