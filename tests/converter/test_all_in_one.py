"""A checkpoint with everything in one file: models with a preset are quantized, the rest keeps its bytes."""

import json

import pytest
import torch
from models import save
from safetensors import safe_open

from convert_to_quant.converter.cli.main import main
from convert_to_quant.quantization import convert_to_int8, plan_int8

FLUX = "model.diffusion_model."
T5 = "text_encoders.t5xxl.transformer."


def rand(*shape, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(len(shape) * 1000 + shape[0])
    return (torch.randn(*shape, generator=g) * 0.05).to(dtype)


def parts():
    """A diffusion model, a text encoder, a VAE and something unknown, under the prefixes of such files."""
    flux = {"img_in": (128, 64), "vector_in.in_layer": (128, 128), "final_layer.linear": (128, 128)}
    for i in range(2):
        flux |= {
            f"double_blocks.{i}.img_mod.lin": (768, 128),
            f"double_blocks.{i}.img_attn.qkv": (384, 128),
            f"single_blocks.{i}.linear1": (896, 128),
        }
    t5 = {"shared": (32128, 8), "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": (32, 64)}
    for i in range(2):
        t5 |= {
            f"encoder.block.{i}.layer.0.SelfAttention.q": (64, 4096),
            f"encoder.block.{i}.layer.1.DenseReluDense.wo": (4096, 64),
        }
    vae = {"decoder.mid.attn_1.q": (256, 256), "decoder.up.0.block.0.conv1": (8, 8, 3, 3)}
    other = {f"blocks.{i}.{n}": (256, 256) for i in range(3) for n in ("a", "b")}
    prefixes = {FLUX: flux, T5: t5, "vae.": vae, "something_else.": other}
    return {p: {f"{p}{n}.weight": rand(*s) for n, s in part.items()} for p, part in prefixes.items()}


@pytest.fixture
def model(tmp_path):
    tensors = {name: tensor for part in parts().values() for name, tensor in part.items()}
    tensors["vae.decoder.mid.attn_1.q.bias"] = rand(256, dtype=torch.float32)
    tensors[FLUX + "double_blocks.0.img_attn.qkv.bias"] = rand(384)
    tensors["model.ema_step"] = torch.tensor(7)
    return save(tmp_path / "all.safetensors", tensors, {"modelspec.title": "everything", "config": "{}"})


def raw(path):
    """Name -> (dtype, shape, bytes) as they stand in the file, and the metadata."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    base = 8 + length
    return {
        name: (e["dtype"], e["shape"], data[base + e["data_offsets"][0] : base + e["data_offsets"][1]])
        for name, e in header.items()
    }, metadata


QUANTIZED = {
    *(f"{FLUX}double_blocks.{i}.{n}" for i in range(2) for n in ("img_mod.lin", "img_attn.qkv")),
    *(f"{FLUX}single_blocks.{i}.linear1" for i in range(2)),
    *(f"{T5}encoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)),
    *(f"{T5}encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(2)),
}


def test_the_models_are_quantized_and_every_other_byte_is_the_same(model):
    output = model.parent / "q.safetensors"
    assert main(["-i", str(model), "-o", str(output)]) == 0
    before, metadata = raw(model)
    after, kept_metadata = raw(output)
    made = {f"{layer}.{kind}" for layer in QUANTIZED for kind in ("weight", "weight_scale", "comfy_quant")}
    assert {name for name, entry in after.items() if before.get(name) != entry} == made
    assert before.keys() - after.keys() == set()
    assert after.keys() - before.keys() == {n for n in made if not n.endswith(".weight")}
    assert {k: v for k, v in kept_metadata.items() if not k.startswith("convert_to_quant.")} == metadata
    assert all(after[f"{layer}.weight"][0] == "I8" for layer in QUANTIZED)


def test_the_notes_name_each_part(model):
    notes = convert_to_int8(model).notes
    assert any(n.startswith("recognised flux1") and f"under '{FLUX}'" in n for n in notes)
    assert any(n.startswith("recognised te-t5-xxl") and f"under '{T5}'" in n for n in notes)
    assert "vae: 3 tensors outside the recognised models stay as they are" in notes
    assert "something_else: 6 tensors outside the recognised models stay as they are" in notes
    assert "model: 1 tensors outside the recognised models stay as they are" in notes, "the EMA counter"


def test_no_pattern_reaches_the_vae(model):
    plan = plan_int8(model, custom_layers=r"attn_1\.q|something_else|img_attn", fallback="fp16")
    action = {t.name: t.action for t in plan.tensors}
    assert action["vae.decoder.mid.attn_1.q.weight"] == "keep"
    assert action["something_else.blocks.0.a"] == "quantize", "asked for by name"
    assert action[f"{T5}encoder.block.0.layer.0.SelfAttention.q"] == "cast"


def test_a_set_for_the_text_encoder_leaves_the_vae_its_decoder(model):
    output = model.parent / "q.safetensors"
    assert main(["-i", str(model), "-o", str(output), "--t5xxl"]) == 0
    with safe_open(str(output), framework="pt") as file:
        assert "vae.decoder.mid.attn_1.q.weight" in file.keys()  # noqa: SIM118 - no mapping
    assert {
        t.name for t in plan_int8(model, keep_sets=["t5xxl"]).layers if t.action == "quantize"
    } == QUANTIZED


def test_naming_one_preset_quantizes_that_part_alone(model):
    for preset, prefix in (("flux1", FLUX), ("te-t5-xxl", T5)):
        layers = {t.name for t in plan_int8(model, preset=preset).layers if t.action == "quantize"}
        assert layers == {name for name in QUANTIZED if name.startswith(prefix)}


def test_a_template_of_everything_gives_the_same_plan(model):
    path = model.parent / "t.json"
    assert main(["-i", str(model), "--dry-run", "create-template", "-o", str(path)]) == 0
    again = plan_int8(model, layer_config=str(path), preset="none")
    before = {(t.name, t.action, t.stored) for t in plan_int8(model).layers}
    assert {(t.name, t.action, t.stored) for t in again.layers} == before
