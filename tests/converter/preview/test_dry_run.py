"""The dry run: a plan from headers alone that says what the conversion does; templates that repeat it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import catalogs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import block_weights, layers, save, save_sharded

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.converter.preview.dry_run import create_template
from convert_to_quant.converter.preview.template import layer_template
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats import Int8Tensorwise
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import ConversionError, convert_to_int8, plan_int8


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", block_weights())


def outcome(plan):
    """All that a plan decides; the reasons may differ."""
    return [(s.name, s.action, s.format, s.algorithm, s.outputs, s.companions, s.data) for s in plan]


def planned(model, **options):
    with open_checkpoint(model) as checkpoint:
        return build_plan(checkpoint, Settings(input_file=str(model), **options))


@pytest.mark.parametrize("flags", [["--dry-run"], ["--dry_run"], ["--dry-run", "analyze"]], ids=" ".join)
def test_analyze_prints_every_layer_and_writes_nothing(model, capsys, flags):
    assert main(["-i", str(model), *flags, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_name = {line.split()[0]: line for line in lines if line}
    assert by_name["blocks.0.attn.qkv"].split()[1:8] == ["768", "x", "256", "row", "+", "convrot", "256"]
    assert by_name["blocks.0.attn.qkv"].endswith(
        "rtn        cpu           0.4      0.2         1.016  block of blocks"
    )
    assert by_name["x_embedder"].endswith("outside the repeated blocks")
    assert "  kept: bias: 3 tensors, 0.0 MiB" in lines
    assert f"{model}: 6 layers to INT8, 2 layers kept" in lines[-2]
    assert lines[-1].startswith("estimated: 1 s on two CPU cores")
    assert [p.name for p in model.parent.iterdir()] == ["model.safetensors"]


def test_sizes_and_formats_are_those_of_the_conversion(model):
    options = {"custom_layers": "fc1", "custom_scaling_mode": "block", "save_quant_metadata": True}
    plan = plan_int8(model, **options)
    report = convert_to_int8(model, **options)
    assert plan.output == report.output
    assert plan.bytes_before == report.bytes_before
    assert plan.bytes_after == report.bytes_after
    formats = {t.name: (t.stored, t.algorithm, t.bytes_out) for t in plan.layers if t.action == "quantize"}
    assert formats == {r.name: (r.format, r.algorithm, r.bytes_out) for r in report.layers}


def test_json_has_the_whole_plan(model, tmp_path):
    target = tmp_path / "plan.json"
    assert main(["-i", str(model), "--dry-run", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found.pop("made_by").startswith("convert_to_quant ")
    assert found == plan_int8(model).to_dict()
    assert sum(t["action"] == "quantize" for t in found["tensors"]) == len(layers())
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 0


def test_a_hollow_file_is_planned(tmp_path):
    """32 GiB of data that are not there: only the header can have been read."""
    shapes = {f"blocks.{i}.{n}.weight": (65536, 65536) for i in range(2) for n in ("a", "b")}
    path = catalogs.write_hollow(tmp_path / "m.safetensors", shapes)
    plan = plan_int8(path)
    assert plan.counts() == {"quantize": 4}
    assert plan.peak_bytes > 6 * 65536**2, "the budget of convert"


def test_shards_are_planned_as_one(tmp_path):
    index = save_sharded(tmp_path / "shards", block_weights())
    assert plan_int8(index).counts() == plan_int8(index.parent).counts() == {"quantize": 6, "keep": 2}


def test_what_a_conversion_refuses_the_dry_run_refuses(model, capsys):
    assert main(["-i", str(model), "-o", str(model), "--dry-run"]) == 1
    assert "the output is the input" in capsys.readouterr().err
    assert main(["-i", str(model), "--dry-run", "--convrot-group-size", "1024"]) == 1
    assert "does not divide" in capsys.readouterr().err


def test_an_unknown_kind_of_dry_run_is_a_wrong_command_line(model, capsys):
    with pytest.raises(SystemExit) as e:
        main(["-i", str(model), "--dry-run", "analyse"])
    assert e.value.code == 2
    assert "must be analyze or create-template, not 'analyse'" in capsys.readouterr().err


def test_the_time_follows_steps_passes_and_tokens(model, tmp_path):
    """Learned rounding multiplies whole matrices at each step, so a hundred steps cost what they cost."""
    learned = [plan_int8(model, optimizer="radam", device="cpu", num_iter=n).seconds for n in (100, 1000)]
    assert learned[1] == pytest.approx(10 * learned[0], rel=0.25)
    assert learned[0] > 30 * plan_int8(model).seconds
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    calibration = save_calibration(tmp_path / "c.safetensors", {layers()[0]: LayerStats(samples=x)})
    options = {"calibration_data": str(calibration), "device": "cpu"}
    few, all_, more = (
        plan_int8(model, **options, **o).seconds for o in ({"calib_samples": 32}, {}, {"quip_passes": 4})
    )
    assert few < all_ < more


def test_a_format_without_a_measured_speed_has_no_time(model, monkeypatch):
    monkeypatch.setattr(Int8Tensorwise, "speed", lambda self: 0.0)
    assert plan_int8(model, device="cpu").seconds is None


def test_the_place_and_the_memory_of_each_algorithm(model):
    plain, learned = plan_int8(model), plan_int8(model, optimizer="original", device="cpu")
    assert {t.placement for t in plain.layers if t.action == "quantize"} == {"cpu"}
    assert {t.placement for t in learned.layers if t.action == "quantize"} == {"cpu"}
    assert learned.peak_bytes > plain.peak_bytes
    assert plan_int8(model, low_memory=True).peak_bytes < plain.peak_bytes


def test_a_dry_run_as_a_process_does_not_load_torch(model):
    code = (
        "import sys; from convert_to_quant.converter.cli.main import main; "
        f"code = main(['-i', {str(model)!r}, '--dry-run']); sys.exit(code or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(catalogs.REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


# The template


def test_the_template_goes_beside_the_model_and_is_not_overwritten(model, capsys):
    assert main(["-i", str(model), "--dry-run", "create-template"]) == 0
    path = model.parent / "model.layers.json"
    assert json.loads(path.read_text())[r"blocks\.[0-9]+\.mlp\.fc1"] == {
        "format": "int8_tensorwise",
        "scaling_mode": "row",
        "convrot": True,
        "convrot_group_size": 256,
    }
    assert main(["-i", str(model), "--dry-run", "create-template"]) == 1
    assert "model.layers.json: exists, perhaps with your edits" in capsys.readouterr().err


def test_the_template_goes_where_it_is_told(model, tmp_path, capsys):
    target = tmp_path / "t.json"
    assert main(["-i", str(model), "--dry-run", "create_template", "-o", str(target)]) == 0
    capsys.readouterr()
    assert main(["-i", str(model), "--dry-run", "create-template", "-o", "-"]) == 0
    assert capsys.readouterr().out == target.read_text()
    assert (
        main(["-i", str(model), "--dry-run", "create-template", "-o", str(tmp_path / "x.safetensors")]) == 1
    )
    assert "a layer configuration is JSON" in capsys.readouterr().err
    assert (
        main(["-i", str(model), "--dry-run", "create-template", "-o", str(tmp_path / "no" / "x.json")]) == 1
    )
    assert "no such folder for the layer configuration" in capsys.readouterr().err


def fed_back(model, folder, options):
    """The plan with these options, the plan from its template alone, and from its template with them."""
    _, text = create_template(Settings(input_file=str(model), output_file="-", **options))
    path = folder / "template.json"
    path.write_text(text)
    first = planned(model, **options)
    return (
        first,
        planned(model, layer_config=str(path)),
        planned(model, **{**options, "layer_config": str(path)}),
    )


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "convrot": st.sampled_from([True, False]),
        "convrot_group_size": st.sampled_from(["auto", 4, 16, 64]),
        "exclude_layers": st.sampled_from(["attn", r"0\.mlp", "fc2"]),
        "custom_layers": st.sampled_from(["fc1", "final", r"1\."]),
        "fallback": st.sampled_from(["int8", "fp16"]),
        "full_precision_matrix_mult": st.booleans(),
        "preset_strict": st.booleans(),
        "block_size": st.sampled_from([16, 64]),
        "simple": st.just(True),
        "optimizer": st.sampled_from(["rtn", "ldlq", "original", "radam"]),
        "keep_sets": st.sampled_from([(), ("wan",)]),
    },
)
CUSTOM = st.fixed_dictionaries(
    {},
    optional={
        "custom_scaling_mode": st.sampled_from(["row", "tensor", "block"]),
        "custom_block_size": st.sampled_from([32, 128]),
        "custom_simple": st.just(True),
    },
)


@settings(max_examples=80, deadline=None)
@given(options=OPTIONS, custom=CUSTOM, scaling=st.sampled_from(["row", "tensor", "block"]))
def test_a_template_fed_back_gives_an_equal_plan(tmp_path_factory, options, custom, scaling):
    folder = tmp_path_factory.mktemp("t")
    model = save(folder / "model.safetensors", block_weights())
    if scaling == "block":
        options = {k: v for k, v in options.items() if k != "convrot"} | {"scaling_mode": "block"}
    else:
        options = options | {"scaling_mode": scaling}
    if "custom_layers" in options:
        options = options | custom
    try:
        planned(model, **options)
    except ConversionError:
        options = {}  # nothing left to quantize
    first, alone, again = fed_back(model, folder, options)
    assert outcome(alone) == outcome(first)
    assert outcome(again) == outcome(first)


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(
        st.from_regex(r"\A(a|b-c|\(x\))(\.([0-9]{1,2}|q|r\+)){1,3}\Z"), min_size=1, max_size=10, unique=True
    ),
    skipped=st.integers(0, 9),
)
def test_strange_names_and_one_odd_layer_out(tmp_path_factory, names, skipped):
    folder = tmp_path_factory.mktemp("t")
    shapes = {f"{name}.weight": (64, 256 + 64 * (i % 2)) for i, name in enumerate(names)}
    shapes["other.weight"] = (256, 256)
    model = catalogs.write_hollow(folder / "m.safetensors", shapes)
    config = folder / "odd.json"
    config.write_text(json.dumps({".*": {"skip": False}}))
    options = {"layer_config": str(config), "exclude_layers": f"^{_escaped(names[skipped % len(names)])}$"}
    first, alone, _ = fed_back(model, folder, options)
    assert outcome(alone) == outcome(first)


def _escaped(name):
    return "".join(f"[{c}]" if c not in "^\\" else f"\\{c}" for c in name)


@catalogs.each(catalogs.SMALL)
@pytest.mark.parametrize("strict", [False, True])
def test_small_catalogs_round_trip(tmp_path, name, strict):
    model = catalogs.write_hollow(tmp_path / "m.safetensors", catalogs.load(catalogs.SMALL, name)[1])
    first, alone, again = fed_back(model, tmp_path, {"preset_strict": strict})
    assert outcome(alone) == outcome(again) == outcome(first)


@catalogs.needs_catalogs
@pytest.mark.parametrize(
    "name", ["qwen-image", "sd3.5-large", "ltx-2.5-22b", "te-qwen2.5-vl-7b", "sdxl-base-unet"]
)
def test_real_catalogs_round_trip(tmp_path, name):
    model = catalogs.write_hollow(tmp_path / "m.safetensors", catalogs.load(catalogs.FULL, name)[1])
    first, alone, _ = fed_back(model, tmp_path, {"heur": True, "scaling_mode": "tensor"})
    assert outcome(alone) == outcome(first)


def test_a_template_is_short(tmp_path):
    model = catalogs.write_hollow(tmp_path / "m.safetensors", catalogs.load(catalogs.SMALL, "qwen-image")[1])
    plan = planned(model)
    assert len(layer_template(plan, Settings(input_file="x"))) < len(plan.quantized)


def test_the_estimate_grows_with_the_model(model, tmp_path):
    more = save(tmp_path / "more.safetensors", block_weights(blocks=6))
    assert plan_int8(more).seconds > plan_int8(model).seconds


def test_quantized_weights_keep_their_fate(tmp_path):
    """FP8 kept by a pattern keeps its scale and its format, with the template too."""
    weights = block_weights()
    name = "blocks.0.mlp.fc1"
    weights[name + ".weight"] = weights[name + ".weight"].to(torch.float8_e4m3fn)
    weights[name + ".weight_scale"] = torch.tensor(0.5)
    model = save(tmp_path / "m.safetensors", weights)
    first, alone, _ = fed_back(model, tmp_path, {"exclude_layers": "fc1"})
    assert outcome(alone) == outcome(first)
    assert name + ".comfy_quant" in {o.name for o in first.outputs}
    assert replace(first, notes=()).output_bytes == alone.output_bytes


def test_a_template_made_without_calibration_does_not_keep_a_conversion_from_it(model, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(create_template(Settings(input_file=str(model), output_file="-"))[1])
    stats = LayerStats(torch.randn(64, 256).bfloat16())
    data = str(save_calibration(tmp_path / "c.safetensors", {"blocks.0.attn.qkv": stats}))
    plan = planned(model, layer_config=str(path), calibration_data=data)
    assert {s.layer_name for s in plan.quantized if s.algorithm == "quip"} == {"blocks.0.attn.qkv"}
    simple = Settings(input_file=str(model), output_file="-", calibration_data=data, simple=True)
    _, text = create_template(simple)
    assert json.loads(text)["blocks\\.[0-9]+\\.attn\\.qkv"]["optimizer"] == "rtn", "asked for, so it is kept"
