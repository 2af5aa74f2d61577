"""Saving a MODEL as a quantized checkpoint, beside a stand-in for ComfyUI."""

from types import SimpleNamespace

import pytest
import torch
from hosted_model import Transformer, float_model, hosted
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.runtime import load_quantized


def patcher(comfy, state, delta=None):
    host = SimpleNamespace(diffusion_model=hosted(comfy, state))
    made = comfy.model_patcher.ModelPatcher(host)
    if delta is not None:
        made.patches = {"up.weight": delta}
    return made


@pytest.fixture
def node(pack, base):
    return pack.NODE_CLASS_MAPPINGS["CTQSaveInt8Checkpoint"]()


@pytest.mark.parametrize("format", ["int8_tensorwise", "int8_blockwise"])
def test_saving_a_float_model_as_int8(node, comfy, base, format):
    """LoRA included; the file loads in our runtime, and no float copy stays behind."""
    model = float_model()
    mine = base / "output" / "out.float.safetensors"
    mine.write_bytes(b"a person's own")
    made = patcher(comfy, model.state_dict(), torch.full((256, 128), 0.05))
    (name,) = node.save(made, "out", format)["result"]
    assert name == "out_00001_.safetensors"
    assert sorted(p.name for p in (base / "output").iterdir()) == ["out.float.safetensors", name]
    assert mine.read_bytes() == b"a person's own"
    assert list((base / "temp").iterdir()) == []
    loaded = Transformer(nn)
    report = load_quantized(loaded, base / "output" / name)
    assert set(report.quantized.values()) == {format}
    want = model.up.weight + 0.05
    assert (loaded.up.weight.dequantize() - want).norm() / want.norm() < 0.02
    # And a model that is INT8 already is written as it is.
    stored = load_file(base / "output" / name)
    bare = {n.removeprefix("model.diffusion_model."): t for n, t in stored.items()}
    (again,) = node.save(patcher(comfy, bare), "out", format)["result"]
    assert again == "out_00002_.safetensors"
    second = load_file(base / "output" / again)
    assert stored.keys() == second.keys()
    assert all(torch.equal(second[n].reshape(t.shape), t) for n, t in stored.items())
    assert second["model.diffusion_model.up.weight_scale"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_kept_tensors_have_the_dtype_they_were_loaded_with(node, comfy, base, dtype):
    """On a CPU ComfyUI runs most models in float32; a LoRA on a kept layer changes nothing."""
    state = {n: t.to(dtype) for n, t in float_model().state_dict().items()}
    state["up.bias"][0] = 0
    made = patcher(comfy, {n: t.float() for n, t in state.items()}, torch.randn(256, 128) * 0.01)
    made.model.diffusion_model.norm = nn.LayerNorm(128)  # ones and zeros fit every dtype
    (name,) = node.save(made, "out", "int8_tensorwise")["result"]
    stored = load_file(base / "output" / name)
    assert stored["model.diffusion_model.up.weight"].dtype == torch.int8
    kept = {n: t.dtype for n, t in stored.items() if n.endswith(("bias", "norm.weight"))}
    assert len(kept) == 3
    assert set(kept.values()) == {dtype}


def test_names_are_confined(node, comfy, base):
    made = patcher(comfy, float_model().state_dict())
    with pytest.raises(ValueError, match="no file name"):
        node.save(made, "../out", "int8_tensorwise")
    with pytest.raises(ValueError, match="no file name"):
        node.save(made, "out", "int8_tensorwise", calibration_data="/etc/passwd")
    assert list((base / "output").iterdir()) == []


def test_a_failed_conversion_leaves_nothing(node, comfy, base, monkeypatch):
    from convert_to_quant.converter.convert import run

    monkeypatch.setattr(run, "convert", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        node.save(patcher(comfy, float_model().state_dict()), "out", "int8_tensorwise")
    assert list((base / "output").iterdir()) == []
    assert list((base / "temp").iterdir()) == []
