"""``ctq compare``: one model, two checkpoints."""

import json
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from convert_to_quant.converter.cli.compare import main
from convert_to_quant.converter.cli.main import main as command
from convert_to_quant.converter.compare.run import compare
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.runtime import quantize_model, save_quantized

FACTORY = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(128, 256), nn.LayerNorm(256), nn.Linear(256, 128)

        def forward(self, x, shift=None):
            x = self.down(self.norm(nn.functional.gelu(self.up(x)))) + x
            return {"sample": x if shift is None else x + shift}

    def make(tokens=12, batch=2):
        return Net(), {"x": torch.randn(batch, tokens, 128), "shift": torch.ones(1)}

    def plain():
        return Net(), torch.randn(3, 128)

    def wrong():
        return Net()
"""


@pytest.fixture
def files(tmp_path):
    """(factory file, float checkpoint, INT8 checkpoint)."""
    source = tmp_path / "net.py"
    source.write_text(textwrap.dedent(FACTORY))
    names: dict = {}
    exec(source.read_text(), names)
    torch.manual_seed(0)
    model = names["Net"]().to(torch.bfloat16)
    save_quantized(model, tmp_path / "a.safetensors")
    quantize_model(model)
    save_quantized(model, tmp_path / "b.safetensors")
    return source, tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_every_case_is_scored(files):
    """Sizes halve, outputs stay near, and the edge cases run: strides, one token, many, batches, dtypes."""
    source, a, b = files
    result = compare(str(a), str(b), f"{source}:make", long=600, runs=1)
    assert [c.name for c in result.cases] == [
        "as given",
        "non-contiguous inputs",
        "one token",
        "600 tokens",
        "three batches",
        "fp32",
        "bf16",
        "fp16",
    ]
    assert all(c.sqnr > 30 and c.cosine > 0.999 for c in result.cases)
    assert result.candidate.weight_bytes < 0.6 * result.reference.weight_bytes
    assert result.candidate.weight_bytes <= 1.05 * result.candidate.file_bytes
    assert result.candidate.int8_weights == 2
    assert len(result.layers) == 2 * 9
    assert all(c.sqnr > 30 for c in result.layers)
    assert all(c.candidate_seconds > 0 for c in result.cases)


def test_the_same_checkpoint_twice_is_the_same(files):
    """Fixed seeds: no noise of its own."""
    source, _, b = files
    result = compare(str(b), str(b), f"{source}:make", long=64, runs=1)
    assert all(c.sqnr == float("inf") for c in result.cases)


def test_the_command(files, capsys, tmp_path):
    """Report, JSON and exit codes."""
    source, a, b = files
    args = [str(a), str(b), "--model", f"{source}:plain", "--runs", "1", "--dtype", "fp32"]
    assert main([*args, "--json", str(tmp_path / "r.json"), "--min-sqnr", "20"]) == 0
    out = capsys.readouterr().out
    assert "weights in memory, MB" in out
    assert "not run: the factory takes no keyword 'tokens'" in out
    assert json.loads((tmp_path / "r.json").read_text())["candidate"]["int8_weights"] == 2
    assert main([*args, "--min-sqnr", "90"]) == 1
    assert "below 90.0 dB" in capsys.readouterr().err


def test_a_dropped_rotation_flag_shows(files):
    """The silent failure of this format: it loads, and the figure says what the picture would."""
    source, a, b = files
    tensors = load_file(b)
    plain = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    save_file({**tensors, "down.comfy_quant": plain}, b)
    assert compare(str(a), str(b), f"{source}:make", long=64, runs=1).worst() < 15


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:make", "no such file"),
        ("{source}:absent", "has no function 'absent'"),
        ("{source}:wrong", r"must return \(model, inputs\), not Net"),
        ("no_such_module_here:f", "cannot import"),
        ("noname", "module:function"),
    ],
    ids=["file", "function", "result", "module", "form"],
)
def test_what_cannot_be_used_is_said(files, spec, message):
    source, a, b = files
    with pytest.raises(ConversionError, match=message):
        compare(str(a), str(b), spec.format(source=source))


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_said_in_one_line(files, capsys, device):
    source, a, b = files
    assert command(["compare", str(a), str(b), "--model", f"{source}:make", "--device", device]) != 0
    err = capsys.readouterr().err
    assert f"--device {device}: " in err
    assert "Traceback" not in err


def test_a_checkpoint_that_does_not_fit_is_refused(files, tmp_path):
    source, a, _ = files
    save_quantized(nn.Linear(3, 3), tmp_path / "c.safetensors")
    with pytest.raises(ConversionError, match="does not fit the model"):
        compare(str(a), str(tmp_path / "c.safetensors"), f"{source}:make")
