"""The command calibrate_activation_scales: measured numbers, or synthetic ones that say so."""

import pytest
import torch
from safetensors.torch import save_file

from convert_to_quant.converter.cli.calibrate import main
from convert_to_quant.quant.algorithms import QuantizeOptions, quantize_layer
from convert_to_quant.quant.calibration import CalibrationData


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {
        "model.diffusion_model.a.weight": torch.randn(8, 16),
        "model.diffusion_model.b.weight": torch.randn(8, 32),
        "model.diffusion_model.norm.weight": torch.randn(16),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def run(*arguments) -> int:
    return main([str(a) for a in arguments])


@pytest.mark.parametrize("ending", [".samples", ".input", ""], ids=["samples", "input", "bare"])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_measured(tmp_path, checkpoint, ending, suffix, capsys):
    x = torch.randn(2, 50, 16) + 3
    save_file({f"a{ending}": x}, tmp_path / "x.safetensors")
    output = tmp_path / f"c{suffix}"
    assert run("-i", checkpoint, "-o", output, "--activations", tmp_path / "x.safetensors") == 0
    assert "1 layers matched, 1 without a record" in capsys.readouterr().out
    data = CalibrationData.load(output)
    assert not data.synthetic
    stats = data.stats("model.diffusion_model.a")
    torch.testing.assert_close(stats.channel_mean, x.reshape(-1, 16).mean(0))
    assert stats.input_scale == pytest.approx(x.abs().max().item() / 127)
    assert (stats.samples is None) == (suffix == ".json")


def test_synthetic_says_so_and_steers_nothing(tmp_path, checkpoint, capsys):
    output = tmp_path / "c.safetensors"
    assert run("-i", checkpoint, "-o", output) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    data = CalibrationData.load(output)
    assert data.synthetic
    stats = data.stats("model.diffusion_model.b")
    assert stats.samples is None
    assert 2 < stats.input_scale * 127 < 8
    weight = torch.randn(8, 32)
    steered = quantize_layer(weight, stats, QuantizeOptions("ldlq", static_activations=True))
    assert torch.equal(steered.weight._qdata, quantize_layer(weight, None, QuantizeOptions()).weight._qdata)
    assert steered.input_scale is not None


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        ({"z.samples": torch.ones(4, 16)}, "none of 1 records (z) matches any of 2 layers"),
        ({"a.samples": torch.ones(4, 17)}, "takes floats of 16 channels"),
        ({"a.samples": torch.ones(4, 16, dtype=torch.int8)}, "takes floats of 16 channels"),
        ({"a.samples": torch.full((4, 16), float("nan"))}, "holds no finite token"),
    ],
    ids=["no match", "width", "dtype", "nan"],
)
def test_refused_activations(tmp_path, checkpoint, activations, message, capsys):
    save_file(activations, tmp_path / "x.safetensors")
    output = tmp_path / "c.safetensors"
    assert run("-i", checkpoint, "-o", output, "--activations", tmp_path / "x.safetensors") == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_refused_files(tmp_path, checkpoint, capsys):
    assert run("-i", tmp_path / "none.safetensors", "-o", tmp_path / "c.json") == 1
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "torn.safetensors").write_text("nonsense")
    assert run("-i", tmp_path / "torn.safetensors", "-o", tmp_path / "c.json") == 1
    assert "not a safetensors file" in capsys.readouterr().err
    assert run("-i", checkpoint, "-o", checkpoint) == 1
    assert "is the input" in capsys.readouterr().err
    save_file({"norm.weight": torch.ones(4)}, tmp_path / "flat.safetensors")
    assert run("-i", tmp_path / "flat.safetensors", "-o", tmp_path / "c.json") == 1
    assert "holds no linear layer" in capsys.readouterr().err
    assert run("-i", checkpoint, "-o", tmp_path / "c.json", "--samples", 0) == 1
