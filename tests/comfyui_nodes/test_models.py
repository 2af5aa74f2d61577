"""Quantize model, Convert checkpoint and Compare models, beside a stand-in for ComfyUI."""

import gc
from types import SimpleNamespace

import pytest
import torch
from hosted_model import float_model, hosted
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LATENT = (1, 30, 128)
METADATA = {"config": "{}", "_quantization_metadata": "{}", "convert_to_quant.job": "of another file"}


@pytest.fixture
def nodes(pack, base):
    """The nodes by class name."""
    return {name: made() for name, made in pack.NODE_CLASS_MAPPINGS.items()}


@pytest.fixture
def model(comfy, base):
    """A MODEL out of a file with metadata, with a LoRA and an option on it."""
    path = base / "models" / "diffusion_models" / "m.safetensors"
    save_file(float_model().state_dict(), path, METADATA)
    made = comfy.model_patcher.ModelPatcher(SimpleNamespace(diffusion_model=hosted(comfy, path)), str(path))
    made.patches = {"up.weight": torch.full((256, 128), 0.05)}
    made.model_options["cfg"] = 3
    return made


@pytest.mark.parametrize("format", ["int8_tensorwise", "int8_blockwise"])
def test_quantizing_a_model(nodes, comfy, base, model, format):
    """LoRA included, any format; options stay; the files go with the model."""
    (made,) = nodes["CTQQuantizeModel"].quantize(model, format)
    weight = made.model.diffusion_model.up.weight
    want = float_model().up.weight + 0.05
    assert weight.dtype == torch.float32
    assert (weight.dequantize() - want).norm() / want.norm() < 0.02
    assert made.model_options == {"cfg": 3}
    assert comfy.utils.ProgressBar.moved
    assert len(list((base / "temp").iterdir())) == 1
    with pytest.raises(ValueError, match="quantized already"):
        nodes["CTQQuantizeModel"].quantize(made, format)
    del made, weight
    gc.collect()
    assert list((base / "temp").iterdir()) == []


def test_a_canceled_quantization_leaves_nothing(nodes, comfy, base, model):
    comfy.model_management.canceled = True
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        nodes["CTQQuantizeModel"].quantize(model, "int8_tensorwise")
    assert list((base / "temp").iterdir()) == []


def test_saving_keeps_the_metadata(nodes, base, model):
    """Some models are read by it; the list of quantized layers is the new file's own."""
    (name,) = nodes["CTQSaveInt8Checkpoint"].save(model, "out", "int8_tensorwise")["result"]
    with safe_open(base / "output" / name, "pt") as file:
        metadata = file.metadata()
    assert metadata["config"] == "{}"
    assert all(metadata.get(k) != v for k, v in METADATA.items() if k != "config")


def test_converting_a_checkpoint(nodes, base, model):
    """From a models folder to the same one, numbered; the source stays."""
    node, folder = nodes["CTQConvertCheckpoint"], base / "models" / "diffusion_models"
    before = (folder / "m.safetensors").read_bytes()
    assert node.INPUT_TYPES()["required"]["checkpoint"][0] == ["diffusion_models/m.safetensors"]
    names = [
        node.convert("diffusion_models/m.safetensors", name, "int8_tensorwise")["result"][0]
        for name in ("", "", "sub/mine")
    ]
    assert names == [
        "m-int8_tensorwise_00001_.safetensors",
        "m-int8_tensorwise_00002_.safetensors",
        "sub/mine_00001_.safetensors",
    ]
    assert all(load_file(folder / name)["up.weight"].dtype == torch.int8 for name in names)
    assert (folder / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["../m.safetensors", "/etc/passwd", "vae/m.safetensors", "diffusion_models/../m", "diffusion_models"],
)
def test_only_checkpoints_of_the_models_folders_are_converted(nodes, model, name):
    with pytest.raises(ValueError, match=r"no file name|no checkpoint"):
        nodes["CTQConvertCheckpoint"].convert(name, "", "int8_tensorwise")
    with pytest.raises(ValueError, match="no file name"):
        nodes["CTQConvertCheckpoint"].convert("diffusion_models/m.safetensors", "../x", "int8_tensorwise")


class Decoder:
    """A VAE: latents [1, 30, 128] as an image of 30 x 40."""

    def decode(self, latents):
        return latents[..., :120].reshape(1, 30, 40, 3).sigmoid()


def compare(nodes, reference, candidate, **more):
    latent = {"samples": torch.randn(LATENT, generator=torch.Generator().manual_seed(1))}
    setting = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    node = nodes["CTQCompareModels"]
    return node.compare(reference, candidate, [], [], latent, **setting, amplify=8.0, **more)


def test_comparing_two_models(nodes, model):
    """Figures as computed by hand; reference, candidate and difference beside each other."""
    (quantized,) = nodes["CTQQuantizeModel"].quantize(model, "int8_tensorwise")
    image, text = compare(nodes, model, quantized, vae=Decoder())["result"]
    x = torch.randn(LATENT, generator=torch.Generator().manual_seed(1))
    want, got = model.sample(x), quantized.sample(x)
    db = 10 * torch.log10(want.double().square().sum() / (got - want).double().square().sum())
    assert f"latents: {db:.1f} dB SQNR" in text
    assert db > 25
    assert image.shape == (1, 30, 120, 3)
    a, b, difference = image.split(40, dim=2)
    assert torch.equal(a, Decoder().decode(want))
    torch.testing.assert_close(difference, ((b - a).abs() * 8).clamp(0, 1))
    psnr = 10 * torch.log10(1 / (b - a).double().square().mean())
    assert f"images: {psnr:.1f} dB PSNR" in text


def test_a_model_compared_with_itself(nodes, model, monkeypatch):
    """No error, no VAE needed."""
    monkeypatch.setattr(type(model), "sample", lambda self, x: torch.randn(1, 4, 6, 5, generator=_seed(2)))
    image, text = compare(nodes, model, model)["result"]
    assert "latents: inf dB SQNR" in text
    assert "PSNR" not in text
    assert image.shape == (1, 6, 15, 3)
    assert not image[:, :, 10:].any()


def _seed(n):
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("word", ["w4a8", "w6a8", "int4", "fp8", "int8"])
@pytest.mark.parametrize("kind", ["CTQConvertCheckpoint", "CTQQuantizeModel", "CTQSaveInt8Checkpoint"])
def test_every_word_for_a_format_can_be_chosen(nodes, kind, word):
    """The usual format is what a new node shows."""
    words, more = nodes[kind].INPUT_TYPES()["required"]["format"]
    assert word in words
    assert words[0] == more["default"] == "int8_tensorwise"
    assert len(words) == len(set(words))


@pytest.mark.parametrize("word", ["w4a8", "fp8", "int8"])
def test_converting_to_other_formats(nodes, base, model, word):
    node = nodes["CTQConvertCheckpoint"]
    (name,) = node.convert("diffusion_models/m.safetensors", word, word)["result"]
    stored = load_file(base / "models" / "diffusion_models" / name)
    assert "up.comfy_quant" in stored
