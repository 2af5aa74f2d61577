"""A mix of formats within a size: what is written, counted, expected and refused."""

import json
import math

import pytest
import torch
from calibrated import tokens
from models import block_weights, layers, save

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.options.size import size_in_bytes
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.formats.choose import mixable
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import convert_to_int8, plan_int8

BLOCKS = 4


@pytest.fixture
def model(tmp_path):
    """Layers of uneven difficulty: every other block has outliers."""
    weights = block_weights(BLOCKS)
    for name, weight in weights.items():
        if weight.dim() == 2 and name.startswith(("blocks.1", "blocks.3")):
            weight[torch.rand(weight.shape) > 0.995] *= 30
    return save(tmp_path / "m.safetensors", weights)


def calibration(path):
    stats = {
        name: LayerStats(samples=tokens(600, 512 if name.endswith("fc2") else 256)) for name in layers(BLOCKS)
    }
    return str(save_calibration(path, stats))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("share", ["60%", "75%", "90%"])
def test_the_file_fits_and_is_right(model, tmp_path, share, calibrated):
    extra = {"calibration_data": calibration(tmp_path / "c.safetensors")} if calibrated else {}
    out = tmp_path / "o.safetensors"
    asked = {"target_size": share, "max_format": "keep", **extra}
    plan = plan_int8(str(model), str(out), **asked)
    convert_to_int8(str(model), str(out), **asked)
    assert out.stat().st_size == plan.mix.size == plan.bytes_after
    assert out.stat().st_size <= plan.mix.target == size_in_bytes(share, model.stat().st_size)
    assert verify(str(model), str(out)).ok
    assert plan.mix.metrics == {"outputs" if calibrated else "weights": 3 * BLOCKS}
    assert plan.mix.gap < 0.05


def test_more_room_never_costs_quality(model, tmp_path):
    found = [
        plan_int8(str(model), str(tmp_path / "o.safetensors"), target_size=f"{s}%", max_format="keep").mix
        for s in (56, 65, 80, 97)
    ]
    assert [m.sqnr_db for m in found] == sorted(m.sqnr_db for m in found)
    curve = found[0].curve
    assert len(curve) == 10
    assert [p.bytes for p in curve] == sorted(p.bytes for p in curve)
    assert [p.sqnr_db for p in curve] == sorted(p.sqnr_db for p in curve)
    assert all(m.curve == curve for m in found), "the curve is the model's, whatever the target"


def test_the_layers_that_lose_most_are_kept(model, tmp_path):
    """Without rotation an outlier costs its whole row."""
    asked = {"target_size": "66%", "max_format": "keep", "convrot": False}
    plan = plan_int8(str(model), str(tmp_path / "o.safetensors"), **asked)
    kept = {t.name for t in plan.tensors if t.layer and t.reason.startswith("kept, for")}
    assert kept
    assert all(name.startswith(("blocks.1", "blocks.3")) for name in kept)


def test_twice_the_same(model, tmp_path):
    outs = [tmp_path / f"{i}.safetensors" for i in (1, 2)]
    for out in outs:
        convert_to_int8(str(model), str(out), target_size="70%", max_format="keep")
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_layer_configuration_decides_for_its_layers(model, tmp_path):
    config = tmp_path / "l.json"
    config.write_text(json.dumps({r"blocks\.1\..*": {"format": "int8"}, r"blocks\.0\..*": {"skip": True}}))
    plan = plan_int8(
        str(model),
        str(tmp_path / "o.safetensors"),
        target_size="95%",
        max_format="keep",
        layer_config=str(config),
    )
    action = {t.name: t.action for t in plan.tensors if t.layer}
    assert all(action[f"blocks.1.{n}"] == "quantize" for n in ("attn.qkv", "mlp.fc1", "mlp.fc2"))
    assert all(action[f"blocks.0.{n}"] == "keep" for n in ("attn.qkv", "mlp.fc1", "mlp.fc2"))


def test_what_cannot_be(model, tmp_path, capsys):
    with pytest.raises(ConversionError, match=r"cannot become that small.*\d+ bytes"):
        plan_int8(str(model), target_size="1%")
    with pytest.raises(ConversionError, match=r"nothing to quantize.*there is room for it"):
        plan_int8(str(model), target_size="4MB", max_format="keep")
    for options, message in (
        (["--min-format", "int8"], "--target-size chooses from"),
        (["--target-size", "8 gigs"], "a size is a number of bytes"),
        (["--target-size", "50%", "--max-format", "w4a9"], "did you mean 'w4a8'"),
        (["--target-size", "50%", "--fallback", "int8"], "leave one out"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["-i", str(model), *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_the_dry_run_shows_the_curve(model, capsys):
    assert main(["-i", str(model), "--dry-run", "--target-size", "70%", "--max-format", "keep"]) == 0
    out = capsys.readouterr().out
    assert out.count("█\n") == 10
    assert "of these fit in" in out


def test_the_dry_run_draws_the_curve(model, tmp_path, capsys):
    page = tmp_path / "curve.html"
    assert main(["-i", str(model), "--dry-run", "--target-size", "70%", "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<polyline" not in text or text.count("<circle") >= 2
    assert "smallest possible size" in text
    assert main(["-i", str(model), "--html", str(page)]) == 1
    assert "needs --dry-run and --target-size" in capsys.readouterr().err


def test_formats_that_mix():
    """All that stock ComfyUI loads and that take int8 activations; never one that it refuses."""
    assert "int8" in mixable("int8")
    assert not set(mixable("int8")) & set(mixable("float8_e4m3fn"))


def test_a_layer_whose_error_arrives_nowhere_gets_the_smallest_format(model, tmp_path):
    """Nothing is different but what part of the error arrives at the output; one layer's is not known."""
    first = f"{layers(BLOCKS)[0]}"
    plain = calibration(tmp_path / "c.safetensors")
    influence = {name: 1e-6 if name.startswith("blocks.1") else 0.5 for name in layers(BLOCKS)}
    del influence[first]
    stats = {
        name: LayerStats(samples=tokens(600, 512 if name.endswith("fc2") else 256)) for name in layers(BLOCKS)
    }
    weighed = str(save_calibration(tmp_path / "w.safetensors", stats, influence=influence))
    plans = [
        plan_int8(str(model), str(tmp_path / "o.safetensors"), target_size="45%", calibration_data=data)
        for data in (plain, weighed)
    ]
    assert [p.mix.at_output for p in plans] == [0, 3 * BLOCKS - 1]
    assert [p.mix.subject for p in plans] == ["the layers' outputs", "the model's output"]
    assert "--influence" in plans[0].mix.lines()[1]
    assert f"known of {3 * BLOCKS - 1} of {3 * BLOCKS}" in plans[1].mix.lines()[1]
    bytes_each = {t.name: t.bytes_out / math.prod(t.shape) for t in plans[1].tensors if t.layer}
    low = [b for name, b in bytes_each.items() if name.startswith("blocks.1")]
    high = [b for name, b in bytes_each.items() if name.startswith(("blocks.0", "blocks.2", "blocks.3"))]
    assert max(low) < 0.6 < min(high)
