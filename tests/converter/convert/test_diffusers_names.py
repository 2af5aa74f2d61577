"""A checkpoint with diffusers' names becomes one with ComfyUI's: every tensor, its rows in their places."""

import json
from pathlib import Path

import pytest
import torch
from comfyui_names import NAMES, renamed
from diffusers_models import build, save_diffusers, weights
from lora_files import low_rank, save_lora
from models import save, save_sharded
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.converter.plan.naming import comfyui_view
from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.files.writer import OutputFile
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.names.diffusers import recognise
from convert_to_quant.quantization import convert_to_int8, plan_int8
from convert_to_quant.runtime import load_quantized

COMPANIONS = ("weight_scale", "comfy_quant")


@pytest.fixture(scope="module", params=sorted(NAMES))
def family(request):
    return request.param


def int8(path: Path, output: Path, **options) -> dict[str, torch.Tensor]:
    """The tensors of a conversion without rotation: what is stored is the weight, rounded."""
    convert_to_int8(str(path), str(output), **{"convrot": False, **options})
    return load_file(output)


def floats(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stored tensors as what they stand for: integers times their scales, everything else as it is."""
    return {
        name: t.double() * tensors[f"{name}_scale"].double() if t.dtype == torch.int8 else t
        for name, t in tensors.items()
        if not name.endswith(COMPANIONS)
    }


def half_a_step(weight: torch.Tensor) -> torch.Tensor:
    """The largest error of rounding to nearest in float32, per row: half of a 127th of its largest value."""
    return weight.double().abs().amax(1, keepdim=True) / 254 * (1 + 1e-4)


def test_every_tensor_is_where_comfyui_has_it(family, tmp_path):
    """Names, and values: kept tensors to the bit, quantized ones to half a step of their own row."""
    stored = int8(save_diffusers(tmp_path, family), tmp_path / "out.safetensors", preset="none")
    want, got = renamed(family, weights(family)), floats(stored)
    assert got.keys() == want.keys()
    quantized = [n for n, t in stored.items() if t.dtype == torch.int8]
    assert quantized
    for name, tensor in want.items():
        if name in quantized:
            assert ((got[name] - tensor.double()).abs() <= half_a_step(tensor)).all(), name
        else:
            assert torch.equal(got[name], tensor), name


def test_rows_of_fused_and_swapped_layers_are_the_sources_rows(tmp_path):
    """With one scale per row, the integers of each part are those it would have by itself."""
    path = save_diffusers(tmp_path, "flux")
    ours = int8(path, tmp_path / "ours.safetensors", custom_layers="norm_out|adaLN_modulation")
    theirs = int8(path, tmp_path / "theirs.safetensors", custom_layers="norm_out", keep_names=True)
    for leaf in ("weight", "weight_scale"):
        q, k, v = (theirs[f"transformer_blocks.1.attn.to_{x}.{leaf}"] for x in "qkv")
        assert torch.equal(ours[f"double_blocks.1.img_attn.qkv.{leaf}"], torch.cat([q, k, v]))
        scale, shift = theirs[f"norm_out.linear.{leaf}"].chunk(2)
        assert torch.equal(ours[f"final_layer.adaLN_modulation.1.{leaf}"], torch.cat([shift, scale]))


def test_a_file_that_comfyui_names_as_diffusers_does_keeps_its_names(tmp_path):
    stored = int8(save_diffusers(tmp_path, "qwen-image"), tmp_path / "out.safetensors")
    assert floats(stored).keys() == weights("qwen-image").keys()
    assert not inspect_file(tmp_path / "out.safetensors").problems


def test_verification_finds_every_tensor_of_the_source(family, tmp_path):
    path, output = save_diffusers(tmp_path, family), tmp_path / "out.safetensors"
    convert_to_int8(str(path), str(output))
    report = verify(path, output)
    assert report.ok, report.problems
    assert report.layers
    assert report.unchanged + len(report.layers) == len(renamed(family, weights(family)))


@pytest.mark.parametrize("family", ["flux", "sd3", "auraflow", "pixart", "z-image", "wan"])
def test_diffusers_loads_what_was_written(family, tmp_path):
    """Back through the loader's tables: the model's own weights, and its output."""
    output = tmp_path / "out.safetensors"
    convert_to_int8(str(save_diffusers(tmp_path, family)), str(output), convrot=False)
    model = build(family)
    assert load_quantized(model, output).quantized
    for name, tensor in weights(family).items():
        got = model.state_dict()[name].float()
        assert got.shape == tensor.shape
        assert (got - tensor.float()).norm() < 0.02 * tensor.float().norm(), name


def test_shards_and_a_prefix_make_no_difference(tmp_path):
    """Parts of one layer may lie in different files; a prefix that ComfyUI does not expect is left out."""
    plain = int8(save_diffusers(tmp_path, "flux"), tmp_path / "plain.safetensors")
    index = save_sharded(tmp_path / "shards", weights("flux"))
    sharded = int8(index, tmp_path / "sharded.safetensors")
    under = save(tmp_path / "p.safetensors", {f"transformer.{n}": t for n, t in weights("flux").items()})
    prefixed = int8(under, tmp_path / "prefixed.safetensors")
    for other in (sharded, prefixed):
        assert plain.keys() == other.keys()
        assert all(torch.equal(plain[n], other[n]) for n in plain)


def test_an_interrupted_conversion_goes_on_to_the_same_file(tmp_path, monkeypatch):
    path = save_diffusers(tmp_path, "flux")
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    convert_to_int8(str(path), str(whole))
    done: list[str] = []

    def stop(file, key, note):
        mark(file, key, note)
        done.append(key)
        if len(done) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        mark = OutputFile.mark
        patched.setattr(OutputFile, "mark", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_to_int8(str(path), str(broken))
    assert not broken.exists()
    convert_to_int8(str(path), str(broken))
    assert broken.read_bytes() == whole.read_bytes()


def test_kept_names_are_in_the_metadata_and_in_the_identity_of_the_job(tmp_path):
    path, output = save_diffusers(tmp_path, "flux"), tmp_path / "out.safetensors"
    stored = int8(path, output, keep_names=True)
    assert floats(stored).keys() == weights("flux").keys()
    with safe_open(output, "pt") as f:
        kept = f.metadata()
    int8(path, tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as f:
        ours = f.metadata()
    assert [m["convert_to_quant.names"] for m in (kept, ours)] == ["diffusers", "comfyui"]
    assert kept["format"] == "pt"
    model = build("flux")
    assert load_quantized(model, output).quantized


def test_keeping_names_that_are_not_diffusers_says_that_it_changes_nothing(tmp_path):
    path = save(tmp_path / "m.safetensors", renamed("flux", weights("flux")))
    report = convert_to_int8(str(path), str(tmp_path / "out.safetensors"), keep_names=True)
    assert any("--keep-names changes nothing" in note for note in report.notes)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_without_a_table_the_way_out_is_named(family, tmp_path):
    """ComfyUI would rename these, and we do not know how: nothing is written."""
    tensors = weights("svd") if family == "sdxl" else weights("flux")
    if family == "flux":
        tensors = {n: t for n, t in tensors.items() if not n.startswith("time_text_embed.")}
    path = save(tmp_path / "m.safetensors", tensors)
    with pytest.raises(ConversionError, match="--keep-names"):
        convert_to_int8(str(path), str(tmp_path / "out.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    stored = int8(path, tmp_path / "out.safetensors", keep_names=True)
    assert floats(stored).keys() == tensors.keys()


def test_names_that_no_table_has_stay_and_are_told(tmp_path):
    path = save(tmp_path / "m.safetensors", {**weights("flux"), "extra.thing": torch.ones(3)})
    report = convert_to_int8(str(path), str(tmp_path / "out.safetensors"))
    assert any("extra.thing" in note and "no ComfyUI name" in note for note in report.notes)
    assert "extra.thing" in load_file(tmp_path / "out.safetensors")


def test_names_that_comfyui_does_not_load_stay_where_one_of_them_is_unknown(tmp_path):
    """Wan with an adapter of its own: half a file under other names would help nobody."""
    path = save(
        tmp_path / "m.safetensors", {**weights("wan"), "face_adapter.0.to_q.weight": torch.ones(3, 3)}
    )
    report = convert_to_int8(str(path), str(tmp_path / "out.safetensors"))
    assert any("face_adapter.0.to_q.weight" in note for note in report.notes)
    assert "blocks.0.attn1.to_q.weight" in load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize("first", [True, False])
def test_a_tensor_that_has_the_new_name_already_is_refused(first, tmp_path):
    """In whichever order they stand in the file: neither takes the other's place."""
    tensors, extra = weights("flux"), {"img_in.weight": torch.ones(3, 3)}
    path = save(tmp_path / "m.safetensors", {**extra, **tensors} if first else {**tensors, **extra})
    with pytest.raises(ConversionError, match=r"(x_embedder|img_in)\.weight has a name that another"):
        convert_to_int8(str(path), str(tmp_path / "out.safetensors"))


@pytest.mark.parametrize("gone", ["to_q.weight", "to_k.bias", "to_v.weight"])
def test_a_fused_tensor_without_one_of_its_parts_is_refused(gone, tmp_path):
    name = f"transformer_blocks.0.attn.{gone}"
    path = save(tmp_path / "m.safetensors", {n: t for n, t in weights("flux").items() if n != name})
    with pytest.raises(ConversionError, match=f"there is no {name}"):
        convert_to_int8(str(path), str(tmp_path / "out.safetensors"))


def test_parts_of_different_dtypes_are_refused_by_name(tmp_path):
    tensors = weights("flux")
    name = "transformer_blocks.0.attn.to_k.weight"
    path = save(tmp_path / "m.safetensors", {**tensors, name: tensors[name].float()})
    with pytest.raises(ConversionError, match=r"to_k\.weight F32.*do not fit together.*--keep-names"):
        convert_to_int8(str(path), str(tmp_path / "out.safetensors"))


def diffusers_int8(path: Path, output: Path) -> Path:
    """A quantized file under diffusers' names that does not say so, as older releases wrote it."""
    from safetensors.torch import save_file

    save_file(int8(path, output, keep_names=True), output)
    return output


def test_inspection_and_verification_say_that_comfyui_cannot_use_diffusers_names(tmp_path):
    path = save_diffusers(tmp_path, "flux")
    old = diffusers_int8(path, tmp_path / "old.safetensors")
    assert [(p.kind, p.fatal) for p in inspect_file(old).problems] == [("diffusers names", True)]
    report = verify(path, old)
    assert not report.ok
    assert "noise" in report.violations[0].text
    meant = tmp_path / "meant.safetensors"
    int8(path, meant, keep_names=True)
    assert [(p.kind, p.fatal) for p in inspect_file(meant).problems] == [("diffusers names", False)]
    assert verify(path, meant).ok


def test_a_quantized_file_comes_along_row_by_row(tmp_path):
    """What stands beside the weights of an INT8 file goes with their rows, one config for fused layers."""
    path = save_diffusers(tmp_path, "flux")
    old = diffusers_int8(path, tmp_path / "old.safetensors")
    tensors = load_file(old)
    tensors["transformer_blocks.0.ff.net.0.proj.weight"] = weights("flux")[
        "transformer_blocks.0.ff.net.0.proj.weight"
    ]
    for leaf in COMPANIONS:
        del tensors[f"transformer_blocks.0.ff.net.0.proj.{leaf}"]
    half = save(tmp_path / "half.safetensors", tensors)
    got = int8(half, tmp_path / "again.safetensors")
    want = int8(path, tmp_path / "ours.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[n], want[n]) for n in want)


def test_one_scale_for_each_of_several_weights_is_refused_where_they_become_one(tmp_path):
    tensors = dict(weights("flux"))
    for x in "qkv":
        layer = f"transformer_blocks.0.attn.to_{x}"
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{layer}.weight_scale"] = torch.tensor(0.5)
    path = save(tmp_path / "m.safetensors", tensors)
    with pytest.raises(ConversionError, match=r"to_q\.weight_scale.*one scale.*--keep-names"):
        convert_to_int8(str(path), str(tmp_path / "out.safetensors"))


def test_patterns_and_layer_configs_name_layers_as_the_output_does(tmp_path):
    path, output = save_diffusers(tmp_path, "flux"), tmp_path / "out.safetensors"
    config = tmp_path / "layers.json"
    config.write_text(json.dumps({r"single_blocks\.0\.linear1": {"convrot": False}}))
    report = convert_to_int8(
        str(path), str(output), exclude_layers=r"img_attn\.qkv", layer_config=str(config)
    )
    names = {layer.name: layer.format for layer in report.layers}
    assert "double_blocks.0.img_attn.qkv" not in names
    assert "convrot" not in names["single_blocks.0.linear1"]
    assert "convrot" in names["single_blocks.1.linear1"]
    assert "double_blocks.0.img_attn.qkv.bias" in {k.name for k in report.kept}


def test_a_dry_run_shows_the_names_of_the_output(tmp_path):
    path = save_diffusers(tmp_path, "flux")
    report = plan_int8(str(path))
    assert "double_blocks.0.img_attn.qkv" in [t.name for t in report.layers]
    assert any("become ComfyUI's" in note for note in report.notes)


@pytest.mark.parametrize("prefix", ["transformer.", "lora_transformer_"])
def test_a_lora_for_diffusers_is_merged_into_the_rows_it_is_for(prefix, tmp_path):
    path, lora = save_diffusers(tmp_path, "sd3"), tmp_path / "lora.safetensors"
    tensors, changes = {}, {}
    for module, shape in {
        "transformer_blocks.1.attn.to_k": (128, 128),
        "transformer_blocks.1.norm1_context.linear": (256, 128),
    }.items():
        key = module if prefix.endswith(".") else module.replace(".", "_")
        parts, changes[f"{module}.weight"] = low_rank(prefix + key, *shape, seed=len(tensors))
        tensors |= parts
    save_lora(lora, tensors)
    got = floats(int8(path, tmp_path / "out.safetensors", merge_lora_path=str(lora)))
    sums = {n: t.double() + changes.get(n, 0) for n, t in weights("sd3").items()}
    want = renamed("sd3", sums)
    for name in ("attn.qkv", "adaLN_modulation.1"):
        stream = "x_block" if name == "attn.qkv" else "context_block"
        weight = f"joint_blocks.1.{stream}.{name}.weight"
        assert ((got[weight] - want[weight]).abs() <= half_a_step(want[weight])).all(), weight


def test_a_calibration_recorded_in_diffusers_serves_the_fused_layers(tmp_path):
    """Layers that ComfyUI fuses have one input, so any of their records is the fused layer's."""
    from convert_to_quant.quant.algorithms import LayerStats
    from convert_to_quant.quant.calibration import save as save_calibration

    g = torch.Generator().manual_seed(1)
    samples = torch.randn(256, 128, generator=g) * torch.linspace(0.1, 3, 128)
    record = tmp_path / "calibration.safetensors"
    stats = LayerStats(samples=samples, channel_max=samples.abs().amax(0), channel_mean=samples.mean(0))
    save_calibration(record, {f"transformer.transformer_blocks.0.attn.to_{x}": stats for x in "qkv"})
    report = convert_to_int8(
        str(save_diffusers(tmp_path, "flux")),
        str(tmp_path / "out.safetensors"),
        calibration_data=str(record),
    )
    algorithms = {layer.name: layer.algorithm for layer in report.layers}
    assert algorithms["double_blocks.0.img_attn.qkv"] == "quip"
    assert algorithms["double_blocks.1.img_attn.qkv"] == "rtn"
    assert not any("unused" in note for note in report.notes)


def test_a_fused_layer_is_read_from_its_parts_from_any_byte_on(tmp_path):
    """Its rows are read to where they belong: nothing is copied to make one."""
    with open_checkpoint(save_diffusers(tmp_path, "flux")) as checkpoint:
        found = recognise(checkpoint.tensors)
        assert found is not None
        view = comfyui_view(checkpoint, *found)
        info = view.tensors["single_blocks.0.linear1.weight"]
        part = 128 * 128 * 2
        assert [p.nbytes for p in info.pieces] == [part, part, part, 4 * part]
        whole = renamed("flux", weights("flux"))[info.name]
        assert torch.equal(view.read(info.name), whole)
        across = bytearray(2 * part)
        view.read_into(info, memoryview(across), part // 2)
        assert across == bytes(whole.view(torch.uint8).flatten()[part // 2 :][: 2 * part].tolist())
