"""LoRA on quantized weights: same layout, rotation honoured, and off again to the bit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.quant.runtime.lora import _module_name
from convert_to_quant.runtime import CheckpointError, LowRank, apply_lora, quantize_model

CASES = {
    "row, rotated": ("int8_tensorwise", {"rotation": 64}),
    "row": ("int8_tensorwise", {"rotation": 0}),
    "tensor": ("int8_tensorwise", {"rotation": 0, "scaling": "tensor"}),
    "block": ("int8_blockwise", {"block_size": 32}),
    "float": (None, {}),
}


@pytest.fixture(params=CASES, ids=str)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(128, 96), nn.Linear(128, 64)]).to(torch.bfloat16)
    layout, options = CASES[request.param]
    if layout:
        quantize_model(model, layout, **options)
    return model.requires_grad_(False)


def bits(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if isinstance(weight, QuantizedTensor):
        return weight._qdata.clone(), weight._layout_params["scale"].clone()
    return (weight.clone(),)


def same(a: tuple, b: tuple) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def dense(weight: torch.Tensor) -> torch.Tensor:
    return (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight).float()


def low_rank(seed: int, n: int = 96, k: int = 128) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(4, k, generator=g), torch.randn(n, 4, generator=g), 0.02)


def test_adding_and_removing(model):
    """The delta lands in the same layout; what comes back are the original bits, in the same storage."""
    weight = model[0].weight
    before, was, kind = bits(weight), dense(weight), getattr(weight, "_layout_params", {})
    plain = {k: v for k, v in kind.items() if not isinstance(v, torch.Tensor)}
    storage = bits(weight)[0].shape, weight.data_ptr() if not kind else weight._qdata.data_ptr()
    lora = low_rank(1)
    handle = apply_lora(model, {"0": lora}, strength=0.5)
    want = was + 0.5 * lora.delta(torch.device("cpu"))
    error = (dense(model[0].weight) - want).norm() / want.norm()
    assert error < 0.02
    assert (was - want).norm() / want.norm() > 0.1, "the delta is no rounding error"
    assert model[0].weight is weight
    now = weight._layout_params if kind else {}
    assert {k: v for k, v in now.items() if not isinstance(v, torch.Tensor)} == plain
    handle.remove()
    assert same(bits(weight), before)
    assert (weight.data_ptr() if not kind else weight._qdata.data_ptr()) == storage[1]
    handle.remove()
    assert same(bits(weight), before)


def test_several_come_off_in_any_order(model):
    """Each is added to the original, never to a rounded sum: order does not matter."""
    before = bits(model[0].weight)
    first, second = apply_lora(model, {"0": low_rank(1)}), apply_lora(model, {"0": low_rank(2)})
    first.remove()
    only_second = bits(model[0].weight)
    second.remove()
    assert same(bits(model[0].weight), before)
    with apply_lora(model, {"0": low_rank(2)}):
        assert same(bits(model[0].weight), only_second)
    assert same(bits(model[0].weight), before)


@pytest.mark.parametrize("naming", ["lora_A", "diffusion_model", "lora_unet"])
def test_files_of_the_usual_namings(model, tmp_path, naming):
    lora = low_rank(3)
    if naming == "lora_A":
        tensors = {"0.lora_A.weight": lora.down, "0.lora_B.weight": lora.up}
    elif naming == "diffusion_model":
        tensors = {
            "diffusion_model.0.lora_down.weight": lora.down,
            "diffusion_model.0.lora_up.weight": lora.up,
        }
    else:
        tensors = {"lora_unet_0.lora_down.weight": lora.down, "lora_unet_0.lora_up.weight": lora.up}
        tensors["lora_unet_0.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    scale = 0.5 if naming == "lora_unet" else 1.0
    with apply_lora(model, {"0": LowRank(lora.down, lora.up, scale)}, strength=0.02):
        want = bits(model[0].weight)
    with apply_lora(model, tmp_path / "lora.safetensors", strength=0.02):
        assert same(bits(model[0].weight), want)


@pytest.mark.parametrize(
    "module",
    [
        "transformer.0",
        "base_model.model.transformer.0",
        "model.transformer.0",
        "lora_unet_transformer_0",
    ],
)
def test_a_module_that_is_called_as_a_prefix_is_found(module):
    """GPT-2 and BERT-like models have one named transformer: it is not stripped where it is the name."""
    model = nn.ModuleDict({"transformer": nn.ModuleList([nn.Linear(8, 8)])})
    names = {n: n for n, _ in model.named_modules()}
    found = _module_name(module, names, {n.replace(".", "_"): n for n in names})
    assert found == "transformer.0"


def test_keys_that_match_nothing_change_nothing(model, tmp_path):
    before = bits(model[0].weight)
    save_file(
        {"00.lora_A.weight": torch.ones(1, 4), "00.lora_B.weight": torch.ones(4, 1)},
        tmp_path / "l.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"'00' matches no layer \(nearest: 0\)"):
        apply_lora(model, tmp_path / "l.safetensors")
    with pytest.raises(CheckpointError, match=r"LoRA for 1 is \[96, 128\], the weight \[64, 128\]"):
        apply_lora(model, {"0": low_rank(1), "1": low_rank(1)})
    assert same(bits(model[0].weight), before)


def test_add_in_place_keeps_the_rotation():
    """q.add_(delta), the plain torch way: summed in float32, rounded once."""
    torch.manual_seed(0)
    w, delta = torch.randn(64, 128), torch.randn(64, 128) * 0.05
    q = QuantizedTensor.from_float(w.bfloat16(), "TensorWiseINT8Layout", rotation=64)
    start = q.map_inner(lambda a: a, orig_dtype=torch.float32).dequantize()
    q.add_(delta.bfloat16(), alpha=2)
    want = QuantizedTensor.from_float(
        start + 2 * delta.bfloat16().float(), "TensorWiseINT8Layout", rotation=64
    )
    assert torch.equal(q._qdata, want._qdata)
    assert torch.equal(q._layout_params["scale"], want._layout_params["scale"])
    assert q.dtype == torch.bfloat16
    assert q._layout_params["rotation"] == 64
