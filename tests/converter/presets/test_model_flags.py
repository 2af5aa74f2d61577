"""--preset, --preset-strict and the model flags, from the command line to the file."""

import pytest
import torch
from models import save
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.presets import KEEP_SETS


def weights(names, shape=(256, 256)):
    g = torch.Generator().manual_seed(0)
    return {f"{name}.weight": (torch.randn(*shape, generator=g) * 0.05).bfloat16() for name in names}


def quantized(model, *flags):
    """The layers that the command line quantizes; everything else must keep its bytes or be gone."""
    output = model.parent / "q.safetensors"
    assert main(["-i", str(model), "-o", str(output), "--overwrite", *flags]) == 0
    before, after = load_file(str(model)), load_file(str(output))
    layers = {n.removesuffix(".comfy_quant") for n in after if n.endswith(".comfy_quant")}
    for name, tensor in before.items():
        if name in after and name.removesuffix(".weight") not in layers:
            assert torch.equal(after[name], tensor), name
    return layers, before.keys() - after.keys()


KEPT = {
    "flux2": ["double_stream_modulation_img.lin", "guidance_in.in_layer", "final_layer.linear"],
    "t5xxl": [],
    "mistral": ["vision_tower.q", "multi_modal_projector.linear_1"],
    "visual": ["visual.mlp.down_proj", "merger.fc"],
    "hunyuan": ["byt5_in.fc1", "vector_in.in_layer"],
    "wan": ["time_projection.1", "face_adapter.q"],
    "qwen": ["img_in", "norm_out.linear"],
    "zimage": ["adaLN_modulation.1", "cap_embedder.1"],
    "zimage_refiner": ["context_refiner.qkv", "noise_refiner.qkv"],
    "distillation_large": ["distilled_guidance_layer.out_proj", "img_in"],
    "distillation_small": ["distilled_guidance_layer.out_proj"],
    "nerf_large": ["nerf_blocks.mlp", "img_attn.proj"],
    "nerf_small": ["nerf_blocks.mlp", "nerf_image_embedder.fc"],
    "radiance": ["img_in_patch", "nerf_final_layer_conv.fc"],
    "lora": ["alpha", "dora_scale"],
    "anima": ["llm_adapter.q", "final_layer.linear"],
    "lens": ["img_mod.1", "txt_mod.1", "norm_out.linear"],
    "krea2": ["txtfusion.q", "tproj.1", "last.linear"],
    "ideogram4": ["adaln_proj", "input_proj"],
    "minimaxh3": ["token_refiner.q", "condition_proj"],
    "boogu": ["time_caption_embed.q", "ref_image_patch_embedder"],
    "ltxv2": ["to_gate_logits", "audio_adaln_single.linear"],
    "gemma4": ["audio_tower.q", "vision_tower.q", "per_layer_projection"],
    "qwen_vlm": ["visual.q", "in_proj_a"],
    "qwen35": ["visual.q", "in_proj_b"],
    "generic_text": ["vision_tower.q", "multi_modal_projector"],
}
"""What each flag keeps, as layers inside a block that the general rule would quantize."""


def test_every_model_flag_is_tested_here():
    assert set(KEPT) == {k.name for k in KEEP_SETS}


@pytest.mark.parametrize("name", KEPT)
def test_each_model_flag_keeps_what_it_says(tmp_path, name):
    kept = [f"blocks.{i}.{layer}" for i in (2, 3) for layer in KEPT[name]]
    others = [f"blocks.{i}.{layer}" for i in (2, 3) for layer in ("attn.qkv", "mlp.up")]
    model = save(tmp_path / "m.safetensors", weights([*kept, *others]))
    assert quantized(model)[0] == {*kept, *others}
    assert quantized(model, f"--{name}") == (set(others), set())


def test_qwen_vlm_keeps_the_first_and_the_last_language_block(tmp_path):
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(11)]
    model = save(tmp_path / "m.safetensors", weights([*names, "model.layers.1.x.layers.9.q"]))
    assert quantized(model, "--qwen_vlm")[0] == {*names[1:-1], "model.layers.1.x.layers.9.q"}


def test_ltxv2_and_anima_keep_the_blocks_at_the_ends(tmp_path):
    names = [f"transformer_blocks.{i}.ff" for i in (0, 1, 2, 45, 46, 47)]
    assert quantized(save(tmp_path / "m.safetensors", weights(names)), "--ltxv2")[0] == {names[2], names[3]}
    names = [f"net.blocks.{i}.{n}" for i in (0, 1, 10) for n in ("adaln_modulation_mlp", "mlp")]
    kept = {names[0], names[1], names[2]}
    assert quantized(save(tmp_path / "m.safetensors", weights(names)), "--anima")[0] == set(names) - kept


def test_t5xxl_removes_the_decoder(tmp_path):
    encoder = [f"encoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)]
    decoder = [f"decoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)]
    model = save(tmp_path / "m.safetensors", weights([*encoder, *decoder, "lm_head"]))
    assert quantized(model) == ({*encoder, *decoder}, set())
    assert quantized(model, "--t5xxl") == (set(encoder), {f"{n}.weight" for n in (*decoder, "lm_head")})


def test_flags_add_up(tmp_path):
    model = save(tmp_path / "m.safetensors", weights([f"blocks.{i}.{n}" for i in range(2) for n in "ab"]))
    more = weights([f"blocks.{i}.{n}" for i in range(2) for n in ("visual.q", "img_in_patch")])
    save(model, {**load_file(str(model)), **more})
    assert len(quantized(model)[0]) == 8
    assert quantized(model, "--visual", "--radiance")[0] == {
        f"blocks.{i}.{n}" for i in range(2) for n in "ab"
    }


FLUX = {
    "img_in": (128, 64),
    "vector_in.in_layer": (128, 128),
    **{f"double_blocks.{i}.img_mod.lin": (768, 128) for i in range(2)},
    **{f"double_blocks.{i}.img_attn.qkv": (384, 128) for i in range(2)},
    **{f"txt_tower.{i}.{n}": (256, 256) for i in range(6) for n in ("q", "k")},
}
BLOCKS = {n for n in FLUX if n.startswith("double_blocks")}
TOWER = {n for n in FLUX if n.startswith("txt_tower")}


@pytest.fixture
def flux(tmp_path):
    """Named as Flux, and a larger list of blocks that Flux has not."""
    tensors = {name: tensor for n, shape in FLUX.items() for name, tensor in weights([n], shape).items()}
    return save(tmp_path / "flux.safetensors", tensors)


def test_the_preset_is_found_named_or_left_out(flux):
    assert quantized(flux)[0] == BLOCKS
    assert quantized(flux, "--preset", "auto")[0] == BLOCKS
    assert quantized(flux, "--preset", "FLUX1-dev")[0] == BLOCKS
    assert quantized(flux, "--preset", "none")[0] >= TOWER, "the general rule takes the larger list"


@pytest.mark.parametrize("flag", ["--preset-strict", "--preset_strict"])
def test_strict_keeps_the_modulation_of_blocks(flux, flag):
    assert quantized(flux, flag)[0] == {f"double_blocks.{i}.img_attn.qkv" for i in range(2)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fluxx1", "--preset: there is no preset 'fluxx1'; did you mean flux1"),
        ("wan", "does not fit this file"),
    ],
)
def test_a_preset_that_cannot_be_is_refused(flux, capsys, name, message):
    assert main(["-i", str(flux), "--preset", name]) == 1
    assert message in capsys.readouterr().err


def test_a_preset_can_be_named_for_a_file_it_would_not_be_found_in(tmp_path):
    names = [f"x.double_blocks.{i}.{n}" for i in range(2) for n in ("a", "b")]
    model = save(tmp_path / "m.safetensors", weights([*names, "x.img_in", "x.other.0.a", "x.other.1.a"]))
    assert quantized(model, "--preset", "flux1")[0] == set(names)
