"""The files on disk, read back with plain safetensors and json: what ComfyUI will see."""

import json

import numpy as np
import pytest
import torch
from models import block_weights, layers, save, save_sharded
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.quantization import convert_to_int8


def hadamard64(group):
    h4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=np.float64)
    h = np.ones((1, 1))
    while h.shape[0] < group:
        h = np.kron(h, h4)
    return h / np.sqrt(group)


def expand(scale, shape, block):
    """The scale as a float64 matrix of the weight's shape."""
    scale = scale.double().numpy()
    if block:
        return np.kron(scale, np.ones((block, block)))[: shape[0], : shape[1]]
    return np.broadcast_to(scale, shape)


def restore(q, scale, config):
    """The weight as the contract defines it, in float64."""
    values = q.double().numpy() * expand(scale, q.shape, config.get("group_size", 0))
    group = config.get("convrot_groupsize") if config.get("convrot") else 0
    if group:
        values = (values.reshape(len(values), -1, group) @ hadamard64(group)).reshape(values.shape)
    return values


def config_of(tensors, layer):
    return json.loads(bytes(tensors[f"{layer}.comfy_quant"].numpy()).decode("utf-8"))


FORMATS = {
    "row+convrot": ({}, {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}, 38),
    "row": ({"convrot": False}, {"format": "int8_tensorwise"}, 38),
    "axis": ({"scaling_mode": "axis", "convrot": False}, {"format": "int8_tensorwise"}, 38),
    "row+convrot16": (
        {"convrot_group_size": 16},
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16},
        38,
    ),
    "tensor": ({"scaling_mode": "tensor", "convrot": False}, {"format": "int8_tensorwise"}, 34),
    "tensor+convrot": (
        {"scaling_mode": "tensor"},
        {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256},
        34,
    ),
    "block128": ({"scaling_mode": "block"}, {"format": "int8_blockwise", "group_size": 128}, 35),
    "block64": (
        {"scaling_mode": "block", "block_size": 64},
        {"format": "int8_blockwise", "group_size": 64},
        35,
    ),
}


@pytest.mark.parametrize(("options", "config", "floor_db"), FORMATS.values(), ids=FORMATS)
def test_quantized_layers_hold_what_the_contract_says(tmp_path, options, config, floor_db):
    source = block_weights()
    report = convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors", **options)
    out = load_file(str(tmp_path / "q.safetensors"))
    assert [r.name for r in report.layers] == layers()
    for layer in layers():
        weight, q, scale = source[f"{layer}.weight"], out[f"{layer}.weight"], out[f"{layer}.weight_scale"]
        n, k = weight.shape
        assert q.dtype == torch.int8
        assert q.shape == weight.shape
        assert scale.dtype == torch.float32
        block = config.get("group_size")
        mode = options.get("scaling_mode", "row")
        expected = (n // block, k // block) if block else ((1, 1) if mode == "tensor" else (n, 1))
        assert scale.shape == expected
        assert out[f"{layer}.comfy_quant"].dtype == torch.uint8
        assert config_of(out, layer) == config
        assert list(config_of(out, layer)) == list(config), "key order is that of ComfyUI's own saver"
        source64 = weight.double().numpy()
        noise = restore(q, scale, config_of(out, layer)) - source64
        assert 10 * np.log10((source64**2).sum() / (noise**2).sum()) > floor_db
        assert q.abs().max() == 127, "the whole grid is used, and -128 never"
        assert q.min() >= -127


def test_everything_else_keeps_its_bytes(tmp_path):
    source = block_weights()
    convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    quantized = {f"{layer}.weight" for layer in layers()}
    kept = set(source) - quantized
    assert {
        "x_embedder.weight",
        "final_layer.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.1.attn.norm.weight",
    } <= kept
    for name in kept:
        assert out[name].dtype == source[name].dtype
        assert torch.equal(out[name].view(torch.uint8), source[name].view(torch.uint8))
    extra = {f"{layer}{end}" for layer in layers() for end in (".weight_scale", ".comfy_quant")}
    assert set(out) == set(source) | extra


def test_a_model_without_blocks_has_all_its_linears_quantized(tmp_path):
    source = {
        "first.weight": torch.randn(256, 128),
        "second.weight": torch.randn(128, 256),
        "second.bias": torch.randn(128),
    }
    convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    assert out["first.weight"].dtype == out["second.weight"].dtype == torch.int8
    assert config_of(out, "first")["convrot_groupsize"] == 64, "128 columns allow 64"
    assert torch.equal(out["second.bias"], source["second.bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_source_dtypes(tmp_path, dtype):
    source = block_weights(dtype=dtype)
    report = convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    assert out["x_embedder.weight"].dtype == dtype
    assert min(r.sqnr_db for r in report.layers) > 38


def test_metadata_is_carried_over(tmp_path):
    metadata = {"format": "pt", "config": json.dumps({"transformer": {"x": 1}}), "ünïcode": "→"}
    convert_to_int8(save(tmp_path / "m.safetensors", block_weights(), metadata), tmp_path / "q.safetensors")
    with safe_open(str(tmp_path / "q.safetensors"), "pt") as f:
        found = f.metadata()
    assert found.pop("convert_to_quant.job"), "by which a later run knows its own result"
    assert found == metadata


def test_quantization_metadata_on_request_agrees_with_the_tensors(tmp_path):
    stale = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {}}), "a": "b"}
    source = save(tmp_path / "m.safetensors", block_weights(), stale)
    convert_to_int8(source, tmp_path / "plain.safetensors")
    convert_to_int8(source, tmp_path / "listed.safetensors", save_quant_metadata=True)
    with safe_open(str(tmp_path / "plain.safetensors"), "pt") as f:
        assert f.metadata().keys() == {"a", "convert_to_quant.job"}, (
            "an old layer list would override the tensors"
        )
    with safe_open(str(tmp_path / "listed.safetensors"), "pt") as f:
        listed = json.loads(f.metadata()["_quantization_metadata"])
    out = load_file(str(tmp_path / "listed.safetensors"))
    assert listed == {"format_version": "1.0", "layers": {name: config_of(out, name) for name in layers()}}


def test_tensors_are_aligned_for_readers_that_map_the_file(tmp_path):
    convert_to_int8(save(tmp_path / "m.safetensors", block_weights()), tmp_path / "q.safetensors")
    raw = (tmp_path / "q.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert size % 8 == 0
    header = json.loads(raw[8 : 8 + size])
    del header["__metadata__"]
    widths = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1}
    spans = sorted(spec["data_offsets"] for spec in header.values())
    assert all(spec["data_offsets"][0] % widths[spec["dtype"]] == 0 for spec in header.values())
    assert [b for _, b in spans[:-1]] == [a for a, _ in spans[1:]]
    assert len(raw) == 8 + size + spans[-1][1]


@pytest.mark.parametrize("give", ["index", "folder"])
def test_shards_become_one_file(tmp_path, give):
    source = block_weights()
    index = save_sharded(tmp_path / "sharded", source)
    whole = save(tmp_path / "whole.safetensors", source)
    convert_to_int8(index if give == "index" else index.parent, tmp_path / "a.safetensors")
    convert_to_int8(whole, tmp_path / "b.safetensors")
    a, b = load_file(str(tmp_path / "a.safetensors")), load_file(str(tmp_path / "b.safetensors"))
    assert set(a) == set(b)
    assert all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as f:
        found = f.metadata()
    assert found.pop("convert_to_quant.job")
    assert found == {"format": "pt", "shard0": "yes", "shard1": "yes", "shard2": "yes"}


def test_comfy_quant_is_accepted_and_changes_nothing(tmp_path):
    source = save(tmp_path / "m.safetensors", block_weights())
    convert_to_int8(source, tmp_path / "a.safetensors", comfy_quant=True)
    convert_to_int8(source, tmp_path / "b.safetensors", comfy_quant=False)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_layers_no_group_divides_stay_unrotated_and_say_so(tmp_path):
    source = {
        f"blocks.{b}.{n}.weight": torch.randn(128, k) for b in (0, 1) for n, k in (("a", 256), ("b", 200))
    }
    report = convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    assert config_of(out, "blocks.0.b") == {"format": "int8_tensorwise"}
    assert config_of(out, "blocks.0.a")["convrot_groupsize"] == 256
    assert any("2 layers are not rotated" in note for note in report.notes)


def test_zero_rows_and_zero_layers(tmp_path):
    source = block_weights()
    source["blocks.0.mlp.fc1.weight"].zero_()
    source["blocks.1.mlp.fc1.weight"][3] = 0
    report = convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    assert not out["blocks.0.mlp.fc1.weight"].any()
    assert torch.isfinite(out["blocks.0.mlp.fc1.weight_scale"]).all()
    assert not out["blocks.1.mlp.fc1.weight"][3].any()
    assert {r.name: r.sqnr_db for r in report.layers}["blocks.0.mlp.fc1"] == float("inf")
