"""NaN, Inf, and weights at the ends of a dtype's range: converted, or told, never passed over."""

import json
import math

import pytest
import torch
from format_cases import WRITTEN
from models import block_weights, save
from quantized import LAYER, load

from convert_to_quant import convert_to_int8
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.formats.errors import ConversionError

WEIGHT = f"{LAYER}.weight"
LARGEST = torch.finfo(torch.float32).max


def _made(folder, change, dtype=torch.float32):
    tensors = block_weights(hidden=128, dtype=dtype)
    change(tensors)
    return save(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_kept_tensor_that_is_not_finite_is_warned_of(tmp_path, value, dtype):
    def spoil(t):
        t["final_layer.weight"][3, 4:6] = value

    model = _made(tmp_path, spoil, dtype)
    report = convert_to_int8(model, tmp_path / "out.safetensors", preset="none")
    (warning,) = report.warnings
    assert warning.startswith("final_layer.weight: holds NaN or Inf (2 of 8192 values, the first at 388)")
    kept = load(tmp_path / "out.safetensors")[0]["final_layer.weight"]
    assert torch.equal(kept.isnan() | kept.isinf(), ~load(model)[0]["final_layer.weight"].isfinite())


def test_strict_refuses_it_before_anything_is_written(tmp_path, capsys):
    model = _made(tmp_path, lambda t: t["x_embedder.bias"].fill_(math.nan))
    assert main(["-i", str(model), "-o", str(tmp_path / "out.safetensors"), "--strict"]) == 1
    assert "--strict: x_embedder.bias: holds NaN or Inf (128 of 128" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_command_and_its_report_tell_of_it(tmp_path, capsys):
    model = _made(tmp_path, lambda t: t["x_embedder.bias"][1:2].fill_(math.inf))
    argv = ["-i", str(model), "-o", str(tmp_path / "out.safetensors"), "--json", str(tmp_path / "r.json")]
    assert main(argv) == 0
    assert "warning: x_embedder.bias: holds NaN or Inf (1 of 128" in capsys.readouterr().err
    assert "x_embedder.bias" in json.loads((tmp_path / "r.json").read_text())["warnings"][0]


def test_weights_that_become_zero_are_told(tmp_path):
    model = _made(tmp_path, lambda t: t[WEIGHT].mul_(1e-36))
    report = convert_to_int8(model, tmp_path / "out.safetensors")
    layer = next(r for r in report.layers if r.name == LAYER)
    assert layer.sqnr_db == pytest.approx(0.0, abs=1e-6)
    assert any(w.startswith(LAYER) and "384 of 384 rows looked at become zero" in w for w in report.warnings)
    with pytest.raises(ConversionError, match=rf"--strict: {LAYER}: 384 of 384 rows"):
        convert_to_int8(model, tmp_path / "strict.safetensors", strict=True)


@pytest.mark.parametrize("size", [1e-20, 1e-25, 1e15, 1e30])
def test_the_sqnr_is_right_however_small_or_large_weights_are(tmp_path, size):
    convert_to_int8(_made(tmp_path, lambda t: None), tmp_path / "plain.safetensors")
    plain = verify(tmp_path / "model.safetensors", tmp_path / "plain.safetensors")
    model = _made(tmp_path, lambda t: t[WEIGHT].mul_(size))
    report = convert_to_int8(model, tmp_path / "out.safetensors")
    own = {r.name: r.weight_db for r in plain.layers}
    assert {r.name: r.sqnr_db for r in report.layers} == pytest.approx(own, abs=0.1)
    checked = verify(model, tmp_path / "out.safetensors")
    assert checked.ok
    assert {r.name: r.weight_db for r in checked.layers} == pytest.approx(own, abs=0.1)


@pytest.mark.parametrize("options", [{"convrot": False}, {"scaling_mode": "block"}], ids=str)
def test_float32s_largest_weights_convert(tmp_path, options):
    def spoil(t):
        t[WEIGHT][3, 5:9], t[WEIGHT][5, ::3] = LARGEST, -LARGEST

    model = _made(tmp_path, spoil)
    convert_to_int8(model, tmp_path / "out.safetensors", **options)
    assert verify(model, tmp_path / "out.safetensors").ok


def test_one_largest_weight_converts_rotated_and_many_are_told_for_what_they_are(tmp_path):
    model = _made(tmp_path, lambda t: t[WEIGHT][3, 5:6].fill_(LARGEST))
    convert_to_int8(model, tmp_path / "one.safetensors")
    model = _made(tmp_path, lambda t: t[WEIGHT][3].fill_(LARGEST))
    with pytest.raises(ConversionError, match=r"holds 3.40\d+e\+38; rotated, they leave"):
        convert_to_int8(model, tmp_path / "row.safetensors")


def test_small_weights_that_float16_makes_zero_are_told(tmp_path):
    model = _made(tmp_path, lambda t: t[WEIGHT][0].fill_(1e-9))
    options = {"custom_layers": "attn.qkv", "custom_type": "fp16"}
    report = convert_to_int8(model, tmp_path / "out.safetensors", **options)
    text = "128 of its 49152 values are below float16's smallest, 6e-08, and become zero"
    assert [w for w in report.warnings if LAYER in w] == [f"{WEIGHT}: {text}"]
    with pytest.raises(ConversionError, match=r"--strict: blocks\.0\.attn\.qkv\.weight: 128 of its"):
        convert_to_int8(model, tmp_path / "strict.safetensors", strict=True, **options)


@pytest.mark.parametrize("form", ["w4a8", "w6a8"])
def test_a_rotation_that_leaves_float32_is_refused_by_formats_that_decode_through_tables(tmp_path, form):
    """A bfloat16 at its largest is no float32 beyond what the check before looks for."""

    def spoil(t):
        t[WEIGHT][7] = torch.finfo(torch.bfloat16).max

    model = _made(tmp_path, spoil, torch.bfloat16)
    with pytest.raises(ConversionError, match=f"{WEIGHT}: holds 3.38953e.38; rotated, they leave the range"):
        convert_to_int8(model, tmp_path / "out.safetensors", format=form)


@pytest.mark.parametrize("value", [3e38, math.inf, math.nan], ids=str)
@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_an_original_that_is_not_finite_fails_a_verification(tmp_path, case, value):
    model = _made(tmp_path, lambda t: None)
    convert_to_int8(model, tmp_path / "out.safetensors", **case.options)
    report = verify(_made(tmp_path, lambda t: t[WEIGHT][7].fill_(value)), tmp_path / "out.safetensors")
    assert [r.name for r in report.layers if r.fault] == [LAYER]
