"""Options without effect are told in one line, and only those."""

from dataclasses import fields

import pytest
import torch
from lora_files import flux_weights, low_rank, save_lora
from models import block_weights, layers, save

from convert_to_quant.converter.options.settings import Settings, keywords
from convert_to_quant.converter.plan.effects import ALWAYS, EFFECTS
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import plan_int8

FLAGS = {f.name: f.metadata["flags"][0] for f in fields(Settings)}


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "m.safetensors", block_weights())


@pytest.fixture
def given(tmp_path, model):
    """Words of a test's options that stand for files."""
    weight = block_weights()[f"{layers()[0]}.weight"]
    samples = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(0))
    stats = LayerStats(samples=samples, channel_max=samples.abs().amax(0))
    calibration = save_calibration(tmp_path / "c.safetensors", dict.fromkeys(layers()[:1], stats))
    tensors, _ = low_rank(layers()[0], *weight.shape)
    lora = save_lora(tmp_path / "lora.safetensors", tensors)
    return {"CALIBRATION": str(calibration), "LORA": str(lora or tmp_path / "lora.safetensors")}


def told(model, options, given):
    """The lines about options without effect in the notes of a plan."""
    filled = {k: given.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    notes = plan_int8(str(model), **filled).notes
    return [n for n in notes if "nothing here" in n or "is it the right flag" in n]


def test_every_option_says_when_it_matters():
    """A new option is a row of EFFECTS, or a word of ALWAYS; never both."""
    listed = [option for effect in EFFECTS for option in effect.options]
    assert sorted([*listed, *ALWAYS]) == sorted(keywords()), "see converter/plan/effects.py"


IDLE = {
    "num_iter": {"num_iter": 7},
    "lr": {"lr": 0.5},
    "optimizer": {"optimizer": "adamw", "simple": True},
    "quip_actorder": {"quip_actorder": True},
    "quip_passes": {"quip_passes": 4},
    "quip_damping": {"quip_damping": 0.5, "calibration_data": "CALIBRATION", "simple": True},
    "quip_checkpointed": {"quip_checkpointed": True},
    "quip_checkpoint_threshold": {"quip_checkpoint_threshold": 64},
    "quip_checkpoint_segments": {"quip_checkpoint_segments": 2},
    "bf16_compute": {"bf16_compute": "off"},
    "device": {"device": "cpu"},
    "streaming_mode": {"streaming_mode": "minimal"},
    "quip_seed": {"quip_seed": 5, "calibration_data": "CALIBRATION"},
    "calibration_data": {"calibration_data": "CALIBRATION", "simple": True},
    "calibration_lora": {"calibration_lora": "LORA", "simple": True},
    "calib_samples": {"calib_samples": 5},
    "smoothquant_alpha": {"smoothquant_alpha": 0.7, "calibration_data": "CALIBRATION"},
    "convrot_group_size": {"convrot_group_size": 16, "scaling_mode": "block"},
    "block_size": {"block_size": 64},
    "preserve_layers": {"preserve_layers": "x_embedder"},
    "merge_lora_scale": {"merge_lora_scale": 0.5},
    "merge_lora_dampen": {"merge_lora_dampen": False, "merge_lora_path": "LORA"},
    "embeddings": {"embeddings": True},
    "preset_strict": {"preset_strict": True},
    "quality_threshold": {"quality_threshold": 20.0},
}


@pytest.mark.parametrize("option", IDLE)
def test_an_option_without_effect_is_told(option, model, given):
    lines = told(model, IDLE[option], given)
    assert any(FLAGS[option] in line.partition(" nothing here")[0] for line in lines), lines


def test_each_row_has_a_case():
    assert {option for effect in EFFECTS for option in effect.options} == set(IDLE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_iter": 7, "lr": 0.5, "optimizer": "adamw", "quip_seed": 3, "device": "cpu"},
        {"calibration_data": "CALIBRATION", "quip_actorder": True, "quip_damping": 0.5, "calib_samples": 9},
        {
            "calibration_data": "CALIBRATION",
            "quip_checkpointed": True,
            "quip_passes": 4,
            "quip_seed": 1,
            "calib_samples": 9,
        },
        {"calibration_data": "CALIBRATION", "smoothquant": True, "smoothquant_alpha": 0.7, "simple": True},
        {"calibration_lora": "LORA"},
        {"scaling_mode": "block", "block_size": 64},
        {"convrot": False},
        {"convrot": True, "convrot_group_size": 16},
        {"merge_lora_path": "LORA", "merge_lora_scale": 0.5},
        {"merge_lora_paths": ("LORA", "LORA"), "merge_lora_dampen": False},
        {"report_quality": True, "quality_threshold": 20.0},
        {"output_dtype": "fp16", "preserve_layers": "x_embedder"},
    ],
    ids=lambda o: "+".join(o) or "none",
)
def test_an_option_with_an_effect_is_not_told(options, model, given):
    filled = {k: tuple(given.get(x, x) for x in v) if isinstance(v, tuple) else v for k, v in options.items()}
    assert told(model, filled, given) == []


def flux(tmp_path):
    extra = {"vector_in.in_layer.weight": torch.zeros(64, 64, dtype=torch.bfloat16)}
    return save(tmp_path / "flux.safetensors", {**flux_weights(), **extra})


def test_the_flag_of_another_model_is_told(tmp_path):
    path = flux(tmp_path)
    (line,) = told(path, {"keep_sets": ("zimage",)}, {})
    assert line.startswith("--zimage is for Z-Image")
    assert "recognised as flux1" in line
    assert told(path, {"keep_sets": ("t5xxl",)}, {})


def test_the_flag_of_the_model_that_is_found_is_not_told(tmp_path):
    path = flux(tmp_path)
    assert told(path, {}, {}) == []
    tensors = {
        "double_stream_modulation_img.lin.weight": torch.zeros(384, 64),
        "single_stream_modulation.lin.weight": torch.zeros(192, 64),
        **flux_weights(),
    }
    two = save(tmp_path / "flux2.safetensors", tensors)
    assert told(two, {"keep_sets": ("flux2",)}, {}) == []


def test_a_flag_that_keeps_nothing_is_told(model):
    lines = told(model, {"keep_sets": ("qwen_vlm",)}, {})
    assert lines == ["--qwen_vlm changes nothing here: no layer of this file has a name that it keeps"]
