"""Quantized diffusers models as people run them: offloaded, dispatched, compiled, with adapters on top."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from peers import peer
from running_models import MODELS, diffusers, output, randomized, sqnr

accelerate, peft = peer("accelerate"), peer("peft")

from convert_to_quant.comfy.quant_ops import QuantizedTensor  # noqa: E402
from convert_to_quant.diffusers import CtqConfig, disk_offload  # noqa: E402
from convert_to_quant.runtime import load_quantized  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flux")
    randomized(MODELS["flux"][0]).save_pretrained(path)
    return path


@pytest.fixture
def load(folder):
    return lambda **k: diffusers.FluxTransformer2DModel.from_pretrained(
        folder, quantization_config=CtqConfig(), **k
    )


@pytest.fixture(scope="module")
def inputs() -> dict:
    return MODELS["flux"][1](torch.Generator().manual_seed(1))


@pytest.fixture
def want(load, inputs) -> torch.Tensor:
    return output(load(), inputs)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the order of float sums, which depends on where a tensor lies in memory.

    That moves an activation over the edge between two integers here and there; a model of floats instead of
    integers is at 38 dB.
    """
    return sqnr(a, b) > 50


def quantized(model: torch.nn.Module) -> int:
    return sum(isinstance(p, QuantizedTensor) for p in model.parameters())


@pytest.mark.parametrize("how", ["block_level", "leaf_level"])
def test_groups_are_offloaded(how, load, inputs, want):
    model, groups = load(), {"num_blocks_per_group": 1} if how == "block_level" else {}
    count = quantized(model)
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=how, **groups)
    for _ in range(2):
        assert near(output(model, inputs), want)
    assert quantized(model) == count


def test_layer_after_layer_is_offloaded(load, inputs, want):
    """What enable_sequential_cpu_offload does to each model of a pipeline."""
    model = accelerate.cpu_offload(load(), CPU)
    assert all(p.is_meta for p in model.parameters())
    for _ in range(2):
        assert near(output(model, inputs), want)


def test_weights_wait_on_the_disk_as_integers(load, inputs, want, tmp_path):
    model = load()
    path = disk_offload(model, tmp_path / "new" / "off", execution_device="cpu")
    assert all(p.is_meta for p in model.parameters())
    for _ in range(2):
        assert near(output(model, inputs), want)
    other = MODELS["flux"][0]()
    load_quantized(other, path)
    assert quantized(other) == 20


def test_a_whole_model_is_offloaded(load, inputs, want):
    """What enable_model_cpu_offload does to each model of a pipeline."""
    model, hook = accelerate.cpu_offload_with_hook(load(), CPU)
    for _ in range(2):
        assert near(output(model, inputs), want)
        hook.offload()


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_is_followed(device_map, load, inputs, want):
    assert near(output(load(device_map=device_map), inputs), want)


def test_a_device_map_with_the_disk_keeps_floats_there(load, inputs, want, tmp_path):
    parts = {name: "cpu" for name, _ in load().named_children()}
    model = load(
        device_map={**parts, "single_transformer_blocks": "disk"},
        offload_folder=tmp_path / "off",
        offload_state_dict=False,
    )
    assert quantized(model.transformer_blocks) > 0
    assert quantized(model.single_transformer_blocks) == 0
    assert sqnr(output(model, inputs), want) > 30


def test_an_adapter_rides_on_top(load, inputs, want):
    """It changes the output, goes off without a trace, is fused into the integers and comes off again."""
    model = load()
    targets = ["to_q", "to_v", "proj_mlp"]
    model.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    layer = model.transformer_blocks[0].attn.to_q
    assert isinstance(layer.base_layer.weight, QuantizedTensor)
    on = output(model, inputs)
    assert not near(on, want)
    model.disable_adapters()
    assert near(output(model, inputs), want)
    model.enable_adapters()
    model.fuse_lora()
    assert isinstance(layer.base_layer.weight, QuantizedTensor)
    assert sqnr(output(model, inputs), on) > 25
    model.unfuse_lora()
    assert sqnr(output(model, inputs), on) > 25


def test_the_example_trains_a_lora(tmp_path, monkeypatch, capsys):
    """The loss falls and an adapter is written; the example itself checks that the base stays."""
    monkeypatch.setattr(sys, "argv", ["train_lora.py", "--steps", "8", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "train_lora.py"), run_name="__main__")
    _, first, _, last = capsys.readouterr().out.splitlines()[-1].split()
    assert float(last) < 0.9 * float(first)
    assert list(tmp_path.glob("*.safetensors"))
