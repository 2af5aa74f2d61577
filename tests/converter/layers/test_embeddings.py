"""``--embeddings``: vocabulary tables as INT8 rows, through the toolkit's doors."""

import json

import catalogs
import numpy as np
import oracle
import pytest
import torch
from models import save
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor, mixed_precision_ops
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.layers.selection import select
from convert_to_quant.converter.presets import detect
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.quantization import convert_to_int8, plan_int8
from convert_to_quant.runtime import load_quantized

TABLE = "model.embed_tokens"
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    g = torch.Generator().manual_seed(4)
    tensors = {
        f"{TABLE}.weight": torch.randn(200, 256, generator=g).bfloat16(),
        f"{LAYER}.weight": torch.randn(128, 256, generator=g).bfloat16(),
        "model.layers.0.position_embedding.weight": torch.randn(128, 256, generator=g).bfloat16(),
    }
    return save(tmp_path_factory.mktemp("m") / "m.safetensors", tensors)


@pytest.fixture(scope="module", params=[True, False], ids=["rotated", "plain"])
def converted(request, model):
    """(file, its rotation, the float64 table that it means)."""
    path = model.with_name(f"q-{request.param}.safetensors")
    convert_to_int8(model, path, embeddings=True, convrot=request.param)
    tensors = load_file(path)
    config = json.loads(bytes(tensors[f"{TABLE}.comfy_quant"].tolist()))
    q, scale = (tensors[f"{TABLE}.{s}"].double().numpy() for s in ("weight", "weight_scale"))
    return path, config, oracle.rotate(q * scale, config.get("convrot_groupsize", 0))


def test_rows_are_int8_and_told_so(model, converted, capsys):
    path, config, table = converted
    assert config["format"] == "int8_tensorwise"
    assert config.get("convrot_groupsize", 0) == (0 if "False" in path.name else 256)
    want = load_file(model)[f"{TABLE}.weight"].double().numpy()
    assert 10 * np.log10((want**2).sum() / ((table - want) ** 2).sum()) > 40
    assert "model.layers.0.position_embedding.comfy_quant" not in load_file(path)
    report = verify(model, path)
    assert report.ok, report.problems
    assert {r.name for r in report.layers} == {TABLE, LAYER}
    for argv in (["inspect", path], ["-i", model, "--embeddings", "--dry-run"]):
        assert main([str(a) for a in argv]) == 0
        out = " ".join("".join(capsys.readouterr()).split())
        assert "fails where it offloads" in out


def test_lookups_unrotate_the_rows_they_take(converted):
    path, _, table = converted
    index = torch.tensor([[5, 0, 199], [7, 7, 31]])
    ops = mixed_precision_ops({}, torch.float32)
    module, net = ops.Embedding(200, 256), nn.Module()
    own = load_file(path)
    module.load_state_dict({k.removeprefix(f"{TABLE}."): t for k, t in own.items() if k.startswith(TABLE)})
    net.model = nn.Module()
    net.model.embed_tokens = nn.Embedding(200, 256)
    load_quantized(net, path, strict=False)
    for found in (module, net.model.embed_tokens):
        assert isinstance(found.weight, QuantizedTensor)
        got = found(index).detach().double().numpy()
        np.testing.assert_allclose(got, table[index.numpy()], rtol=2.0**-8, atol=1e-2)


def test_the_damage_of_a_row_is_found(tmp_path, model, converted):
    tensors = load_file(converted[0])
    tensors[f"{TABLE}.weight"][17] = tensors[f"{TABLE}.weight"][18]
    report = verify(model, save(tmp_path / "x.safetensors", tensors))
    assert not report.ok
    assert "row 17" in next(r.fault for r in report.layers if r.name == TABLE)


def test_in_any_format_and_with_calibration_a_table_is_rounded_rows(model):
    for options in ({"format": "nvfp4"}, {"scaling_mode": "tensor"}, {"optimizer": "ldlq"}):
        planned = {t.name: t for t in plan_int8(model, embeddings=True, **options).layers}
        assert planned[TABLE].stored.startswith("row")
        assert planned[TABLE].algorithm == "rtn"


@pytest.mark.parametrize("name", ["te-t5-xxl", "te-gpt-oss-20b"])
def test_presets_give_way_to_it_and_no_encoder_that_is_not_read(name):
    shapes = catalogs.load(catalogs.SMALL, name)[1]
    matches = detect(shapes)
    plain, asked = (select(shapes, matches, embeddings=e) for e in (False, True))
    changed = [n for n in shapes if plain[n] != asked[n]]
    assert changed
    assert all(n.rpartition(".weight")[0].endswith(("embed_tokens", "shared")) for n in changed)
    assert {asked[n].reason for n in changed} == {"--embeddings"}


def test_an_encoder_that_comfyui_reads_no_quantized_file_of_keeps_its_table():
    shapes = {"encoder.block.0.layer.0.SelfAttention.q.weight": (384, 1472), "shared.weight": (1510, 1472)}
    matches = detect(shapes)
    assert matches[0].preset.name == "te-byt5-small-glyph"
    assert select(shapes, matches, embeddings=True)["shared.weight"].action == "keep"
    assert select(shapes, matches, embeddings=True, force=True)["shared.weight"].action == "quantize"
