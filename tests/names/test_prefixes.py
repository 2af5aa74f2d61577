"""Prefixes: what each kind of file puts before a layer's name, and what it tells."""

import pytest

from convert_to_quant.names.prefixes import (
    CHECKPOINT,
    DIFFUSION_MODEL,
    RUNNING,
    checkpoint_forms,
    is_flattened,
    lora_readings,
    prefix_of,
    strip,
)


@pytest.mark.parametrize("prefixes", [CHECKPOINT, DIFFUSION_MODEL, RUNNING], ids=["ckpt", "model", "running"])
def test_a_longer_prefix_is_tried_before_its_own_beginning(prefixes):
    """Else ``model.diffusion_model.x`` would be read as the layer diffusion_model.x of a model."""
    for i, prefix in enumerate(prefixes):
        assert not any(prefix and later.startswith(prefix) for later in prefixes[i + 1 :])


def test_a_checkpoint_may_have_no_prefix_and_that_is_tried_first():
    assert CHECKPOINT[:2] == ("", "model.diffusion_model.")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("_orig_mod.module.base_model.model.transformer.blocks.0.q", "blocks.0.q"),
        ("0.auto_model.encoder.layer.0.q", "encoder.layer.0.q"),
        ("text_encoder.text_model.encoder.q", "encoder.q"),
        ("text_encoder_2.encoder.q", "text_encoder_2.encoder.q"),
        ("model.", "model."),
        ("models.0.q", "models.0.q"),
    ],
)
def test_a_running_models_prefixes_come_off_in_any_number(name, layer):
    """The second text encoder keeps its prefix: without it the layers of two encoders would be one."""
    assert strip(name, RUNNING) == layer


def test_only_one_prefix_is_found_and_it_stands_before_something():
    assert prefix_of("diffusion_model.model.x", CHECKPOINT) == "diffusion_model."
    assert prefix_of("blocks.0.model.x", CHECKPOINT) == ""
    assert prefix_of("model.", CHECKPOINT) == ""


@pytest.mark.parametrize(
    ("layer", "last", "part"),
    [
        ("model.diffusion_model.blocks.0.q", "blocks.0.q", "model"),
        ("module.model.blocks.0.q", "blocks.0.q", ""),
        ("text_encoders.clip_l.transformer.text_model.q", "text_model.q", "te1"),
        ("text_encoders.t5xxl.encoder.q", "encoder.q", "te3"),
        ("text_encoders.qwen3_4b.transformer.model.layers.0.q", "layers.0.q", "te"),
        ("conditioner.embedders.1.model.transformer.q", "q", "te2"),
        ("blocks.0.q", "blocks.0.q", ""),
    ],
)
def test_a_checkpoints_layer_without_its_prefixes(layer, last, part):
    """All forms from the whole name down, with what the prefixes tell of the part it belongs to."""
    forms = list(checkpoint_forms(layer))
    assert forms[0] == (layer, "")
    assert forms[-1] == (last, part)
    lengths = [len(form) for form, _ in forms]
    assert lengths == sorted(set(lengths), reverse=True)


@pytest.mark.parametrize(
    ("module", "readings", "parts"),
    [
        (
            "base_model.model.transformer.a.b",
            ["base_model.model.transformer.a.b", "transformer.a.b"],
            {"model"},
        ),
        ("lora_te2_text_model_q", ["lora_te2_text_model_q"], {"te", "te2", "te3"}),
        ("pipe.dit.blocks.0.q", ["pipe.dit.blocks.0.q"], {"model"}),
        ("model.layers.0.q", ["model.layers.0.q"], set()),
        ("blocks.0.q", [], set()),
    ],
)
def test_readings_of_a_lora_module(module, readings, parts):
    found = list(lora_readings(module))
    assert [name for name, _ in found[:-1]] == readings
    assert found[-1][1] == parts
    assert is_flattened(module) == module.startswith("lora_")
