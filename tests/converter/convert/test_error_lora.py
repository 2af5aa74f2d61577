"""--extract-lora: the file of what quantization lost, against float64 and through the names ComfyUI uses."""

import json
import math

import numpy as np
import pytest
import torch
from format_cases import CASES, arrays, layer
from models import block_weights, layers, save
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.lora.low_rank import low_rank
from convert_to_quant.converter.plan.error_lora import lora_name
from convert_to_quant.converter.presets import by_name
from convert_to_quant.converter.presets.facts import Match
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.quantization import convert_many_to_int8, convert_to_int8, plan_int8

WRITTEN = [c for c in CASES if c.options is not None]


def decibels(source, error):
    return 10 * math.log10(np.square(source).sum() / np.square(error).sum())


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (64, 8)])
def test_the_product_is_near_the_best_of_its_rank(shape):
    matrix = torch.randn(shape)
    up, down = low_rank(matrix, 16)
    assert up.shape == (shape[0], min(16, *shape))
    assert down.shape == (min(16, *shape), shape[1])
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    best = np.sqrt(np.square(values[16:]).sum())
    assert float((matrix - up @ down).norm()) <= 1.02 * best + 1e-4
    again = low_rank(matrix, 16)
    assert torch.equal(up, again[0])
    assert torch.equal(down, again[1])


def test_nothing_lost_is_nothing_gained():
    up, down = low_rank(torch.zeros(32, 48), 4)
    assert not up.any()
    assert not (up @ down).any()


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_every_format_regains_what_the_report_says(tmp_path, case):
    source = block_weights()
    model, output = save(tmp_path / "m.safetensors", source), tmp_path / "q.safetensors"
    report = convert_to_int8(model, output, extract_lora=8, lora_target=r"blocks\.0\.", **case.options)
    found = report.error_lora
    assert found is not None
    assert [c.name for c in found.layers] == [n for n in layers() if n.startswith("blocks.0.")]
    lora = load_file(found.path)
    assert len(lora) == 2 * len(found.layers)
    for told in found.layers:
        tensors, config = layer(output, told.name)
        tensors.pop("bias", None)
        want = source[f"{told.name}.weight"].double().numpy()
        have = case.decode(arrays(tensors), config)
        name = f"diffusion_model.{told.name}.lora"
        up, down = (lora[f"{name}_{n}.weight"].double().numpy() for n in ("up", "down"))
        assert told.without_db == pytest.approx(decibels(want, want - have), abs=0.05)
        assert told.with_db == pytest.approx(decibels(want, want - have - up @ down), abs=0.05)
        assert told.with_db > told.without_db + 0.2
    assert f"{found.layers[0].name}" in json.dumps(report.to_dict()["error_lora"])
    assert "-> " in found.summary()


def test_the_command_line_writes_it_beside_the_output_once(tmp_path, capsys):
    model = save(tmp_path / "m.safetensors", block_weights())
    assert main(["-i", str(model), "--extract-lora", "--lora-rank", "4"]) == 0
    path = tmp_path / "m-int8_row_convrot-error-lora-r4.safetensors"
    assert "error LoRA of rank 4 for 6 layers" in capsys.readouterr().out
    with safe_open(path, "pt") as f:
        assert f.metadata()["convert_to_quant.error_of"] == "m-int8_row_convrot.safetensors"
        assert f.get_slice("diffusion_model.blocks.0.mlp.fc1.lora_down.weight").get_shape() == [4, 256]
    assert not list(tmp_path.glob("*.part*"))
    named = tmp_path / "e.safetensors"
    assert main(["-i", str(model), "-o", str(tmp_path / "o.safetensors"), "--extract-lora", "4",
                 "--lora-output", str(named)]) == 0  # fmt: skip
    first, second = load_file(str(path)), load_file(str(named))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_its_modules_are_found_in_the_checkpoint_by_our_own_reader(tmp_path):
    tensors = {f"model.diffusion_model.{n}": t for n, t in block_weights().items()}
    model = save(tmp_path / "m.safetensors", tensors)
    report = convert_to_int8(model, tmp_path / "q.safetensors", extract_lora=True)
    assert report.error_lora.rank == 32
    merged = convert_to_int8(model, tmp_path / "r.safetensors", merge_lora_path=report.error_lora.path)
    assert merged.loras[0].tensors == len(layers())
    assert merged.loras[0].unmatched == ()


def test_names_are_those_of_comfyui():
    encoder, flux = Match(by_name("te-t5-xxl")), Match(by_name("flux1"), "model.diffusion_model.")
    named = [
        ("model.diffusion_model.double_blocks.0.a", [flux], "diffusion_model.double_blocks.0.a"),
        ("double_blocks.0.a", [], "diffusion_model.double_blocks.0.a"),
        ("encoder.block.0.q", [encoder], "text_encoders.transformer.encoder.block.0.q"),
        ("text_encoders.t5xxl.transformer.x", [encoder, flux], "text_encoders.t5xxl.transformer.x"),
    ]
    for name, matches, want in named:
        assert lora_name(name, matches) == want


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora-target", "x"], "--lora-target needs --extract-lora"),
        (["--lora-output", "x"], "--lora-output needs --extract-lora"),
        (["--extract-lora", "--lora-target", "atn"], "matches no quantized layer; the nearest is 'blocks"),
        (["--extract-lora", "--lora-target", "("], "not a regular expression"),
        (["--extract-lora", "--lora-output", "m.safetensors"], "m.safetensors"),
        (["--extract-lora", "--lora-output", "q.safetensors"], "is the output itself"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m.safetensors", block_weights())
    assert main(["-i", "m.safetensors", "-o", "q.safetensors", *flags]) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_plan_tells_of_it_and_a_batch_takes_no_single_name(tmp_path):
    model = save(tmp_path / "m.safetensors", block_weights())
    notes = plan_int8(model, extract_lora=8).notes
    assert any("the error of 6 layers goes into" in n and "rank 8" in n for n in notes)
    with pytest.raises(ConversionError, match="--lora-output names one file"):
        convert_many_to_int8([str(model)], extract_lora=8, lora_output="x.safetensors")
    with pytest.raises(ValueError, match="must be from 1 to 1024, not 0"):
        plan_int8(model, extract_lora=0)
