"""Layer control from the command line to the file: each option does what it says, per layer."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import block_weights, layers, save
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.layers.heuristics import why_skip
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.quantization import ConversionError, convert_to_int8


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", block_weights())


def convert(model, *flags):
    """Run the command line; returns the output's tensors and the layers' comfy_quant objects."""
    output = model.parent / "q.safetensors"
    assert main(["-i", str(model), "-o", str(output), "--overwrite", *flags]) == 0
    tensors = load_file(str(output))
    end = ".comfy_quant"
    configs = {n.removesuffix(end): json.loads(bytes(t.numpy())) for n, t in tensors.items() if end in n}
    return tensors, configs


def config_file(model, entries):
    path = model.parent / "layers.json"
    path.write_text(json.dumps(entries))
    return str(path)


ROTATED = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}


@pytest.mark.parametrize("flag", ["--layer-config", "--layer_config"])
def test_a_layer_config_decides_layer_by_layer(model, flag):
    entries = {
        r"blocks\.0\.attn\.qkv": {"skip": True},
        r"blocks\.0\.mlp\.fc1": {"format": "int8_blockwise", "block_size": 64},
        r"blocks\.0\..*": {"scaling_mode": "tensor", "convrot_group_size": 64},
        r"blocks\.1\.attn\.qkv": {"convrot": False, "full_precision_matrix_mult": True},
        r"blocks\.1\.mlp\.fc1": {"format": "fp16"},
        "final_layer": {"format": "int8", "optimizer": "rtn"},
    }
    tensors, configs = convert(model, flag, config_file(model, entries))
    assert configs == {
        "blocks.0.mlp.fc1": {"format": "int8_blockwise", "group_size": 64},
        "blocks.0.mlp.fc2": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64},
        "blocks.1.attn.qkv": {"format": "int8_tensorwise", "full_precision_matrix_mult": True},
        "blocks.1.mlp.fc2": ROTATED,
        "final_layer": ROTATED,
    }
    source = load_file(str(model))
    assert torch.equal(tensors["blocks.0.attn.qkv.weight"], source["blocks.0.attn.qkv.weight"])
    assert torch.equal(tensors["blocks.1.mlp.fc1.weight"], source["blocks.1.mlp.fc1.weight"].half())
    assert tensors["blocks.0.mlp.fc1.weight_scale"].shape == (8, 4)
    assert tensors["blocks.0.mlp.fc2.weight_scale"].shape == (1, 1)


def test_an_entry_without_a_format_leaves_kept_layers_kept(model):
    _, configs = convert(model, "--layer-config", config_file(model, {".*": {"convrot_group_size": 16}}))
    assert set(configs) == set(layers())
    assert all(config["convrot_groupsize"] == 16 for config in configs.values())


@pytest.mark.parametrize("flag", ["--exclude-layers", "--exclude_layers"])
def test_excluded_layers_keep_their_bytes(model, flag):
    tensors, configs = convert(model, flag, r"attn|1\.mlp\.fc1")
    assert set(configs) == {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    source = load_file(str(model))
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"):
        assert torch.equal(tensors[name], source[name])


@pytest.mark.parametrize("s", ["-", "_"])
def test_custom_layers(model, s):
    flags = [f"--custom{s}layers", "fc1|final", f"--custom{s}type", "int8", f"--custom{s}simple"]
    flags += [f"--custom{s}scaling{s}mode", "block", f"--custom{s}block{s}size", "32"]
    _, configs = convert(model, *flags)
    blockwise = {"format": "int8_blockwise", "group_size": 32}
    assert configs["blocks.0.mlp.fc1"] == configs["final_layer"] == blockwise, "a kept layer too"
    assert configs["blocks.0.mlp.fc2"] == ROTATED
    assert len(configs) == 7


def test_custom_layers_in_float16(model):
    tensors, configs = convert(model, "--custom-layers", "fc1", "--custom-type", "float16")
    assert not any("fc1" in name for name in configs)
    assert tensors["blocks.0.mlp.fc1.weight"].dtype == torch.float16


def test_fallback_stores_what_no_pattern_names_as_float16(model):
    tensors, configs = convert(model, "--custom-layers", "fc2", "--fallback", "fp16")
    assert set(configs) == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    source = load_file(str(model))
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"):
        assert torch.equal(tensors[name], source[name].half())
    assert tensors["x_embedder.weight"].dtype == torch.bfloat16, "kept layers are kept"
    assert tensors["blocks.0.attn.qkv.bias"].dtype == torch.bfloat16
    assert len(convert(model, "--fallback", "int8")[1]) == len(layers())


def test_float16_reads_scaled_fp8(tmp_path):
    weights = {k: v.float() for k, v in block_weights().items()}
    name = "blocks.0.mlp.fc1"
    q = (weights[name + ".weight"] * 100).to(torch.float8_e4m3fn)
    weights |= {name + ".weight": q, name + ".weight_scale": torch.tensor(0.01)}
    model = save(tmp_path / "model.safetensors", weights)
    tensors, _ = convert(model, "--custom-layers", name, "--custom-type", "fp16")
    assert torch.equal(tensors[name + ".weight"], (q.float() * 0.01).half())
    assert name + ".weight_scale" not in tensors


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path, capsys):
    weights = block_weights()
    weights["blocks.1.mlp.fc1.weight"][3, 4] = 1e6
    model = save(tmp_path / "model.safetensors", weights)
    flags = ["--custom-layers", "fc2", "--fallback", "fp16"]
    assert main(["-i", str(model), *flags]) == 1
    assert "blocks.1.mlp.fc1.weight: holds 999424, beyond float16's 65504" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--full_precision_matrix_mult", "--full-precision-matrix-mult"])
def test_full_precision_matrix_mult_is_written(model, flag):
    _, configs = convert(model, flag)
    assert len(configs) == len(layers())
    assert all(config == {**ROTATED, "full_precision_matrix_mult": True} for config in configs.values())


def test_heur_skips_what_int8_does_not_help(tmp_path):
    weights = {"blocks.0.a.weight": (1024, 1024), "blocks.0.b.weight": (504, 4096)}
    weights |= {"blocks.1.a.weight": (1024, 1000), "blocks.1.b.weight": (1020, 2048)}
    weights |= {"blocks.2.a.weight": (512, 2032), "blocks.2.b.weight": (512, 2048)}
    tensors = {name: torch.full(shape, 0.01).bfloat16() for name, shape in weights.items()}
    model = save(tmp_path / "model.safetensors", tensors)
    assert len(convert(model)[1]) == 6
    assert set(convert(model, "--heur")[1]) == {"blocks.0.a", "blocks.2.b"}
    assert set(convert(model, "--heur", "--custom-layers", r"1\.a")[1]) >= {"blocks.1.a"}, "patterns overrule"


@given(rows=st.integers(1, 5000), columns=st.integers(1, 5000))
def test_heur_rules_are_what_they_say(rows, columns):
    pays = columns % 16 == 0 and rows % 8 == 0 and rows >= 512 and rows * columns >= 2**20
    assert (why_skip(rows, columns) == "") is pays


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--exclude-layers", "blokcs"], "--exclude-layers 'blokcs' matches no layer"),
        (["--custom-layers", "("], "--custom-layers '(': not a regular expression"),
        (["--custom-type", "fp16"], "--custom-type needs --custom-layers"),
        (["--exclude-layers", "."], "nothing to quantize"),
        (["--layer-config", "absent.json"], "absent.json: no such file"),
    ],
)
def test_mistakes_end_with_code_1_and_a_reason(model, capsys, flags, message):
    assert main(["-i", str(model), *flags]) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in model.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"convrot_group_size": 1024},
            "'final_layer': convrot_group_size 1024 does not divide the 256 columns",
        ),
        ({"format": "int8_blockwise", "convrot": True}, "int8_blockwise has no rotation"),
        ({"optimizer": "adamv"}, "there is no algorithm 'adamv'; did you mean 'adamw'"),
    ],
)
def test_impossible_entries_are_refused_before_work_starts(model, entry, message):
    with pytest.raises(ConversionError) as e:
        convert_to_int8(model, layer_config=config_file(model, {"final_layer": {"format": "int8"} | entry}))
    assert message in str(e.value)


def test_rotation_of_blockwise_integers_names_the_layer(model):
    path = config_file(model, {r"blocks\.0\.mlp\.fc1": {"convrot": True}})
    with pytest.raises(ConversionError, match=r"blocks\.0\.mlp\.fc1\.weight is int8_blockwise"):
        convert_to_int8(model, layer_config=path, scaling_mode="block")


def test_embeddings_and_norms_are_no_layers(tmp_path):
    weights = {
        **block_weights(),
        "embed_tokens.weight": torch.zeros(512, 64),
        "norm.weight": torch.zeros(64, 64),
    }
    model = save(tmp_path / "model.safetensors", weights)
    _, configs = convert(model, "--custom-layers", ".")
    assert set(configs) == {*layers(), "x_embedder", "final_layer"}
    with pytest.raises(ConversionError, match="matches no layer"):
        convert_to_int8(model, custom_layers="embed_tokens")


def test_notes_say_what_the_patterns_did(model):
    report = convert_to_int8(model, custom_layers="final", exclude_layers=r"attn")
    assert "--exclude-layers decides for 2 layers" in report.notes
    assert "--custom-layers decides for 1 layers" in report.notes
    overruled = "1 layers change that would be kept without your patterns (final_layer: outside the repeated"
    assert any(note.startswith(overruled) for note in report.notes)


def test_an_algorithm_lands_in_the_plan(model):
    path = config_file(model, {r".*\.qkv": {"optimizer": "gptq"}, r".*fc1": {"algorithm": "radam"}})
    with open_checkpoint(model) as checkpoint:
        plan = build_plan(checkpoint, Settings(input_file=str(model), layer_config=path))
    found = {step.layer_name: step.algorithm for step in plan.quantized}
    assert found["blocks.0.attn.qkv"] == "rtn"
    assert any("2 of 6 layers have no calibration" in note for note in plan.notes)
    assert found["blocks.1.mlp.fc1"] == "radam"
    assert found["blocks.1.mlp.fc2"] == "rtn"


BECOMES = {"skip": "keep", "int8": "quantize", "fp16": "cast"}
FREE = [*layers()[1:], "x_embedder", "final_layer"]


@settings(max_examples=40, deadline=None)
@given(chosen=st.dictionaries(st.sampled_from(FREE), st.sampled_from(list(BECOMES))))
def test_each_layer_becomes_what_its_entry_says(tmp_path_factory, chosen):
    model = tmp_path_factory.mktemp("m") / "model.safetensors"
    save(model, block_weights())
    entries = {name: {"skip": True} if what == "skip" else {"format": what} for name, what in chosen.items()}
    with open_checkpoint(model) as checkpoint:
        asked = Settings(input_file=str(model), layer_config=config_file(model, entries))
        plan = build_plan(checkpoint, asked)
    expected = dict.fromkeys(layers(), "quantize") | {"x_embedder": "keep", "final_layer": "keep"}
    expected |= {name: BECOMES[what] for name, what in chosen.items()}
    assert {s.layer_name: s.action for s in plan if s.layer_name in expected} == expected
