"""The check of every written layer: it must see what ComfyUI would turn into noise."""

import json
import re

import pytest
import torch
from models import block_weights, layers, save

from convert_to_quant.converter.convert import run as convert
from convert_to_quant.converter.quantize import check
from convert_to_quant.converter.quantize.check import decibels, sample_rows
from convert_to_quant.quantization import ConversionError, convert_to_int8


def sabotage(monkeypatch, change):
    """Let `change(name, data)` alter the bytes of every tensor on their way into the file."""
    from convert_to_quant.files.writer import OutputFile

    write = OutputFile.write
    monkeypatch.setattr(
        OutputFile, "write", lambda self, name, data: write(self, name, change(name, bytes(data)))
    )


def config_without_rotation(name, data):
    if not name.endswith(".comfy_quant"):
        return data
    return json.dumps({"format": "int8_tensorwise"}).encode().ljust(len(data))


def config_with_another_group(name, data):
    return data.replace(b"256", b"64 ") if name.endswith(".comfy_quant") else data


def scale_reversed(name, data):
    if not name.endswith(".weight_scale"):
        return data
    # Rows of equal size would hide a permutation: make it one that no scale survives.
    values = torch.frombuffer(bytearray(data), dtype=torch.float32)
    return bytes(memoryview((values * 3).numpy()).cast("B"))


def weight_shifted(name, data):
    return data[1:] + data[:1] if name.endswith("fc1.weight") else data


SABOTAGE = [config_without_rotation, config_with_another_group, scale_reversed, weight_shifted]


@pytest.mark.parametrize("large", [False, True], ids=["all rows", "sampled rows"])
@pytest.mark.parametrize("change", SABOTAGE)
def test_a_wrong_layer_is_refused(tmp_path, monkeypatch, change, large):
    if large:
        monkeypatch.setattr(check, "_SMALL", 0)
        monkeypatch.setattr(check, "_RUN", 16)
    sabotage(monkeypatch, change)
    path = save(tmp_path / "m.safetensors", block_weights())
    with pytest.raises(ConversionError, match=r"blocks\.0\.\S+weight: written as .* keeps only -?\d") as e:
        convert_to_int8(path, tmp_path / "q.safetensors")
    assert float(re.search(r"only (-?[\d.]+) dB", str(e.value))[1]) < 3
    assert not (tmp_path / "q.safetensors").exists()


def test_without_the_check_nothing_is_measured(tmp_path, monkeypatch):
    sabotage(monkeypatch, config_without_rotation)
    report = convert_to_int8(
        save(tmp_path / "m.safetensors", block_weights()), tmp_path / "q.safetensors", verify=False
    )
    assert [r.sqnr_db for r in report.layers] == [None] * len(layers())
    assert report.worst() == []


def test_unreadable_json_is_refused(tmp_path, monkeypatch):
    sabotage(monkeypatch, lambda name, data: data[:-1] + b"\0" if name.endswith("comfy_quant") else data)
    with pytest.raises(ConversionError, match="comfy_quant: not valid JSON"):
        convert_to_int8(save(tmp_path / "m.safetensors", block_weights()), tmp_path / "q.safetensors")


def test_a_poor_layer_is_warned_about(tmp_path):
    source = block_weights(dtype=torch.float32)
    source["blocks.0.mlp.fc1.weight"][0, 0] = 60.0
    path = save(tmp_path / "m.safetensors", source)
    report = convert_to_int8(path, tmp_path / "q.safetensors", scaling_mode="tensor", convrot=False)
    assert report.worst(1)[0].name == "blocks.0.mlp.fc1"
    assert [w.partition(":")[0] for w in report.warnings] == ["blocks.0.mlp.fc1"]
    assert "below 20 dB" in report.warnings[0]


def test_report_quality_measures_all_rows_and_warns_at_its_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_SMALL", 0)
    monkeypatch.setattr(check, "_RUN", 16)
    path = save(tmp_path / "m.safetensors", block_weights())
    seen = []
    real = convert.sample_rows
    monkeypatch.setattr(convert, "sample_rows", lambda *a: seen.append(real(*a)) or seen[-1])
    report = convert_to_int8(path, tmp_path / "q.safetensors", report_quality=True, quality_threshold=100.0)
    assert all(len(s.runs) == 1 for s in seen)
    assert len(report.warnings) == len(layers())
    assert not convert_to_int8(path, tmp_path / "r.safetensors").warnings
    assert any(len(s.runs) > 1 for s in seen)


@pytest.mark.parametrize("block", [16, 128, 512])
def test_samples_start_at_block_edges_and_cover_an_eighth(block):
    weight = torch.randn(5000, 300)
    sample = sample_rows(weight, block, every_row=False)
    assert all(r.start % block == 0 for r in sample.runs)
    rows = sum(r.stop - r.start for r in sample.runs)
    assert 5000 / 8 <= rows < 5000 / 3
    for run, part in zip(sample.runs, sample.rows, strict=True):
        assert torch.equal(part, weight[run])
    whole = sample_rows(weight, block, every_row=True)
    assert whole.runs == (slice(0, 5000),)


def test_decibels():
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
    assert decibels(0.0, 0.0) == float("inf")
    assert decibels(0.0, 1.0) == -float("inf")
