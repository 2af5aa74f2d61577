"""comfy-kitchen, the runtime inside ComfyUI, as a peer: the same file, the same inputs, the same answers."""

import json

import pytest
import torch
from peers import peer
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.runtime import load_quantized, quantize_model, save_quantized

kitchen = peer("comfy_kitchen.tensor")

CASES = {
    "row, rotated 64": {"rotation": 64},
    "row, rotated 256": {"rotation": 256},
    "row": {"rotation": 0},
    "tensor": {"rotation": 0, "scaling": "tensor"},
}


def kitchen_weight(tensors: dict[str, torch.Tensor], layer: str, dtype: torch.dtype):
    """The layer as ComfyUI builds it from a checkpoint."""
    conf = json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))
    q = tensors[f"{layer}.weight"]
    params = kitchen.TensorWiseINT8Layout.Params(
        scale=tensors[f"{layer}.weight_scale"],
        orig_dtype=dtype,
        orig_shape=tuple(q.shape),
        convrot=conf.get("convrot", False),
        convrot_groupsize=conf.get("convrot_groupsize", 256),
    )
    return kitchen.QuantizedTensor(q, "TensorWiseINT8Layout", params)


@pytest.fixture(params=CASES, ids=str)
def pair(request, tmp_path):
    """(our layer, kitchen's weight, bias) from one file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 96))
    quantize_model(model, **CASES[request.param])
    path = save_quantized(model, tmp_path / "a.safetensors")
    load_quantized(model, path)
    tensors = load_file(path)
    return model[0], kitchen_weight(tensors, "0", torch.float32), tensors["0.bias"]


def test_weights_dequantize_alike(pair):
    ours, theirs, _ = pair
    torch.testing.assert_close(ours.weight.dequantize(), theirs.dequantize(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(40, 512), (2, 20, 512)], ids=str)
def test_linears_agree_within_rounding(pair, dtype, shape):
    """Activations are quantized the same way, so outputs differ by how each rounds, not by quantization."""
    ours, theirs, bias = pair
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        mine = ours(x)
        other = nn.functional.linear(x, theirs, bias.to(dtype))
        exact = nn.functional.linear(x.float(), ours.weight.dequantize(), bias)
    assert mine.dtype == other.dtype == dtype
    apart, error, theirs_error = (
        (a.float() - b.float()).norm() / exact.norm()
        for a, b in ((mine, other), (mine, exact), (other, exact))
    )
    assert error < 1.02 * theirs_error, "never farther from float than the peer"
    # comfy-kitchen's eager code rounds activations' scales to bfloat16, which moves integers by one.
    assert apart < (1.2 if dtype == torch.bfloat16 else 0.6) * error


def test_a_lora_through_kitchens_patch_path_matches_ours(pair):
    """dequantize, add, requantize_from_float as ComfyUI's patcher does; same integers but for rare ties."""
    ours, theirs, _ = pair
    delta = torch.randn(96, 512, generator=torch.Generator().manual_seed(2)) * 0.01
    before = theirs._qdata.clone()
    patched = theirs.requantize_from_float(
        theirs.dequantize() + delta, scale="recalculate", stochastic_rounding=0
    )
    mine = ours.weight.clone()
    mine.add_(delta)
    assert patched._params.convrot == bool(mine._layout_params["rotation"])
    if patched._params.scale.numel() == 1:
        assert mine._layout_params["scale"].numel() == 1
    differ = (patched._qdata.int() - mine._qdata.int()).abs()
    if patched._params.scale.shape == mine._layout_params["scale"].shape:
        assert differ.max() <= 1
        assert (differ > 0).float().mean() < 0.01
    assert torch.equal(theirs._qdata, before), "ComfyUI keeps the original and puts it back"


def test_kitchens_own_weights_load_here(tmp_path):
    """A file that comfy-kitchen quantized: the same float weight."""
    from safetensors.torch import save_file

    w = torch.randn(64, 256)
    q = kitchen.QuantizedTensor.from_float(
        w, "TensorWiseINT8Layout", per_channel=True, convrot=True, convrot_groupsize=256
    )
    conf = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
    tensors = {f"0.{k}": v for k, v in q.state_dict("weight").items()}
    tensors["0.comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    save_file(tensors, tmp_path / "a.safetensors")
    model = nn.Sequential(nn.Linear(256, 64, bias=False))
    load_quantized(model, tmp_path / "a.safetensors", dtype=torch.float32)
    torch.testing.assert_close(model[0].weight.dequantize(), q.dequantize(), rtol=1e-5, atol=1e-6)
    ours = nn.Sequential(nn.Linear(256, 64, bias=False))
    ours[0].weight = nn.Parameter(w)
    quantize_model(ours)
    assert (ours[0].weight._qdata.int() - q._qdata.int()).abs().max() <= 1
