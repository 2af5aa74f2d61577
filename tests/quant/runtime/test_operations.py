"""The operations factory: a model class written against it runs quantized without other change."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor, mixed_precision_ops
from convert_to_quant.runtime import load_quantized, quantize_model, save_quantized


class Net(nn.Module):
    """As ComfyUI's models are written: every layer comes from `operations`."""

    def __init__(self, operations=nn, device=None, dtype=None):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        self.patch = operations.Conv2d(3, 64, 2, stride=2, **at)
        self.table = operations.Embedding(10, 64, **at)
        self.norm = operations.LayerNorm(64, **at)
        self.fc1 = operations.Linear(64, 128, **at)
        self.rms = operations.RMSNorm(128, **at)
        self.fc2 = operations.Linear(128, 64, bias=False, **at)
        self.group = operations.GroupNorm(4, 64, **at)
        self.back = operations.ConvTranspose2d(64, 3, 2, stride=2, **at)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = self.patch(image)
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.table(label).unsqueeze(1).to(x.dtype)
        x = x + self.fc2(self.rms(nn.functional.gelu(self.fc1(self.norm(x)))))
        return self.back(self.group(x.transpose(1, 2).unflatten(-1, (h, w))))


@pytest.fixture
def trained() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([1, 7])


def sqnr(got, want) -> float:
    return float(10 * torch.log10(want.float().square().sum() / (got.float() - want.float()).square().sum()))


@pytest.fixture
def state(trained, tmp_path) -> dict[str, torch.Tensor]:
    """A checkpoint with a smoothed layer, a static activation scale and a quantized embedding."""
    quantize_model(trained, rotation=16, include="*")
    smooth = torch.rand(64) + 0.5
    dense = trained.fc1.weight.dequantize()
    options = {"rotation": 16, "pre_quant_scale": smooth, "input_scale": torch.tensor(0.04)}
    q = QuantizedTensor.from_float(dense, "TensorWiseINT8Layout", **options)
    trained.fc1.weight = nn.Parameter(q, requires_grad=False)
    table = QuantizedTensor.from_float(trained.table.weight, "TensorWiseINT8Layout")
    trained.table.weight = nn.Parameter(table, requires_grad=False)
    return load_file(save_quantized(trained, tmp_path / "a.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_checkpoint_loads_and_runs(trained, state, inputs, dtype):
    """load_state_dict, strict; the outputs are those of nn.Linear with the same quantized weights."""
    ops = mixed_precision_ops({"mixed_ops": True}, dtype)
    model = Net(ops, dtype=dtype)
    model.load_state_dict(state)
    assert isinstance(model.fc1.weight, QuantizedTensor)
    assert isinstance(model.table.weight, QuantizedTensor)
    assert model.fc1.quant_format == "int8_smooth"
    assert model.fc1.weight._layout_params.keys() >= {"pre_quant_scale", "input_scale"}
    assert model.norm.weight.dtype == dtype
    with torch.no_grad():
        got, want = model(inputs[0].to(dtype), inputs[1]), trained(*inputs)
    assert got.dtype == dtype
    assert sqnr(got, want) > (30 if dtype != torch.float32 else 100)


def test_the_state_dict_is_the_checkpoint(state):
    """What was read is written back under the same names with the same bytes."""
    model = Net(mixed_precision_ops(None, torch.float32))
    model.load_state_dict(state)
    again = model.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())


def test_full_precision_multiplies_in_float(state, inputs):
    model = Net(mixed_precision_ops(None, torch.float32, full_precision_mm=True))
    model.load_state_dict(state)
    want = nn.functional.linear(x := torch.randn(3, 64), model.fc1.weight.dequantize(), model.fc1.bias)
    assert torch.equal(model.fc1(x), want)
    conf = json.loads(bytes(state["fc2.comfy_quant"].tolist()))
    conf["full_precision_matrix_mult"] = True
    state["fc2.comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    model = Net(mixed_precision_ops(None, torch.float32))
    model.load_state_dict(state)
    assert torch.equal(model.fc2(x := torch.randn(3, 128)), x @ model.fc2.weight.dequantize().t())


def test_layers_may_be_described_by_the_header(state):
    """quant_config in the place of comfy_quant tensors."""
    layers = {
        k.removesuffix(".comfy_quant"): json.loads(bytes(v.tolist()))
        for k, v in state.items()
        if "comfy" in k
    }
    bare = {k: v for k, v in state.items() if "comfy" not in k}
    for config in (layers, {"format_version": "1.0", "layers": layers}):
        model = Net(mixed_precision_ops(config, torch.float32))
        model.load_state_dict(bare)
        assert model.fc1.weight._layout_params["rotation"] == 16


def test_errors_name_the_layer(state):
    """Strict as torch is: missing, unexpected, misshapen."""
    model = Net(mixed_precision_ops())
    bare = {k: v for k, v in state.items() if k != "fc1.comfy_quant"}
    with pytest.raises(RuntimeError, match="fc1 is stored as int8 without"):
        model.load_state_dict(bare)
    with pytest.raises(RuntimeError, match=r"Missing key.*norm.bias"):
        model.load_state_dict({k: v for k, v in state.items() if k != "norm.bias"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fc1.extra"):
        model.load_state_dict({**state, "fc1.extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"fc1 .* has no weight_scale"):
        model.load_state_dict({k: v for k, v in state.items() if k != "fc1.weight_scale"})


def test_plain_checkpoints_and_mixed_dtypes(inputs):
    """No comfy_quant anywhere: a plain model in the compute dtype, whatever the inputs'."""
    torch.manual_seed(0)
    plain = Net().requires_grad_(False)
    model = Net(mixed_precision_ops(None, torch.bfloat16))
    model.load_state_dict(plain.state_dict())
    model.requires_grad_(False)
    assert model.fc1.weight.dtype == torch.bfloat16
    assert sqnr(model(*inputs), plain(*inputs)) > 35


def test_meta_models_fill_from_a_file(trained, state, inputs, tmp_path):
    """load_quantized works on factory-built models too, and .to keeps the layout."""
    from safetensors.torch import save_file

    save_file(state, tmp_path / "b.safetensors")
    model = Net(mixed_precision_ops(None, torch.float32), device="meta")
    load_quantized(model, tmp_path / "b.safetensors")
    with torch.no_grad():
        assert sqnr(model(*inputs), trained(*inputs)) > 100
    assert isinstance(model.to(torch.bfloat16).fc1.weight, QuantizedTensor)
    assert mixed_precision_ops().conv_nd(3, 4, 4, 1).weight.dim() == 5
