"""What the report says with calibration: the error of outputs, for tokens that no rounding has seen."""

import pytest
import torch
from models import block_weights, layers, save
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.formats import Int8Tensorwise
from convert_to_quant.kernels import rotate
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer
from convert_to_quant.quant.calibration import CalibrationData
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quant.calibration.held_back import hold_back
from convert_to_quant.quantization import convert_to_int8

LAYER = "blocks.1.mlp.fc2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a calibration of all of its layers but one, and the files made with it."""
    folder = tmp_path_factory.mktemp("figures")
    weights = block_weights(dtype=torch.float32)
    save(folder / "m.safetensors", weights)
    save_calibration(
        folder / "c.safetensors",
        {
            name: LayerStats(inputs(weights[f"{name}.weight"].shape[1], i))
            for i, name in enumerate(layers()[1:])
        },
    )
    return folder


def inputs(columns, seed, n=1024):
    """Tokens with a mean, that lie near a few directions."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(columns // 16, columns, generator=g)
    x = torch.randn(n, columns // 16, generator=g) @ basis + 0.1 * torch.randn(n, columns, generator=g)
    return (x + 3).bfloat16()


def made(folder, name, **options):
    options["calibration_data"] = str(folder / "c.safetensors")
    report = convert_to_int8(
        folder / "m.safetensors", folder / f"{name}.safetensors", overwrite=True, **options
    )
    return {r.name: r for r in report.layers}, report


def as_it_runs(folder, name, tokens):
    """Return the output SQNR of LAYER with int8 activations in float64, from what the file holds."""
    out, source = load_file(str(folder / f"{name}.safetensors")), block_weights(dtype=torch.float32)
    weight, scale = (out[f"{LAYER}.{part}"].double() for part in ("weight", "weight_scale"))
    x = tokens.float()
    exact = x.double() @ source[f"{LAYER}.weight"].double().T
    turned = rotate(x, 256)
    size = turned.abs().amax(1, keepdim=True) / 127
    lost = ((turned / size).round() * size).double() @ (weight * scale.view(-1, 1)).T - exact
    return float(10 * torch.log10(exact.square().sum() / lost.square().sum()))


def test_the_figure_is_that_of_tokens_which_the_rounding_has_not_seen(folder):
    reports, _ = made(folder, "q")
    record = CalibrationData.load(folder / "c.safetensors").stats(LAYER)
    rest, tokens = hold_back(record)
    assert reports[LAYER].output_db == pytest.approx(as_it_runs(folder, "q", tokens), abs=0.05)
    assert reports[layers()[0]].output_db is None, "it has no record"
    weight = block_weights(dtype=torch.float32)[f"{LAYER}.weight"]
    alone = quantize_layer(weight, rest, QuantizeOptions("quip", Int8Tensorwise(rotation=256)))
    assert torch.equal(load_file(str(folder / "q.safetensors"))[f"{LAYER}.weight"], alone.weight._qdata)


def test_calibration_raises_the_output_and_lowers_the_weight(folder):
    rounded, _ = made(folder, "r", simple=True)
    fitted, report = made(folder, "q")
    for name in layers()[1:]:
        assert fitted[name].output_db > rounded[name].output_db + 1
        assert fitted[name].sqnr_db < rounded[name].sqnr_db
    by_output = sorted(report.layers, key=lambda r: r.sqnr_db if r.output_db is None else r.output_db)
    assert report.worst() == by_output[:5]
    assert f"worst layer {by_output[0].judged_db:.1f} dB" in report.summary()


def test_the_table_shows_both_and_says_why_they_differ(folder, capsys):
    command = ["-i", str(folder / "m.safetensors"), "-o", str(folder / "t.safetensors"), "--overwrite"]
    assert main([*command, "--calibration-data", str(folder / "c.safetensors"), "--verbose"]) == 0
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.startswith("layer "))
    assert head.split()[2:6] == ["output", "dB", "weight", "dB"]
    without = next(line for line in text.splitlines() if line.startswith(layers()[0]))
    assert without.split()[4] == "-"
    assert "With calibration the weight's falls" in text
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "SQNR dB" in text
    assert "Output dB" not in text


def test_a_corrected_bias_counts(folder):
    name = "blocks.1.attn.qkv"
    options = {"simple": True, "convrot": False, "scaling_mode": "tensor"}
    plain, fixed = (made(folder, "b", bias_correction=on, **options)[0][name] for on in (False, True))
    assert fixed.output_db > plain.output_db + 0.5
    assert fixed.sqnr_db == plain.sqnr_db


def test_a_poor_output_is_warned_about_and_a_poor_weight_is_not(folder):
    reports, _ = made(folder, "q")
    weights = [r.sqnr_db for r in reports.values() if r.output_db is not None]
    limit = (max(weights) + min(r.output_db for r in reports.values() if r.output_db is not None)) / 2
    assert max(weights) < limit, "or the limit tells nothing"
    options = {"report_quality": True, "quality_threshold": limit}
    _, report = made(folder, "w", **options)
    assert not [w for w in report.warnings if any(w.startswith(f"{n}:") for n in layers()[1:])]
    _, report = made(folder, "w", **{**options, "quality_threshold": 99.0})
    assert sum("dB of output after" in w for w in report.warnings) == len(layers()) - 1
