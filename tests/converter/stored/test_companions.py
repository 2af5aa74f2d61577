"""Inputs that are already quantized: FP8 with its scale in every spelling, and INT8."""

import json

import pytest
import torch
from models import block_weights, layers, save
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.quantization import ConversionError, convert_to_int8

SPELLINGS = {
    "comfy": (".weight_scale", True, False),
    "legacy": (".scale_weight", False, True),
    "metadata": (".weight_scale", False, False),
}


def fp8_model(spelling, rows=False):
    """FP8 weights with a scale for every layer and the final one; returns tensors, metadata, floats."""
    suffix, config, marker = SPELLINGS[spelling]
    tensors, floats = {}, {}
    metadata = {}
    for name, value in block_weights().items():
        layer = name.removesuffix(".weight")
        if layer not in (*layers(), "final_layer"):
            tensors[name] = value
            continue
        peak = value.float().abs().amax(1, keepdim=True) if rows else value.float().abs().amax()
        scale = peak / 448
        q = (value.float() / scale).to(torch.float8_e4m3fn)
        tensors[name], tensors[layer + suffix] = q, scale
        floats[layer] = q.float() * scale
        if config:
            tensors[layer + ".comfy_quant"] = torch.tensor(
                list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8
            )
    if marker:
        tensors["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    if spelling == "metadata":
        entry = {"format": "float8_e4m3fn"}
        metadata["_quantization_metadata"] = json.dumps(
            {"format_version": "1.0", "layers": dict.fromkeys(floats, entry)}
        )
    return tensors, metadata, floats


def sqnr(q, scale, source):
    from convert_to_quant.kernels import dequantize

    error = dequantize(q, scale, torch.float32, 256) - source
    return 10 * torch.log10(source.square().sum() / error.square().sum())


@pytest.mark.parametrize("rows", [False, True], ids=["per tensor", "per row"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fp8_layers_are_dequantized_first(tmp_path, spelling, rows):
    tensors, metadata, floats = fp8_model(spelling, rows)
    convert_to_int8(save(tmp_path / "m.safetensors", tensors, metadata), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    for layer in layers():
        assert out[f"{layer}.weight"].dtype == torch.int8
        assert json.loads(bytes(out[f"{layer}.comfy_quant"].numpy()))["format"] == "int8_tensorwise"
        assert sqnr(out[f"{layer}.weight"], out[f"{layer}.weight_scale"], floats[layer]) > 38
        assert f"{layer}.scale_weight" not in out


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fp8_layers_that_stay_are_kept_loadable(tmp_path, spelling):
    tensors, metadata, _ = fp8_model(spelling)
    convert_to_int8(save(tmp_path / "m.safetensors", tensors, metadata), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    assert torch.equal(
        out["final_layer.weight"].view(torch.uint8), tensors["final_layer.weight"].view(torch.uint8)
    )
    assert torch.equal(out["final_layer.weight_scale"], tensors["final_layer" + SPELLINGS[spelling][0]])
    # A marker of two elements says that every layer multiplies in full precision.
    extra = {"full_precision_matrix_mult": True} if spelling == "legacy" else {}
    assert json.loads(bytes(out["final_layer.comfy_quant"].numpy())) == {"format": "float8_e4m3fn", **extra}
    assert "scaled_fp8" not in out
    with safe_open(str(tmp_path / "q.safetensors"), "pt") as f:
        assert "_quantization_metadata" not in (f.metadata() or {})


def test_fp8_without_a_scale_is_read_as_it_is(tmp_path):
    source = block_weights()
    tensors = {n: v.to(torch.float8_e4m3fn) if v.dim() == 2 else v for n, v in source.items()}
    convert_to_int8(save(tmp_path / "m.safetensors", tensors), tmp_path / "q.safetensors")
    out = load_file(str(tmp_path / "q.safetensors"))
    layer = layers()[0]
    assert sqnr(out[f"{layer}.weight"], out[f"{layer}.weight_scale"], tensors[f"{layer}.weight"].float()) > 38


def test_an_fp8_scale_of_another_shape_is_refused_by_name(tmp_path):
    tensors, metadata, _ = fp8_model("comfy")
    tensors["blocks.0.mlp.fc1.weight_scale"] = torch.ones(4, 2)
    path = save(tmp_path / "m.safetensors", tensors, metadata)
    with pytest.raises(ConversionError, match=r"blocks\.0\.mlp\.fc1\.weight.*\[4, 2\]"):
        convert_to_int8(path, tmp_path / "q.safetensors")


def test_converting_twice_is_refused(tmp_path):
    convert_to_int8(save(tmp_path / "m.safetensors", block_weights()), tmp_path / "q.safetensors")
    with pytest.raises(ConversionError, match="nothing to quantize: 6 of its weights are INT8 already"):
        convert_to_int8(tmp_path / "q.safetensors", tmp_path / "r.safetensors")


def test_int8_layers_in_a_mixed_file_are_kept_with_their_companions(tmp_path):
    source = block_weights()
    convert_to_int8(save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors")
    mixed = load_file(str(tmp_path / "q.safetensors"))
    for end in (".weight", ".weight_scale", ".comfy_quant"):
        mixed.pop("blocks.1.mlp.fc2" + end)
    mixed["blocks.1.mlp.fc2.weight"] = source["blocks.1.mlp.fc2.weight"]
    report = convert_to_int8(save(tmp_path / "mixed.safetensors", mixed), tmp_path / "again.safetensors")
    out = load_file(str(tmp_path / "again.safetensors"))
    first = load_file(str(tmp_path / "q.safetensors"))
    assert [r.name for r in report.layers] == ["blocks.1.mlp.fc2"]
    assert set(out) == set(first)
    assert all(torch.equal(out[n].view(torch.uint8), first[n].view(torch.uint8)) for n in first)
