"""Command lines and keywords of the other converter: each has its meaning here, says so, or is refused."""

import json
from pathlib import Path

import pytest
import torch
from models import block_weights, save
from safetensors.torch import load_file

import convert_to_quant
from convert_to_quant.converter.cli import edit
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.cli.parser import ConvertParser
from convert_to_quant.converter.options.peer import EDIT_FLAGS, PEER_OPTIONS
from convert_to_quant.converter.options.settings import KEEP_SET_NAMES, keywords
from convert_to_quant.converter.options.translate import translated
from convert_to_quant.formats.choose import options

OPTIONS = json.loads((Path(__file__).parents[2] / "data" / "peer_options.json").read_text())
"""Every option of its release 1.3.4: spellings, name in Python, whether a value follows."""

VALUES = {
    "output_dtype": "float16",
    "custom_type": "int8",
    "fallback": "int8",
    "custom_block_size": "64",
    "fallback_block_size": "64",
    "block_size": "64",
    "custom_scaling_mode": "row",
    "scaling_mode": "block2d",
    "device": "cpu",
    "verbose": "DEBUG",
    "optimizer": "prodigy",
    "layer_config": "layers.json",
    "dry_run": "create-template",
    "scaled_fp8_marker": "2",
    "convrot_group_size": "64",
    "custom_convrot_group_size": "64",
}
EDITS = {"edit_quant", "remove_keys", "add_keys", "quant_filter", "convert_fp8_scaled", "convert_int8_scaled"}


def spelled(option, flag):
    value = VALUES.get(option["keyword"], "1")
    return [flag] if option["takes"] == "nothing" else [flag, value]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o["flags"][0])
def test_every_spelling_is_known(option):
    for flag in option["flags"]:
        argv = spelled(option, flag)
        if option["keyword"] in EDITS:
            value = ['{"a": 1}'] if option["keyword"] == "add_keys" else argv[1:]
            plain, argv = ["f.safetensors"], ["f.safetensors", flag, *value]
            parser = edit.parser()
        else:
            plain = [] if option["keyword"] == "input" else ["-i", "m.safetensors"]
            argv, parser = [*plain, *argv], ConvertParser("x", [])
        assert vars(parser.parse_args(argv)) != (vars(parser.parse_args(plain)) if plain else {}), flag


def test_every_keyword_is_known():
    peers = {o.name for o in PEER_OPTIONS} | {"input", "output", "verbose", "dry_run", "edit_quant"}
    known = peers | set(keywords()) | set(KEEP_SET_NAMES)
    assert {o["keyword"] for o in OPTIONS} - known - {"layer_config_fullmatch"} == set()


@pytest.mark.parametrize("peer", PEER_OPTIONS, ids=lambda o: o.flags[0])
def test_each_row_means_something_says_something_or_is_refused(peer):
    value = "1" if peer.value else True
    if peer.instead or peer.edits or peer.sets.get("format", "int8") not in options():
        with pytest.raises(ValueError, match=peer.instead[:20] or "ctq edit|not written"):
            translated({peer.name: (peer.flags[0], value)}, {})
        return
    values, lines = translated({peer.name: (peer.flags[0], value)}, {})
    assert values or lines
    assert set(values) <= set(keywords())
    assert all(peer.flags[0] in line for line in lines)


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", block_weights())


SAME = [
    ("--int8", "--format int8"),
    ("--fp8", "--format fp8"),
    ("--int8 --comfy_quant --scaling_mode block2d --group-size 64", "--scaling_mode block --block_size 64"),
    ("--dynamic-convrot", "--convrot --convrot-group-size auto"),
    ("--manual_seed 7 --int8", "--quip-seed 7"),
    ("--manual_seed -1", ""),
    ("-lm -fpmm", "--low-memory --full_precision_matrix_mult"),
    ("--scale-optimization iterative", "--scale-search"),
    ("--scale-optimization fixed", ""),
    ("--top_p 0.1 --min_k 3 --lr_schedule plateau -esstall 9 --full_matrix --use_speed", ""),
    ("--input_scale --no-normalize-scales --verbose-pinned --verbose MINIMAL", ""),
    ("--custom-layers fc1 --custom-fpmm", "--custom-layers fc1 --custom-full-precision-mm"),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME, ids=[a for a, _ in SAME])
def test_their_command_writes_the_file_of_ours(tmp_path, model, theirs, ours):
    outputs = [tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"]
    for output, flags in zip(outputs, (theirs, ours), strict=True):
        assert main(["-i", str(model), "-o", str(output), *flags.split()]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_settings_of_an_absent_optimizer_are_told_in_one_line(tmp_path, model, capsys):
    assert main(["-i", str(model), "--top_p", "0.1", "--lr-gamma", "3", "-eslr", "1", "--int8"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "optimizer that is not here" in line]
    assert told == [
        "note: --top_p, --lr-gamma, -eslr: tune an optimizer that is not here, and change nothing"
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--actcal", "--actcal is not an option here: measure real inputs with the recorder node"),
        ("--hp-filter x", "ctq inspect"),
        ("--make_hybrid_mxfp8", "--format lists those that can be written"),
        ("--legacy_input_add", "ctq edit FILE"),
        ("--remove-keys a", "belongs to ctq edit"),
        ("--manual_seed 1 --quip-seed 2", "--manual_seed and --quip-seed 2 contradict each other"),
        ("--manual_seed x", "invalid literal"),
        ("--custom-layer x", "there is no option --custom-layer; did you mean --custom-layers?"),
        ("--scaling_mod=row", "there is no option --scaling_mod; did you mean --scaling"),
        ("--zzz", "there is no option --zzz\n"),
        ("stray", "no option takes 'stray'"),
    ],
)
def test_what_has_no_place_here_is_refused_with_what_takes_it(model, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main(["-o", "x.safetensors", "--no-verify", *flags.split(), "-i", str(model)])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["m-fp8.safetensors", "m_fp8_scaled.safetensors", "m.float8_e4m3fn.safetensors"]
)
def test_int8_is_never_written_into_a_file_named_fp8(tmp_path, model, capsys, name):
    for flags in ([], ["--comfy_quant"], ["--dry-run"]):
        assert main(["-i", str(model), "-o", str(tmp_path / name), *flags]) == 1
        assert "its layers would be int8" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["m-fp8-int8.safetensors", "buf8.safetensors", "int8mixed.safetensors"])
def test_other_names_are_free(tmp_path, model, name):
    assert main(["-i", str(model), "-o", str(tmp_path / name), "--int8"]) == 0


def layers_of(path):
    return {n.removesuffix(".comfy_quant") for n in load_file(str(path)) if n.endswith(".comfy_quant")}


def configs(path):
    tensors = load_file(str(path))
    return {
        n.removesuffix(".comfy_quant"): json.loads(bytes(t.tolist()))
        for n, t in tensors.items()
        if n.endswith(".comfy_quant")
    }


def test_custom_rotation_and_precision_are_for_custom_layers_alone(tmp_path, model):
    output = tmp_path / "q.safetensors"
    flags = "--no-convrot --custom-layers fc1 --custom-convrot-group-size 64 --custom-full-precision-mm"
    assert main(["-i", str(model), "-o", str(output), *flags.split()]) == 0
    found = configs(output)
    for layer, config in found.items():
        assert config.get("convrot_groupsize") == (64 if "fc1" in layer else None), layer
        assert bool(config.get("full_precision_matrix_mult")) == ("fc1" in layer)
    for flags, rotated in (("--no-custom-convrot", False), ("--no-convrot --custom-convrot", True)):
        argv = ["-i", str(model), "-o", str(output), "--custom-layers", "fc1", "--overwrite", *flags.split()]
        assert main(argv) == 0
        alike = {k for k, c in configs(output).items() if bool(c.get("convrot")) == rotated}
        assert alike == {k for k in found if "fc1" in k}


def test_custom_heur_keeps_small_custom_layers(tmp_path, model):
    output = tmp_path / "q.safetensors"
    assert main(["-i", str(model), "-o", str(output), "--custom-layers", "fc1", "--custom-heur"]) == 0
    assert not any("fc1" in layer for layer in layers_of(output))


def test_fallback_options_are_for_layers_without_a_pattern(tmp_path, model, capsys):
    output = tmp_path / "q.safetensors"
    flags = (
        "--scaling_mode block --custom-layers fc1 --fallback int8 --fallback-block-size 32 --fallback-simple"
    )
    assert main(["-i", str(model), "-o", str(output), *flags.split()]) == 0
    assert {(c["group_size"], "fc1" in k) for k, c in configs(output).items()} == {(128, True), (32, False)}
    assert main(["-i", str(model), "-o", str(output), "--fallback-simple"]) == 1
    assert "--fallback-simple needs --fallback" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["bfloat16", "float16"])
def test_output_dtype_is_for_float_matrices_that_are_not_quantized(tmp_path, wanted):
    source = {n: t.float() for n, t in block_weights().items()}
    model, output = save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors"
    flags = ["--output-dtype", wanted, "--preserve-layers", "final"]
    assert main(["-i", str(model), "-o", str(output), *flags]) == 0
    after = load_file(str(output))
    dtype = getattr(torch, wanted)
    assert torch.equal(after["x_embedder.weight"], source["x_embedder.weight"].to(dtype))
    for name in ("final_layer.weight", "x_embedder.bias", "blocks.0.attn.norm.weight"):
        assert torch.equal(after[name], source[name]), name


def test_a_value_beyond_the_output_dtype_is_refused(tmp_path, capsys):
    source = {n: t.float() for n, t in block_weights().items()}
    source["final_layer.weight"][0, 0] = 1e6
    model = save(tmp_path / "m.safetensors", source)
    assert main(["-i", str(model), "--output-dtype", "float16"]) == 1
    assert "final_layer.weight: holds 1e+06, beyond float16's 65504" in capsys.readouterr().err


def test_quantize_takes_their_keywords(tmp_path, model):
    report = convert_to_quant.quantize(
        input=str(model), output=str(tmp_path / "q.safetensors"), int8=True, scaling_mode="row",
        comfy_quant=True, convrot=True, wan=True, low_memory=True, manual_seed=-1,
        verbose="DEBUG", device=None, heur=False,
    )  # fmt: skip
    assert len(report.layers) == 6
    with pytest.warns(UserWarning, match="top_p, num_iter|top_p: tunes an optimizer"):
        convert_to_quant.quantize(str(model), str(tmp_path / "r.safetensors"), int8=True, top_p=0.2)
    with pytest.raises(ValueError, match="actcal is not an option here"):
        convert_to_quant.quantize(str(model), actcal=True)
    with pytest.raises(ValueError, match="ctq edit"):
        convert_to_quant.quantize(str(model), convert_fp8_scaled=True)
    with pytest.raises(TypeError, match="'scaling'; did you mean 'scaling_mode'"):
        convert_to_quant.quantize(str(model), scaling="row")


def test_old_scaled_fp8_becomes_comfy_quant(tmp_path):
    weight = torch.randn(64, 64).clamp(-2, 2)
    tensors = {
        "a.weight": weight.to(torch.float8_e4m3fn),
        "a.scale_weight": torch.tensor([0.5]),
        "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
    }
    model, output = save(tmp_path / "m.safetensors", tensors), tmp_path / "fp8.safetensors"
    for flags in (["--convert-fp8-scaled", "--full-precision-mm", "--comfy_quant"], ["--convert_fp8_scaled"]):
        assert main([*flags, "-i", str(model), "-o", str(output)]) == 0
        after = load_file(str(output))
        assert set(after) == {"a.weight", "a.weight_scale", "a.comfy_quant"}
        assert configs(output)["a"].get("full_precision_matrix_mult", False) == (len(flags) == 3)
        output.unlink()
    assert set(EDIT_FLAGS) >= {"--convert-int8-scaled", "--convert_int8_scaled", "--edit_quant"}


def test_old_int8_becomes_comfy_quant(tmp_path):
    tensors = {
        "a.weight": torch.randint(-127, 128, (64, 64), dtype=torch.int8),
        "a.scale_weight": torch.full((64, 1), 0.01),
    }
    model, output = save(tmp_path / "m.safetensors", tensors), tmp_path / "o.safetensors"
    assert main(["--convert-int8-scaled", "-i", str(model), "-o", str(output)]) == 0
    assert set(load_file(str(output))) == {"a.weight", "a.weight_scale", "a.comfy_quant"}


@pytest.mark.parametrize(
    ("flag", "option"), [("-hl", "--num_iter"), ("--help-filters", "--wan"), ("-hm", "--pattern")]
)
def test_their_help_flags_show_our_topics(capsys, flag, option):
    with pytest.raises(SystemExit, match="0"):
        main([flag])
    assert option in capsys.readouterr().out


def test_levels_of_talk(tmp_path, model, capsys):
    sizes = {}
    for level in (["--verbose", "VERBOSE"], [], ["--quiet"], ["--verbose", "minimal"]):
        assert main(["-i", str(model), "-o", str(tmp_path / "q.safetensors"), "--overwrite", *level]) == 0
        out, err = capsys.readouterr()
        sizes[" ".join(level)] = len(out.splitlines())
    assert sizes["--quiet"] == sizes["--verbose minimal"] == 1
    assert sizes["--verbose VERBOSE"] > sizes[""]
    assert err == ""
    assert main(["-i", str(model), "-o", str(tmp_path / "q.safetensors"), "--overwrite", "--verbose"]) == 0
    assert "Every layer" in capsys.readouterr().out
