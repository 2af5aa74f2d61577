"""Conversions with LoRAs, from the command line's flags to the bytes of the output."""

import json

import pytest
import torch
from lora_files import TINY_FLUX, flux_weights, low_rank, rand, save_lora
from models import block_weights, save
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import ConversionError, convert_to_int8

FC1 = "blocks.0.mlp.fc1"
N, K = 512, 256


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", block_weights())


@pytest.fixture
def lora(tmp_path):
    tensors, _ = low_rank(f"diffusion_model.{FC1}", N, K)
    return save_lora(tmp_path / "lora.safetensors", tensors)


def plus(model, path, changes):
    """A copy of a model with float64 changes added, its changed weights in float32."""
    tensors = load_file(model)
    for name, change in changes.items():
        tensors[name] = (tensors[name].double() + change).float()
    return save(path, tensors)


def test_the_output_is_that_of_a_model_merged_beforehand(tmp_path, model):
    changes, tensors = {}, {}
    for layer in ("blocks.0.attn.qkv", FC1, "blocks.1.mlp.fc2"):
        n, k = load_file(model)[f"{layer}.weight"].shape
        part, changes[f"{layer}.weight"] = low_rank(f"lora_unet_{layer.replace('.', '_')}", n, k, alpha=2)
        tensors |= part
    lora = save_lora(tmp_path / "lora.safetensors", tensors)
    report = convert_to_int8(model, tmp_path / "a.safetensors", merge_lora_path=lora)
    convert_to_int8(plus(model, tmp_path / "merged.safetensors", changes), tmp_path / "b.safetensors")
    ours, theirs = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.dtype == torch.int8:  # float32 sums: a value on the edge may round the other way
            steps = (tensor.int() - theirs[name].int()).abs()
            assert steps.max() <= 1
            assert (steps > 0).float().mean() < 1e-3
        else:
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=0)
    assert min(r.sqnr_db for r in report.layers) > 35


def test_a_merge_changes_nothing_else(tmp_path, model, lora):
    convert_to_int8(model, tmp_path / "a.safetensors", merge_lora_path=lora)
    convert_to_int8(model, tmp_path / "b.safetensors")
    ours, plain = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    changed = {name for name in plain if not torch.equal(ours[name], plain[name])}
    assert changed == {f"{FC1}.weight", f"{FC1}.weight_scale"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_kept_layers_are_merged_and_stay_in_their_dtype(tmp_path, dtype):
    model = save(tmp_path / "model.safetensors", block_weights(dtype=dtype))
    n, k = 256, 64
    tensors, change = low_rank("x_embedder", n, k)
    bias = rand(n, seed=4)
    lora = save_lora(tmp_path / "lora.safetensors", tensors | {"x_embedder.diff_b": bias})
    report = convert_to_int8(model, tmp_path / "q.safetensors", merge_lora_path=lora)
    source, found = load_file(model), load_file(tmp_path / "q.safetensors")
    for name, delta in (("x_embedder.weight", change), ("x_embedder.bias", bias)):
        assert found[name].dtype == dtype
        want = source[name].double() + delta
        half_a_step = torch.finfo(dtype).eps / 2
        torch.testing.assert_close(found[name].double(), want, rtol=1.01 * half_a_step, atol=1e-7)
    reasons = {t.name: t.reason for t in report.kept}
    assert reasons["x_embedder.weight"].endswith(", merged 1 LoRA")
    assert "merged" not in reasons["final_layer.weight"]


def test_a_sum_that_overflows_a_kept_dtype_is_refused(tmp_path):
    model = save(tmp_path / "model.safetensors", block_weights(dtype=torch.float16))
    lora = save_lora(tmp_path / "lora.safetensors", {"x_embedder.diff_b": torch.full((256,), 1e6)})
    with pytest.raises(ConversionError, match=r"x_embedder.bias: with .* merged it holds values that F16"):
        convert_to_int8(model, tmp_path / "q.safetensors", merge_lora_path=lora)
    assert not (tmp_path / "q.safetensors").exists()


def test_scaled_fp8_weights_are_merged_when_quantized_and_refused_when_kept(tmp_path):
    tensors = block_weights()
    for name in (f"{FC1}.weight", "x_embedder.weight"):
        scale = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[name + "_scale"] = scale
    model = save(tmp_path / "model.safetensors", tensors)
    part, _ = low_rank(FC1, N, K)
    report = convert_to_int8(
        model, tmp_path / "q.safetensors", merge_lora_path=save_lora(tmp_path / "a.safetensors", part)
    )
    assert {r.name for r in report.layers if r.note} == {FC1}
    part, _ = low_rank("x_embedder", 256, 64)
    with pytest.raises(
        ConversionError, match=r"into x_embedder.weight, which is stored as F8_E4M3 and kept so"
    ):
        convert_to_int8(
            model, tmp_path / "q.safetensors", merge_lora_path=save_lora(tmp_path / "b.safetensors", part)
        )


def test_the_report_tells_what_was_merged_and_what_matched_nothing(tmp_path, model, lora):
    tensors, _ = low_rank(f"lora_unet_{FC1.replace('.', '_')}", N, K)
    stray, _ = low_rank("lora_te1_text_model_layers_0_fc", 8, 8)
    second = save_lora(tmp_path / "second.safetensors", tensors | stray | {"note": torch.zeros(1)})
    report = convert_to_int8(model, tmp_path / "q.safetensors", merge_lora_paths=[lora, second])
    notes = {r.name: r.note for r in report.layers}
    assert notes.pop(FC1) == "merged 2 LoRAs"
    assert set(notes.values()) == {None}
    assert "LoRAs merged: 2 (2 keys unmatched)" in report.summary()
    assert report.loras[1].unmatched == ("lora_te1_text_model_layers_0_fc", "note")
    assert [round(one.scale, 4) for one in report.loras] == [1.0, 0.9]
    text = "\n".join(report.notes)
    assert f"LoRA {lora}: changes 1 tensors, scale 1" in text
    assert f"LoRA {second}: 2 keys match no layer: lora_te1_text_model_layers_0_fc, note" in text
    assert json.loads(json.dumps(report.to_dict()))["loras"][1]["unmatched"][1] == "note"


def test_a_lora_none_of_whose_keys_match_is_an_error_and_writes_nothing(tmp_path, model, capsys):
    tensors, _ = low_rank("lora_unet_blocks_0_mlp_fc9", N, K)
    lora = save_lora(tmp_path / "lora.safetensors", tensors)
    output = tmp_path / "q.safetensors"
    assert main(["-i", str(model), "-o", str(output), "--merge-lora", str(lora)]) == 1
    error = capsys.readouterr().err
    assert "none of its 1 modules matches" in error
    assert "blocks.0.mlp.fc" in error
    assert not list(tmp_path.glob("q.*"))


@pytest.mark.parametrize("damage", ["cut", "missing", "pickle"])
def test_a_damaged_lora_is_refused(tmp_path, model, lora, damage):
    if damage == "cut":
        lora.write_bytes(lora.read_bytes()[:-10])
    elif damage == "missing":
        lora.unlink()
    else:
        lora.write_bytes(b"\x80\x02}" + b"x" * 64)
    with pytest.raises(ConversionError, match=r"lora.safetensors: (truncated|no such file|a PyTorch pickle)"):
        convert_to_int8(model, tmp_path / "q.safetensors", merge_lora_path=lora)


@pytest.mark.parametrize(
    ("flags", "scales"),
    [
        (["--merge-loras", "A", "B", "A"], (1.0, 0.9, 0.81)),
        (["--merge_loras", "A", "B", "--merge_lora_scale", "0.5"], (0.5, 0.45)),
        (["--merge-lora", "A", "--merge-loras", "B", "--merge-lora-dampen"], (1.0, 0.9)),
        (["--merge-loras", "A", "B", "--merge-lora-dampen=False"], (1.0, 1.0)),
        (["--merge_lora", "A", "--merge-lora-scale", "-2", "--merge_lora_dampen", "no"], (-2.0,)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_set_the_scales(tmp_path, model, lora, flags, scales):
    other = save_lora(tmp_path / "b.safetensors", low_rank(FC1, N, K, seed=3)[0])
    named = [{"A": str(lora), "B": str(other)}.get(flag, flag) for flag in flags]
    args = ["-i", str(model), "-o", str(tmp_path / "q.safetensors"), "--json", str(tmp_path / "r.json")]
    assert main([*args, *named]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert [one["scale"] for one in report["loras"]] == pytest.approx(scales)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_lora_dampen": "maybe"}, "true or false is expected, not 'maybe'"),
        ({"merge_lora_scale": float("nan")}, "a finite number is expected"),
    ],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(input_file="x", **options)


def test_one_path_needs_no_list_around_it(lora):
    assert Settings(input_file="x", merge_lora_paths=lora).merge_lora_paths == (str(lora),)
    assert Settings(input_file="x", merge_lora_paths=[lora, "b"]).merge_lora_paths == (str(lora), "b")


@pytest.mark.parametrize("change", ["scale", "file"])
def test_an_interrupted_run_is_not_gone_on_with_when_the_lora_is_another(
    tmp_path, model, lora, change, monkeypatch
):
    output = tmp_path / "q.safetensors"
    from convert_to_quant.converter.convert import run as module

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.OutputFile, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            convert_to_int8(model, output, merge_lora_path=lora)
    assert output.with_name("q.safetensors.part").exists()
    options = {"merge_lora_scale": 0.5} if change == "scale" else {}
    if change == "file":
        save_lora(lora, low_rank(FC1, N, K, seed=99)[0])
    convert_to_int8(model, output, merge_lora_path=lora, **options)
    convert_to_int8(model, tmp_path / "fresh.safetensors", merge_lora_path=lora, **options)
    assert output.read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()


def test_changes_of_removed_tensors_are_left_out_and_said_so(tmp_path):
    """A T5 with its decoder: a LoRA for both halves is merged into the half that stays."""
    model = save(
        tmp_path / "m.safetensors", block_weights() | {"decoder.block.0.layer.0.fc.weight": rand(64, 64)}
    )
    tensors = low_rank(FC1, N, K)[0] | low_rank("decoder.block.0.layer.0.fc", 64, 64)[0]
    lora = save_lora(tmp_path / "lora.safetensors", tensors)
    report = convert_to_int8(model, tmp_path / "q.safetensors", merge_lora_path=lora, keep_sets=["t5xxl"])
    assert {r.name for r in report.layers if r.note} == {FC1}
    assert (
        "LoRA changes of 1 removed tensors are left out (decoder.block.0.layer.0.fc.weight)" in report.notes
    )


def test_a_flux_lora_with_diffusers_names_reaches_a_flux_checkpoint(tmp_path):
    model = save(tmp_path / "flux.safetensors", flux_weights("model.diffusion_model."))
    tensors = {}
    for name, rows in (("to_q", 64), ("to_k", 64), ("to_v", 64), ("to_out.0", 64)):
        tensors |= low_rank(f"transformer.transformer_blocks.0.attn.{name}", rows, 64, style="peft")[0]
    n, k = TINY_FLUX["final_layer.linear"]
    tensors |= low_rank("transformer.proj_out", n, k, style="peft")[0]
    lora = save_lora(tmp_path / "lora.safetensors", tensors)
    report = convert_to_int8(
        model, tmp_path / "q.safetensors", merge_lora_path=lora, preset="none", convrot_group_size=16
    )
    assert report.loras[0].tensors == 3
    assert report.loras[0].unmatched == ()


def test_a_bias_that_is_merged_and_corrected_has_both(tmp_path):
    layer = "blocks.0.attn.qkv"
    model = save(tmp_path / "model.safetensors", block_weights(dtype=torch.float32))
    inputs = rand(256, K, size=1.0) + 1.0
    stats = LayerStats(inputs.bfloat16(), inputs.abs().amax(0), inputs.mean(0), 0.05)
    calibration = save_calibration(tmp_path / "calibration.safetensors", {layer: stats})
    options = {"calibration_data": str(calibration), "bias_correction": True}
    bias = rand(3 * K, seed=5)
    lora = save_lora(tmp_path / "lora.safetensors", {f"{layer}.diff_b": bias})
    convert_to_int8(model, tmp_path / "plain.safetensors", **options)
    report = convert_to_int8(model, tmp_path / "merged.safetensors", merge_lora_path=lora, **options)
    found = [load_file(tmp_path / f"{name}.safetensors")[f"{layer}.bias"] for name in ("merged", "plain")]
    assert not torch.equal(found[1], load_file(model)[f"{layer}.bias"])
    torch.testing.assert_close(found[0] - found[1], bias, rtol=0, atol=1e-6)
    assert not any("left out" in note for note in report.notes)


def test_layers_stored_as_float16_are_merged_too(tmp_path, model):
    tensors, change = low_rank(FC1, N, K)
    lora = save_lora(tmp_path / "lora.safetensors", tensors)
    options = {"custom_layers": "fc1", "custom_type": "fp16"}
    report = convert_to_int8(model, tmp_path / "q.safetensors", merge_lora_path=lora, **options)
    found = load_file(tmp_path / "q.safetensors")[f"{FC1}.weight"]
    want = load_file(model)[f"{FC1}.weight"].double() + change
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), want, rtol=2**-11 * 1.01, atol=1e-7)
    assert any(t.name == f"{FC1}.weight" and t.reason.endswith("merged 1 LoRA") for t in report.kept)
