"""Block-wise and smoothed files in ComfyUI's own layers, beside a stand-in for ComfyUI."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hosted_model import float_model, hosted
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.runtime import quantize_model, save_quantized


def smoothed(model: nn.Module, rotation: int = 64) -> None:
    smooth = torch.rand(128, generator=torch.Generator().manual_seed(4)) + 0.5
    options = {"pre_quant_scale": smooth, "rotation": rotation, "input_scale": torch.tensor(0.06)}
    q = QuantizedTensor.from_float(model.up.weight, "TensorWiseINT8Layout", **options)
    model.up.weight = nn.Parameter(q, requires_grad=False)


def smoothed_blocks(model: nn.Module) -> None:
    smooth = torch.rand(128, generator=torch.Generator().manual_seed(4)) + 0.5
    q = QuantizedTensor.from_float(
        model.up.weight, "BlockWiseINT8Layout", block_size=64, pre_quant_scale=smooth
    )
    model.up.weight = nn.Parameter(q, requires_grad=False)


KINDS = {
    "block 128": lambda m: quantize_model(m, "int8_blockwise"),
    "block 32": lambda m: quantize_model(m, "int8_blockwise", block_size=32),
    "smooth": smoothed,
    "smooth, not rotated": lambda m: smoothed(m, 0),
    "smooth blocks": smoothed_blocks,
    "stock": lambda m: quantize_model(m, rotation=64),
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> str:
    return request.param


@pytest.fixture
def checkpoint(kind, tmp_path) -> tuple[nn.Module, Path]:
    """(our own model with these weights, its file)."""
    model = float_model()
    KINDS[kind](model)
    return model, save_quantized(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("kind", "name"), [("block 128", "int8_blockwise"), ("smooth", "int8_smooth")], ids=str
)
def test_stock_refuses_what_it_cannot_read(comfy, tmp_path, kind, name):
    """What the node pack is for: without it, KeyError, and not noise."""
    model = float_model()
    KINDS[kind](model)
    path = save_quantized(model, tmp_path / "a.safetensors")
    with pytest.raises(KeyError, match=name):
        hosted(comfy, path)


def test_the_old_spelling_of_smoothed_layers_is_read_too(pack, comfy, tmp_path):
    """Files of earlier versions say ``int8_tensorwise``; saved again they have the name of their own."""
    model = float_model()
    smoothed(model)
    state = load_file(save_quantized(model, tmp_path / "a.safetensors"))
    new = json.loads(bytes(state["up.comfy_quant"].tolist()))
    assert new["format"] == "int8_smooth"
    old = json.dumps({**new, "format": "int8_tensorwise"}).encode()
    host = hosted(comfy, {**state, "up.comfy_quant": torch.tensor(list(old), dtype=torch.uint8)})
    torch.testing.assert_close(host.up.weight.dequantize(), model.up.weight.dequantize())
    assert torch.equal(host.state_dict()["up.comfy_quant"], state["up.comfy_quant"])
    del state["up.pre_quant_scale"]
    with pytest.raises(ValueError, match=r"up\.pre_quant_scale is missing"):
        hosted(comfy, state)


def test_files_load_and_compute_what_our_runtime_does(pack, comfy, kind, checkpoint):
    """Block-wise and smoothed weights run in ComfyUI's own Linear; stock layers stay comfy-kitchen's."""
    ours, path = checkpoint
    model = hosted(comfy, path)
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = ours(x)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            got = model(x)
        # Rare ties of the activations fall to the other side; a wrong scale or rotation is far off.
        assert (got - want).norm() / want.norm() < 5e-3
    expected = {"block": "BlockWiseINT8Layout", "stock": "TensorWiseINT8Layout"}.get(kind.split()[0])
    if expected:
        assert model.up.weight._layout_cls == expected
    dense = ours.up.weight.dequantize()
    torch.testing.assert_close(model.up.weight.dequantize(), dense, rtol=1e-4, atol=1e-5)
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_saving_writes_the_same_file(pack, comfy, checkpoint):
    """ComfyUI's own save of such a model: same names, same bytes."""
    _, path = checkpoint
    state, written = load_file(path), hosted(comfy, path).state_dict()
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(written[name].reshape(tensor.shape), tensor), name


def test_loras_patch_and_come_off(pack, comfy, kind, checkpoint):
    """ComfyUI's patch path: the delta is added to the float weight, the layout stays, the bits come back."""
    _, path = checkpoint
    host = SimpleNamespace(diffusion_model=hosted(comfy, path))
    patcher = comfy.model_patcher.ModelPatcher(host)
    delta = torch.randn(256, 128, generator=torch.Generator().manual_seed(2)) * 0.02
    patcher.patches = {"up": delta}
    layer = host.diffusion_model.up
    before, dense, layout = (
        layer.weight._qdata.clone(),
        layer.weight.dequantize(),
        getattr(layer.weight, "_layout_cls", None),
    )
    patcher.patch()
    assert layer.weight._layout_cls == layout
    want = dense + delta
    assert (layer.weight.dequantize() - want).norm() / want.norm() < 0.03
    assert not torch.equal(layer.weight._qdata, before)
    patcher.unpatch()
    assert torch.equal(layer.weight._qdata, before)
    assert torch.equal(layer.weight.dequantize(), dense)


def test_patches_applied_during_the_forward_see_the_float_weight(pack, comfy, checkpoint):
    """The low-memory way, where a function changes the dequantized weight on the fly."""
    ours, path = checkpoint
    model = hosted(comfy, path)
    x, delta = torch.randn(5, 128), torch.randn(256, 128) * 0.02
    model.up.weight_function.append(lambda w: w + delta)
    dense = ours.up.weight.dequantize() if isinstance(ours.up.weight, QuantizedTensor) else ours.up.weight
    with torch.no_grad():
        want = nn.functional.linear(x, dense + delta, ours.up.bias)
        torch.testing.assert_close(model.up(x), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("broken", ["no table", "no int8", "no factory", "no comfy"])
def test_a_comfyui_without_the_hooks_gets_a_message(comfy, monkeypatch, caplog, broken, request):
    """One line that says what is missing; the nodes are there all the same; nothing is changed."""
    if broken == "no table":
        del comfy.quant_ops.QUANT_ALGOS
    elif broken == "no int8":
        comfy.quant_ops.QUANT_ALGOS.clear()
    elif broken == "no factory":
        del comfy.ops.mixed_precision_ops
    else:
        monkeypatch.setitem(sys.modules, "comfy.ops", None)
    with caplog.at_level(logging.WARNING):
        pack = request.getfixturevalue("pack")
    assert "is not available" in caplog.text
    assert {"no comfy": "not running inside ComfyUI"}.get(broken, "update ComfyUI") in caplog.text
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys() > {"CTQInt8Kernel"}
    assert getattr(comfy.quant_ops, "QUANT_ALGOS", {}).keys() <= {"int8_tensorwise"}


def test_everything_can_be_taken_back(pack, comfy):
    hooks = sys.modules[f"{pack.__name__}.hooks"]
    assert comfy.quant_ops.QUANT_ALGOS.keys() == {"int8_tensorwise", "int8_blockwise", "int8_smooth"}
    assert "pre_quant_scale" in comfy.quant_ops.QUANT_ALGOS["int8_tensorwise"]["parameters"]
    patched = comfy.ops.mixed_precision_ops
    hooks.install()
    assert comfy.ops.mixed_precision_ops is patched
    folding = comfy.model_patcher.ModelPatcher.add_patches
    hooks.uninstall()
    assert comfy.model_patcher.ModelPatcher.add_patches is folding.__wrapped__
    assert comfy.quant_ops.QUANT_ALGOS.keys() == {"int8_tensorwise"}
    assert comfy.quant_ops.QUANT_ALGOS["int8_tensorwise"]["parameters"] == {"weight_scale"}
    assert comfy.ops.mixed_precision_ops is patched.__wrapped__


def test_outside_comfyui_importing_changes_nothing():
    """No comfy, no hooks, no error."""
    assert "comfy" not in sys.modules
    import convert_to_quant.comfyui_nodes as nodes

    assert "CTQInt8Kernel" in nodes.NODE_CLASS_MAPPINGS
