"""Conversion with calibration: real inputs must reach the integers, and what they add must reach the file."""

import json

import pytest
import torch
from models import block_weights, layers, save
from safetensors.torch import load_file, save_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.kernels import dequantize
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import ConversionError, convert_to_int8, plan_int8


def correlated_inputs(k, n=512, seed=0, mean=0.0):
    """Tokens that lie near a few directions: only a true Hessian can exploit that."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(k // 16, k, generator=g)
    return torch.randn(n, k // 16, generator=g) @ basis + 0.05 * torch.randn(n, k, generator=g) + mean


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "m.safetensors", block_weights(dtype=torch.float32))


def record(path, names, prefix="", synthetic=False, mean=0.0):
    weights = block_weights()
    records = {}
    for i, name in enumerate(names):
        x = correlated_inputs(weights[f"{name}.weight"].shape[1], seed=i, mean=mean)
        records[prefix + name] = LayerStats(
            x.bfloat16(), x.abs().amax(0), x.mean(0), float(x.abs().max() / 127)
        )
    return save_calibration(path, records, synthetic=synthetic)


def config_of(tensors, layer):
    return json.loads(bytes(tensors[f"{layer}.comfy_quant"].numpy()))


def restored(tensors, layer):
    group = config_of(tensors, layer).get("convrot_groupsize", 0)
    return dequantize(tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"], torch.float32, group)


def output_error(path, layer, index, mean=0.0, bias=None):
    """Squared error of the layer's outputs on new tokens, relative to the outputs."""
    out, source = load_file(str(path)), block_weights(dtype=torch.float32)[f"{layer}.weight"]
    x = correlated_inputs(source.shape[1], n=2048, seed=index, mean=mean)
    wanted = x @ source.T
    error = x @ restored(out, layer).T - wanted
    return float(error.square().sum() / wanted.square().sum())


@pytest.mark.parametrize("scaling", ["row", "tensor", "block"])
def test_real_inputs_reach_the_integers(tmp_path, model, scaling):
    calibration = record(tmp_path / "c.safetensors", layers())
    convert_to_int8(model, tmp_path / "rtn.safetensors", scaling_mode=scaling)
    report = convert_to_int8(
        model, tmp_path / "q.safetensors", scaling_mode=scaling, calibration_data=str(calibration)
    )
    expected = "ldlq" if scaling == "block" else "quip"
    assert {r.algorithm for r in report.layers} == {expected}
    for i, layer in enumerate(layers()):
        rtn, quip = (output_error(tmp_path / f, layer, i) for f in ("rtn.safetensors", "q.safetensors"))
        assert quip < rtn / 4, f"{layer}: {rtn / quip:.1f} times less error"


def test_the_default_without_calibration_is_rounding(model, tmp_path):
    report = convert_to_int8(model, tmp_path / "q.safetensors")
    assert {r.algorithm for r in report.layers} == {"rtn"}


def test_simple_wins_over_calibration(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers())
    convert_to_int8(model, tmp_path / "a.safetensors", simple=True, calibration_data=str(calibration))
    convert_to_int8(model, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_ldlq_is_not_rotated_unless_asked(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers())
    for name in ("ldlq", "gptq"):
        convert_to_int8(
            model, tmp_path / f"{name}.safetensors", optimizer=name, calibration_data=str(calibration)
        )
        assert "convrot" not in config_of(load_file(str(tmp_path / f"{name}.safetensors")), layers()[0])
    assert (tmp_path / "ldlq.safetensors").read_bytes() == (tmp_path / "gptq.safetensors").read_bytes()
    options = {"calibration_data": str(calibration), "convrot": True}
    convert_to_int8(model, tmp_path / "r.safetensors", optimizer="ldlq", **options)
    convert_to_int8(model, tmp_path / "q.safetensors", optimizer="quip", calibration_data=str(calibration))
    assert (tmp_path / "r.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()


def test_data_free_ldlq_says_that_it_is_rounding(tmp_path, model):
    report = convert_to_int8(model, tmp_path / "q.safetensors", optimizer="quip")
    convert_to_int8(model, tmp_path / "rtn.safetensors")
    assert (tmp_path / "q.safetensors").read_bytes() == (tmp_path / "rtn.safetensors").read_bytes()
    assert any("LDLQ equals rounding to nearest" in note for note in report.notes)


def test_learned_rounding_without_calibration_is_told_where_it_cannot_help(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers()[:2])
    for data, told in ((None, "6 of 6"), (str(calibration), "4 of 6")):
        notes = plan_int8(model, optimizer="adamw", calibration_data=data).notes
        (line,) = [note for note in notes if "learned rounding" in note]
        assert line.startswith(f"{told} layers have no calibration")
    assert not any("learned rounding" in note for note in plan_int8(model).notes)


def test_synthetic_inputs_steer_nothing(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers(), synthetic=True)
    report = convert_to_int8(model, tmp_path / "q.safetensors", calibration_data=str(calibration))
    assert {r.algorithm for r in report.layers} == {"rtn"}
    assert any("synthetic" in note for note in report.notes)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer."])
def test_records_are_matched_across_prefixes_and_reported(tmp_path, model, prefix):
    calibration = record(tmp_path / "c.safetensors", layers()[:4], prefix)
    report = convert_to_int8(model, tmp_path / "q.safetensors", calibration_data=str(calibration))
    assert [r.algorithm for r in report.layers] == ["quip"] * 4 + ["rtn"] * 2
    assert any("4 layers matched, 2 without a record" in note for note in report.notes)


def test_a_calibration_of_another_model_is_refused(tmp_path, model):
    x = LayerStats(samples=torch.randn(4, 8))
    calibration = save_calibration(tmp_path / "c.safetensors", {"other.layer": x})
    with pytest.raises(ConversionError, match=r"none of 1 records \(other\.layer\) matches any of 6 layers"):
        convert_to_int8(model, tmp_path / "q.safetensors", calibration_data=str(calibration))
    with pytest.raises(ConversionError, match="does not exist"):
        convert_to_int8(model, tmp_path / "q.safetensors", calibration_data=str(tmp_path / "none"))


def test_static_activations_write_their_scale(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers())
    options = {"calibration_data": str(calibration), "static_activations": True, "convrot": False}
    convert_to_int8(model, tmp_path / "q.safetensors", **options)
    out = load_file(str(tmp_path / "q.safetensors"))
    for i, layer in enumerate(layers()):
        scale = out[f"{layer}.input_scale"]
        assert scale.dtype == torch.float32
        assert scale.shape == ()
        x = correlated_inputs(block_weights()[f"{layer}.weight"].shape[1], seed=i)
        assert float(scale) == pytest.approx(float(x.abs().max()) / 127, rel=0.01)


def test_smoothquant_writes_its_factors_and_passes_the_check(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers())
    options = {"calibration_data": str(calibration), "smoothquant": True, "smoothquant_alpha": 0.6}
    report = convert_to_int8(model, tmp_path / "q.safetensors", simple=True, **options)
    assert min(r.sqnr_db for r in report.layers) > 25
    out, source = load_file(str(tmp_path / "q.safetensors")), block_weights(dtype=torch.float32)
    for layer in layers():
        factors = out[f"{layer}.pre_quant_scale"]
        assert factors.shape == (source[f"{layer}.weight"].shape[1],)
        error = restored(out, layer) * factors - source[f"{layer}.weight"]
        assert float(error.square().sum() / source[f"{layer}.weight"].square().sum()) < 1e-2


def test_bias_correction_removes_a_planted_mean(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers(), mean=3.0)
    options = {
        "calibration_data": str(calibration),
        "simple": True,
        "scaling_mode": "tensor",
        "convrot": False,
    }
    convert_to_int8(model, tmp_path / "plain.safetensors", **options)
    convert_to_int8(model, tmp_path / "fixed.safetensors", bias_correction=True, **options)
    plain, fixed = (load_file(str(tmp_path / f)) for f in ("plain.safetensors", "fixed.safetensors"))
    source = block_weights(dtype=torch.float32)
    name = "blocks.0.attn.qkv"
    assert torch.equal(plain[f"{name}.bias"], source[f"{name}.bias"]), "biases are left alone unless asked"
    index = layers().index(name)
    mean = correlated_inputs(source[f"{name}.weight"].shape[1], seed=index, mean=3.0).mean(0)
    expected = (source[f"{name}.weight"] - restored(fixed, name)) @ mean
    assert torch.allclose(fixed[f"{name}.bias"] - source[f"{name}.bias"], expected, atol=1e-5)
    assert expected.abs().max() > 1e-3
    assert set(fixed) == set(plain)


@pytest.mark.parametrize("flag", ["--bias-correction", "--static-activations", "--smoothquant"])
def test_what_needs_measured_inputs_is_refused_without(model, capsys, flag):
    assert main(["-i", str(model), flag]) == 1
    assert f"{flag} need measured inputs: give --calibration-data" in capsys.readouterr().err


def test_a_calibration_lora_weighs_its_directions(tmp_path, model):
    name, k = "blocks.0.mlp.fc1", 256
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, k, generator=g), torch.randn(512, 4, generator=g)
    lora = {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    save_file(lora, str(tmp_path / "lora.safetensors"))
    report = convert_to_int8(
        model, tmp_path / "q.safetensors", calibration_lora=str(tmp_path / "lora.safetensors")
    )
    convert_to_int8(model, tmp_path / "rtn.safetensors")
    assert {r.name: r.algorithm for r in report.layers}[name] == "quip"
    source = block_weights(dtype=torch.float32)[f"{name}.weight"]

    def error(file):
        return float(((restored(load_file(str(tmp_path / file)), name) - source) @ down.T).square().sum())

    assert error("q.safetensors") < error("rtn.safetensors") / 4


@pytest.mark.parametrize(
    "flags",
    [
        ["--quip-checkpointed", "--quip-checkpoint-segments", "3"],
        ["--quip-checkpoint-threshold", "64"],
        ["--low-memory"],
        ["--streaming-mode", "minimal", "--device", "cpu"],
    ],
    ids=" ".join,
)
def test_memory_options_change_no_bit(tmp_path, model, flags):
    calibration = record(tmp_path / "c.safetensors", layers())
    common = ["-i", str(model), "--calibration-data", str(calibration)]
    assert main([*common, "-o", str(tmp_path / "a.safetensors"), "--no-quip-checkpointed"]) == 0
    assert main([*common, "-o", str(tmp_path / "b.safetensors"), *flags]) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ["--quip-actorder"],
        ["--quip-passes", "2"],
        ["--quip-damping", "0.5"],
        ["--scale-search"],
        ["--bf16-compute", "on"],
        ["--optimizer", "ldlq"],
        ["--optimizer", "adamw", "--num_iter", "3", "--lr", "0.05"],
        ["--optimizer", "radam", "--num-iter", "3"],
        ["--optimizer", "original", "--num_iter", "3"],
    ],
    ids=" ".join,
)
def test_quality_options_reach_the_integers_and_stay_sound(tmp_path, model, flags):
    calibration = record(tmp_path / "c.safetensors", layers())
    common = ["-i", str(model), "--calibration-data", str(calibration)]
    assert main([*common, "-o", str(tmp_path / "a.safetensors"), "--no-quip-actorder"]) == 0
    assert main([*common, "-o", str(tmp_path / "b.safetensors"), *flags]) == 0
    a, b = (load_file(str(tmp_path / f)) for f in ("a.safetensors", "b.safetensors"))
    if flags[1:2] not in (["adamw"], ["radam"], ["original"]):
        assert any(not torch.equal(a[f"{layer}.weight"], b[f"{layer}.weight"]) for layer in layers())
    convert_to_int8(model, tmp_path / "rtn.safetensors")
    for i, layer in enumerate(layers()):
        assert output_error(tmp_path / "b.safetensors", layer, i) < output_error(
            tmp_path / "rtn.safetensors", layer, i
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer", "quipp"], "did you mean 'quip'"),
        (["--optimizer", "quip", "--no-convrot"], "ask for --optimizer ldlq"),
        (["--smoothquant-alpha", "2"], "between 0 and 1"),
        (["--streaming-mode", "x"], "streaming mode must be one of"),
        (["--bf16-compute", "x"], "must be auto, on or off"),
        (["--device", "tpu"], "the device must be one of"),
        (["--quip-damping", "0"], "positive"),
        (["--quip-passes", "-1"], "must not be negative"),
        (["--num_iter", "0"], "at least 1"),
    ],
    ids=str,
)
def test_impossible_values_are_code_2(model, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main(["-i", str(model), *flags])
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there(model, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    assert main(["-i", str(model), "--device", "cuda"]) == 1
    assert "--device cuda: this machine has no such device" in capsys.readouterr().err


def test_the_seed_draws_the_tokens_when_there_are_more_than_asked_for(tmp_path, model):
    calibration = record(tmp_path / "c.safetensors", layers())
    made = {}
    for seed, count in ((0, None), (1, None), (0, 64), (0, 64), (1, 64)):
        options = {
            "calibration_data": str(calibration),
            "quip_seed": seed,
            "calib_samples": count,
            "overwrite": True,
        }
        convert_to_int8(model, tmp_path / "q.safetensors", **options)
        weights = load_file(str(tmp_path / "q.safetensors")).values()
        made.setdefault((seed, count), set()).add(b"".join(w.view(torch.uint8).numpy() for w in weights))
    assert made[0, None] == made[1, None], "all tokens are used: none is drawn"
    assert len(made[0, 64]) == 1
    assert len({*made[0, 64], *made[1, 64], *made[0, None]}) == 3


def test_dry_run_shows_algorithm_and_placement_and_reads_no_weight(tmp_path, model, capsys):
    calibration = record(tmp_path / "c.safetensors", layers()[:4])
    argv = ["-i", str(model), "--dry-run", "--verbose", "--calibration-data", str(calibration)]
    assert main([*argv, "--quip-checkpointed", "--quip-checkpoint-segments", "4"]) == 0
    rows = {
        line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("blocks.")
    }
    assert "quip" in rows["blocks.0.attn.qkv"]
    assert "in 4 parts" in rows["blocks.0.attn.qkv"]
    assert "rtn" in rows["blocks.1.mlp.fc2"]
    assert "parts" not in rows["blocks.1.mlp.fc2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors", "m.safetensors"]


def test_the_order_of_columns_is_a_choice(tmp_path, model):
    calibration = str(record(tmp_path / "c.safetensors", layers()))
    made = {}
    for flag in ("", "--no-quip-actorder", "--quip-actorder"):
        output = tmp_path / f"q{flag}.safetensors"
        command = ["-i", str(model), "-o", str(output), "--calibration-data", calibration]
        assert main([*command, *filter(None, [flag])]) == 0
        made[flag] = load_file(str(output))["blocks.0.mlp.fc2.weight"]
    assert torch.equal(made[""], made["--no-quip-actorder"])
    assert not torch.equal(made[""], made["--quip-actorder"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn], ids=str)
def test_samples_in_any_float_dtype_are_computed_with(tmp_path, model, dtype):
    """As their values in float32."""
    tensors = load_file(record(tmp_path / "c.safetensors", layers()))
    files = {}
    for name, kind in {"own": dtype, "same": torch.float32}.items():
        given = {n: t.to(dtype).to(kind) if n.endswith(".samples") else t for n, t in tensors.items()}
        save_file(given, tmp_path / f"{name}.safetensors", {"format": "pt"})
        files[name] = tmp_path / f"{name}-int8.safetensors"
        convert_to_int8(model, files[name], calibration_data=str(tmp_path / f"{name}.safetensors"))
    own, same = (load_file(f) for f in files.values())
    assert all(torch.equal(own[n], same[n]) for n in same)
