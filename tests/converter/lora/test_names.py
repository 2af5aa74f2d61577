"""Names in LoRA files, resolved against a checkpoint's own."""

import pytest
from catalogs import FULL, each, load, needs_catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import TINY_FLUX

from convert_to_quant.converter.lora.keys import parse_key
from convert_to_quant.converter.lora.names import LayerIndex, Place, alias_table, normal
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.names.rows import ALL_ROWS, Part

FLUX = {f"{name}.weight": shape for name, shape in TINY_FLUX.items()}
QKV, SINGLE = [Part("qkv", i) for i in range(3)], [Part("qkv+mlp", i) for i in range(4)]


@pytest.mark.parametrize(
    ("key", "module", "role"),
    [
        ("a.b.lora_A.weight", "a.b", "down"),
        ("a.b.lora_B.default.weight", "a.b", "up"),
        ("a.b.lora_A.my_adapter.weight", "a.b", "down"),
        ("a.b.lora_B.default.bias", "a.b", "up_bias"),
        ("lora_unet_a_b.lora_down.weight", "lora_unet_a_b", "down"),
        ("lora_unet_a_b.lora_up.weight", "lora_unet_a_b", "up"),
        ("lora_unet_a_b.alpha", "lora_unet_a_b", "alpha"),
        ("unet.x.attn1.processor.to_q_lora.down.weight", "unet.x.attn1.to_q", "down"),
        ("x.to_out.lora_linear_layer.up.weight", "x.to_out", "up"),
        ("x.lora_magnitude_vector", "x", "dora"),
        ("x.lora_magnitude_vector.default.weight", "x", "dora"),
        ("x.dora_scale", "x", "dora"),
        ("x.hada_w2_b", "x", "hada_w2_b"),
        ("x.lokr_w1_a", "x", "lokr_w1_a"),
        ("x.lokr_w1", "x", "lokr_w1"),
        ("x.diff", "x", "diff"),
        ("x.diff_b", "x", "diff_b"),
        ("x.w_norm", "x", "diff"),
    ],
)
def test_a_key_gives_its_module_and_role(key, module, role):
    assert parse_key(key) == (module, role)


def test_a_key_of_no_known_style_gives_none():
    assert parse_key("double_blocks.0.img_attn.qkv.weight") is None


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("x.lora_mid.weight", "Tucker"),
        ("x.hada_t1", "Tucker"),
        ("x.lokr_t2", "Tucker"),
        ("x.oft_blocks", "OFT"),
        ("x.a1.weight", "GLoRA"),
        ("x.lora_embedding_A.default", "embedding"),
        ("x.reshape_weight", "replacement"),
    ],
)
def test_kinds_that_cannot_be_merged_are_refused_by_name(key, kind):
    with pytest.raises(ConversionError, match=kind):
        parse_key(key)


@pytest.mark.parametrize("checkpoint", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize(
    "module",
    [
        "double_blocks.0.img_attn.proj",
        "lora_unet_double_blocks_0_img_attn_proj",
        "diffusion_model.double_blocks.0.img_attn.proj",
        "transformer.double_blocks.0.img_attn.proj",
        "model.diffusion_model.double_blocks.0.img_attn.proj",
        "base_model.model.double_blocks.0.img_attn.proj",
        "base_model.model.transformer.double_blocks.0.img_attn.proj",
        "unet.double_blocks.0.img_attn.proj",
        "transformer.transformer_blocks.0.attn.to_out.0",
        "lora_transformer_transformer_blocks_0_attn_to_out_0",
        "lycoris_transformer_blocks_0_attn_to_out_0",
    ],
)
def test_prefixes_and_styles_lead_to_one_layer(checkpoint, module):
    index = LayerIndex({checkpoint + name: shape for name, shape in FLUX.items()})
    found = index.find(module)
    assert found is not None
    assert found.layer == f"{checkpoint}double_blocks.0.img_attn.proj"


@pytest.mark.parametrize(
    ("module", "layer", "rows", "expected"),
    [
        ("transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv", QKV[0], ((0, 0, 64),)),
        ("transformer_blocks.0.attn.to_k", "double_blocks.0.img_attn.qkv", QKV[1], ((64, 0, 64),)),
        ("transformer_blocks.0.attn.to_v", "double_blocks.0.img_attn.qkv", QKV[2], ((128, 0, 64),)),
        ("transformer_blocks.0.attn.add_k_proj", "double_blocks.0.txt_attn.qkv", QKV[1], ((64, 0, 64),)),
        ("single_transformer_blocks.1.attn.to_v", "single_blocks.1.linear1", SINGLE[2], ((128, 0, 64),)),
        ("single_transformer_blocks.1.proj_mlp", "single_blocks.1.linear1", SINGLE[3], ((192, 0, 256),)),
        ("single_transformer_blocks.1.proj_out", "single_blocks.1.linear2", ALL_ROWS, ()),
        ("norm_out.linear", "final_layer.adaLN_modulation.1", Part("swap"), ((64, 0, 64), (0, 64, 64))),
    ],
)
def test_diffusers_names_find_rows_of_fused_weights(module, layer, rows, expected):
    assert LayerIndex(FLUX).find(f"transformer.{module}") == Place(layer, rows)
    assert rows.segments(*TINY_FLUX[layer]) == expected


@pytest.mark.parametrize(
    "module", ["transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_out"], ids=["now", "first"]
)
def test_an_attention_output_is_found_as_the_first_releases_of_diffusers_called_it(module):
    assert LayerIndex(FLUX).find(f"transformer.{module}") == Place("double_blocks.0.img_attn.proj")


def test_two_layers_of_one_underscored_name_are_an_error_unless_spelt_out():
    index = LayerIndex(["a.b_c.weight", "a_b.c.weight"])
    with pytest.raises(ConversionError, match=r"more than one layer: 'a.b_c' and 'a_b.c'"):
        index.find("lora_unet_a_b_c")
    assert index.find("a_b.c") == Place("a_b.c")


def test_prefixes_tell_the_parts_of_an_all_in_one_file_apart():
    tail = "text_model.encoder.layers.0.mlp.fc1"
    index = LayerIndex(
        [
            f"text_encoders.clip_l.transformer.{tail}.weight",
            f"text_encoders.clip_g.transformer.{tail}.weight",
            "model.diffusion_model.blocks.0.fc.weight",
        ]
    )
    assert index.find(f"lora_te1_{normal(tail)}").layer == f"text_encoders.clip_l.transformer.{tail}"
    assert index.find(f"lora_te2_{normal(tail)}").layer == f"text_encoders.clip_g.transformer.{tail}"
    assert index.find(f"lora_unet_{normal(tail)}") is None
    assert index.find("lora_te_blocks_0_fc") is None
    with pytest.raises(ConversionError, match="more than one layer"):
        index.find(f"lora_te_{normal(tail)}")


def test_language_models_are_found_below_peft_wrappers():
    index = LayerIndex(["model.layers.0.self_attn.q_proj.weight"])
    assert index.find("base_model.model.model.layers.0.self_attn.q_proj") is not None


def test_a_name_that_fits_nothing_has_a_nearest_layer():
    index = LayerIndex(FLUX)
    assert index.find("diffusion_model.double_blocks.0.img_attn.prj") is None
    assert index.nearest("diffusion_model.double_blocks.0.img_attn.prj") == "double_blocks.0.img_attn.proj"


NAME = st.lists(st.sampled_from(["a", "b", "a_b", "b_0", "0", "12", "to_q"]), min_size=1, max_size=4)


@settings(max_examples=200)
@given(st.lists(NAME.map(".".join), min_size=1, max_size=12, unique=True))
def test_a_kohya_name_comes_back_to_its_layer_or_is_called_ambiguous(layers):
    index = LayerIndex([f"{layer}.weight" for layer in layers])
    for layer in layers:
        exact = index.find(layer)
        assert exact is not None
        assert exact.layer == layer
        rivals = {other for other in layers if normal(other) == normal(layer)}
        try:
            found = index.find(f"lora_unet_{normal(layer)}")
        except ConversionError:
            assert len(rivals) > 1
        else:
            assert found is not None
            assert rivals == {found.layer}


def test_a_name_in_one_table_means_the_same_rows_in_every_other():
    """One model's checkpoint is read with the lines of all families: they must not contradict each other."""
    for layer, aliases in alias_table().items():
        for alias in {alias for alias, _ in aliases}:
            assert len({rows for name, rows in aliases if name == alias}) == 1, (layer, alias)


@needs_catalogs
@each(FULL)
def test_every_layer_of_a_real_model_is_found_by_its_own_and_its_kohya_name(name):
    _, shapes = load(FULL, name)
    index = LayerIndex(shapes)
    for layer in (key.removesuffix(".weight") for key in shapes if key.endswith(".weight")):
        assert index.find(layer).layer == layer
        assert index.find(f"lora_unet_{normal(layer)}").layer == layer


@needs_catalogs
@pytest.mark.parametrize(
    ("name", "modules"),
    [
        (
            "flux1-dev",
            {
                "transformer_blocks.18.attn.to_add_out": 3072,
                "single_transformer_blocks.37.proj_mlp": 12288,
                "transformer_blocks.0.norm1_context.linear": 18432,
            },
        ),
        (
            "flux2-klein-4b",
            {
                "single_transformer_blocks.0.attn.to_qkv_mlp_proj": 27648,
                "transformer_blocks.0.ff.linear_in": 18432,
                "double_stream_modulation_img.linear": 18432,
            },
        ),
        ("z-image", {"layers.29.attention.to_k": 3840, "layers.0.attention.to_out.0": 3840}),
        ("lumina-image-2", {"layers.0.attn.to_v": 768, "layers.0.feed_forward.linear_2": 2304}),
        ("wan2.1-i2v-14b", {"blocks.0.attn1.to_q": 5120, "blocks.39.attn2.add_k_proj": 5120}),
        (
            "hunyuan-video",
            {"transformer_blocks.0.attn.add_q_proj": 3072, "transformer_blocks.3.ff.net.2": 3072},
        ),
        (
            "sd3.5-large",
            {"transformer_blocks.0.attn.to_q": 2432, "transformer_blocks.0.attn.add_v_proj": 2432},
        ),
        ("krea2", {"transformer_blocks.0.attn.to_k": 1536, "transformer_blocks.0.ff.up": 16384}),
        (
            "sdxl-base-unet",
            {
                "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0": 640,
                "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": 10240,
                "up_blocks.0.attentions.2.proj_in": 1280,
                "up_blocks.0.upsamplers.0.conv": 1280,
            },
        ),
        ("qwen-image", {"transformer_blocks.59.attn.add_q_proj": 3072}),
    ],
)
def test_diffusers_names_fit_real_models(name, modules):
    _, shapes = load(FULL, name)
    index = LayerIndex(shapes)
    for module, rows in modules.items():
        for spelling in (f"transformer.{module}", f"lora_transformer_{normal(module)}"):
            place = index.find(spelling)
            assert place is not None, spelling
            shape = shapes[f"{place.layer}.weight"]
            segments = place.rows.segments(*shape[:2])
            assert (sum(count for _, _, count in segments) if segments else shape[0]) == rows


@needs_catalogs
@each(FULL)
def test_no_diffusers_name_fits_two_layers_of_a_real_model(name):
    _, shapes = load(FULL, name)
    index = LayerIndex(shapes)
    for places in index._aliased.values():
        assert len({place.layer for place in places}) == 1
