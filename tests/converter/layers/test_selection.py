"""Which tensors are quantized: by preset, by the general rule, and with extra keep-sets."""

import random
import re

import catalogs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import calls

from convert_to_quant.converter.layers.selection import _blocks, is_bank, select
from convert_to_quant.converter.presets import detect


def block_lists(shapes):
    """The numbered lists that the general rule takes for the model's blocks, main list first."""
    experts = {name.split(".experts.")[0] for name in shapes if ".experts." in name}
    return list(_blocks(shapes, experts).lists)


# Layers in the INT8 files published for ComfyUI: quantized, of 2-D weights.
PUBLISHED = {
    "qwen-image": (840, 846),
    "z-image": (202, 208),
    "krea2": (224, 264),
    "ideogram4": (204, 212),
    "wan2.2-animate-14b": (480, 519),
    "ltx-2.5-22b": (1440, 1772),
    "minimax-h3": (250, 266),
    "minimax-h3-pruned": (200, 264),
    "te-qwen3-vl-8b": (252, 371),
}
# Kept in the recommended lists but quantized in the published files, which win.
PUBLISHED_WINS = {
    "qwen-image": {"transformer_blocks.0.img_mod.1.weight"},
    "z-image": {"layers.0.adaLN_modulation.0.weight"},
}
# Encoders that stock ComfyUI takes the integers of for weights: quantized when forced only.
NOT_READ = ("te-clip-l", "te-clip-g", "te-byt5-small-glyph")
# Where a model's preset departs from the general rule: short lists that the rule keeps
# (LTX-2's connectors), and one layer that it would quantize.
BEYOND_THE_RULE = {
    "ltx-2-19b": r"_embeddings_connector\.",
    "ltx-2.3-22b": r"_embeddings_connector\.",
    "ltx-2.5-22b": r"_embeddings_connector\.",
    "lumina-image-2": r"^layers\.0\.adaLN_modulation\.",
}


def quantized(decisions):
    return {name for name, decision in decisions.items() if decision.action == "quantize"}


def plan(shapes, **options):
    return select(shapes, detect(shapes), **options)


def linear(name, rows=256, columns=256):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def model(*layers, **sizes):
    """Shapes of Linears; ``{0-3}`` in a name stands for a range."""
    shapes = {}
    for layer in layers:
        if found := re.search(r"\{(\d+)-(\d+)\}", layer):
            for index in range(int(found[1]), int(found[2]) + 1):
                shapes.update(linear(layer.replace(found[0], str(index)), **sizes))
        else:
            shapes.update(linear(layer, **sizes))
    return shapes


def small(name):
    return catalogs.load(catalogs.SMALL, name)[1]


# By preset


@catalogs.each(catalogs.SMALL)
def test_small_catalogs(name):
    expected, shapes = catalogs.load(catalogs.SMALL, name)
    decisions = plan(shapes)
    assert list(decisions) == list(shapes)
    assert len(quantized(decisions)) == expected["quantized"]
    # "general": false where the blocks that are left do not follow each other, as the general rule asks.
    agrees = quantized(select(shapes)) == quantized(decisions)
    assert agrees is expected.get("general", True), "the general rule agrees"


def recommended(catalog, shapes):
    """Weights that the recommended list of this family quantizes; None if it has no list."""
    entry = catalogs.facts("keep_high_precision")[catalog["family"]]
    keep = [re.compile(pattern) for pattern in entry["keep"]]
    tables = [re.escape(name).replace(r"\{i\}", r"\d+") for name in catalog.get("two_d_not_linear", ())]
    if not keep:
        return None
    return {
        name
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and min(shape) >= 64
        and shape[0] * shape[1] >= 16384
        and not any(pattern.search(name) for pattern in keep)
        and not any(re.fullmatch(table, name) for table in tables)
    }


@catalogs.each(catalogs.FULL)
def test_presets_follow_the_recommended_lists(name):
    catalog, shapes = catalogs.load(catalogs.FULL, name)
    expected = recommended(catalog, shapes)
    if expected is None:
        expected = quantized(select(shapes))
    assert quantized(plan(shapes, force=True)) == expected | PUBLISHED_WINS.get(name, set())
    if name in NOT_READ:
        assert not quantized(plan(shapes))


@catalogs.needs_catalogs
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_default_gives_the_published_counts(name):
    _, shapes = catalogs.load(catalogs.FULL, name)
    weights = [key for key, shape in shapes.items() if key.endswith(".weight") and len(shape) == 2]
    assert (len(quantized(plan(shapes))), len(weights)) == PUBLISHED[name]


@catalogs.each(catalogs.FULL)
def test_the_general_rule_agrees_with_the_presets(name):
    _, shapes = catalogs.load(catalogs.FULL, name)
    differ = quantized(plan(shapes, force=True)) ^ quantized(select(shapes))
    allowed = BEYOND_THE_RULE.get(name)
    assert {key for key in differ if not (allowed and re.search(allowed, key))} == set()
    assert bool(differ) == (allowed is not None)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("flux1-dev", r"(img_mod|txt_mod|modulation)\.lin\.weight"),
        ("flux1-dev-diffusers", r"blocks\.\d+\.norm(1|1_context)?\.linear\.weight"),
        ("qwen-image", r"(img|txt)_mod\.1\.weight"),
        ("z-image", r"adaLN_modulation\.\d\.weight"),
    ],
)
def test_strict_keeps_modulation(name, kept):
    shapes = small(name)
    less = quantized(plan(shapes)) - quantized(plan(shapes, strict=True))
    assert less == {key for key in quantized(plan(shapes)) if re.search(kept, key)} != set()
    assert quantized(select(shapes, strict=True)) == quantized(plan(shapes, strict=True))


@catalogs.each(catalogs.FULL)
def test_strict_keeps_what_the_careful_lists_name(name):
    catalog, shapes = catalogs.load(catalogs.FULL, name)
    careful = catalogs.facts("keep_high_precision")[catalog["family"]]["careful_extra"]
    strict = quantized(plan(shapes, strict=True, force=True))
    assert [key for key in strict for pattern in careful if re.search(pattern, key)] == []
    assert strict, "and still quantizes the rest"


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ("img_in.weight", "kept by preset flux1: img_in"),
        ("img_in.bias", "bias"),
        ("double_blocks.0.img_attn.norm.query_norm.scale", "norm"),
        ("double_blocks.1.img_attn.qkv.weight", "flux1 block: double_blocks.1"),
        ("extra.weight", "outside the repeated blocks"),
        ("extra.conv.weight", "not 2-D (4-D)"),
        ("double_blocks.0.gate_logits.weight", "too small (32x3072)"),
        ("double_blocks.0.shift", "1-D"),
        ("double_blocks.0.scale_table", "not a weight: scale_table"),
    ],
)
def test_reasons_are_for_people(tensor, reason):
    shapes = {
        **small("flux1-dev"),
        "extra.weight": (3072, 3072),
        "extra.conv.weight": (8, 8, 3, 3),
        "double_blocks.0.gate_logits.weight": (32, 3072),
        "double_blocks.0.shift": (3072,),
        "double_blocks.0.scale_table": (6, 3072),
    }
    assert plan(shapes)[tensor].reason == reason


def test_t5_loses_its_decoder():
    shapes = {
        **small("te-t5-xxl"),
        "decoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
        "decoder.embed_tokens.weight": (32128, 4096),
        "lm_head.weight": (32128, 4096),
    }
    decisions = plan(shapes)
    removed = {name for name, decision in decisions.items() if decision.action == "remove"}
    assert removed == shapes.keys() - small("te-t5-xxl").keys()
    assert "read as an encoder" in decisions["lm_head.weight"].reason


def all_in_one():
    parts = {
        "model.diffusion_model.": small("flux1-dev"),
        "text_encoders.t5xxl.transformer.": small("te-t5-xxl"),
        "vae.": model("encoder.mid.attn_1.q", "decoder.block.{0-3}.a", "decoder.block.{0-3}.b"),
        "something_else.": model("blocks.{0-3}.a", "blocks.{0-3}.b"),
    }
    return {prefix + name: shape for prefix, part in parts.items() for name, shape in part.items()}


def test_only_recognised_parts_of_an_all_in_one_file_are_quantized():
    decisions = plan(all_in_one())
    by_part = {name.split(".")[0] for name in quantized(decisions)}
    assert by_part == {"model", "text_encoders"}
    assert len(quantized(decisions)) == 26 + 14
    assert decisions["vae.encoder.mid.attn_1.q.weight"].reason == "vae part"
    assert decisions["something_else.blocks.0.a.weight"].reason == "outside the recognised models"
    assert not any(decision.action == "remove" for decision in decisions.values())


def test_a_part_inside_another_follows_its_own_preset():
    prefix = "text_encoders.t5xxl.transformer."
    t5 = {prefix + name: shape for name, shape in small("te-t5-xxl").items()}
    decisions = plan({**small("flux1-dev"), **t5})
    assert len(quantized(decisions)) == 26 + 14
    assert decisions[f"{prefix}shared.weight"].reason == "kept by preset te-t5-xxl: shared"


# By the general rule


@pytest.mark.parametrize("prefix", ["", "bert.", "text_encoders.x.transformer."])
def test_bert(prefix):
    shapes = model(
        f"{prefix}encoder.layer.{{0-11}}.attention.self.query",
        f"{prefix}encoder.layer.{{0-11}}.attention.output.dense",
        f"{prefix}encoder.layer.{{0-11}}.intermediate.dense",
        f"{prefix}pooler.dense",
    )
    shapes[f"{prefix}embeddings.word_embeddings.weight"] = (30522, 768)
    shapes[f"{prefix}encoder.layer.0.attention.output.LayerNorm.weight"] = (768,)
    decisions = select(shapes)
    assert len(quantized(decisions)) == 36
    assert block_lists(shapes) == [f"{prefix}encoder.layer"]
    assert decisions[f"{prefix}embeddings.word_embeddings.weight"].reason == "embedding"
    assert decisions[f"{prefix}encoder.layer.0.attention.output.LayerNorm.weight"].reason == "norm"
    assert decisions[f"{prefix}pooler.dense.weight"].reason == "outside the repeated blocks"


def test_language_model():
    shapes = model("model.layers.{0-3}.self_attn.q_proj", "model.layers.{0-3}.mlp.up_proj", "lm_head")
    shapes["model.embed_tokens.weight"] = (32000, 256)
    decisions = select(shapes)
    assert len(quantized(decisions)) == 8
    assert decisions["lm_head.weight"].reason == "output head"
    assert decisions["model.embed_tokens.weight"].reason == "embedding"


def test_two_blocks_are_repeated_blocks():
    shapes = model("img_in", "blocks.{0-1}.qkv", "blocks.{0-1}.proj", "final_layer.linear")
    assert {name.split(".")[0] for name in quantized(select(shapes))} == {"blocks"}


def test_blocks_of_one_linear_count_when_there_are_no_others():
    shapes = model("img_in", "blocks.{0-2}.linear", "final_layer.linear")
    assert {name.split(".")[0] for name in quantized(select(shapes))} == {"blocks"}


@pytest.mark.parametrize(
    "layers",
    [("fc1", "fc2"), ("net.0", "net.2", "net.4"), ("0", "2"), ("blocks.0.qkv", "blocks.0.proj", "img_in")],
    ids=["named", "sequential", "numbers only", "one block"],
)
def test_a_model_without_repeated_blocks_has_all_linears_quantized(layers):
    shapes = {**model(*layers), "embed.weight": (1000, 256), "norm.weight": (256,)}
    assert quantized(select(shapes)) == {f"{layer}.weight" for layer in layers}
    assert block_lists(shapes) == []


def test_lists_beside_the_main_one_are_blocks_too():
    shapes = model(
        "layers.{0-9}.qkv",
        "layers.{0-9}.out",
        "refiner.{0-1}.qkv",
        "refiner.{0-1}.out",
        "tail.0.qkv",
        "tail.0.out",
    )
    assert block_lists(shapes) == ["layers", "refiner", "tail"]


def test_short_lists_elsewhere_are_not():
    shapes = model(
        "layers.{0-9}.qkv", "layers.{0-9}.out", "visual.blocks.{0-1}.qkv", "visual.blocks.{0-1}.out"
    )
    assert block_lists(shapes) == ["layers"]


def test_both_halves_of_an_encoder_decoder_model_are_blocks():
    shapes = model(
        "encoder.layers.{0-3}.q", "encoder.layers.{0-3}.o", "decoder.layers.{0-3}.q", "decoder.layers.{0-3}.o"
    )
    assert sorted(block_lists(shapes)) == ["decoder.layers", "encoder.layers"]


def test_numbered_embedders_are_not_blocks():
    shapes = model(
        "layers.{0-3}.qkv",
        "layers.{0-3}.out",
        "label_emb.0.0",
        "label_emb.0.2",
        "caption_projection.{0-5}.linear",
    )
    assert block_lists(shapes) == ["layers"]


def test_routers_are_kept_and_gates_are_not():
    shapes = model(
        "layers.{0-1}.attn.gate",
        "layers.{0-1}.mlp.gate",
        "layers.{0-1}.mlp.experts.0.up",
        "layers.{0-1}.router",
    )
    decisions = select(shapes)
    assert decisions["layers.0.mlp.gate.weight"].reason == "router"
    assert decisions["layers.0.router.weight"].reason == "router"
    assert decisions["layers.0.attn.gate.weight"].action == "quantize"


@pytest.mark.parametrize(
    ("shape", "action"),
    [
        ((64, 256), "quantize"),
        ((63, 4096), "keep"),
        ((4096, 63), "keep"),
        ((128, 127), "keep"),
        ((5, 123), "keep"),
    ],
)
def test_tiny_layers_are_kept(shape, action):
    shapes = {**model("blocks.{0-1}.a", "blocks.{0-1}.b"), "blocks.0.c.weight": shape}
    assert select(shapes)["blocks.0.c.weight"].action == action


def test_a_wrapper_with_a_number_is_no_block():
    shapes = model(
        "conditioner.embedders.0.layers.{0-3}.q",
        "conditioner.embedders.0.layers.{0-3}.o",
        "conditioner.embedders.0.pooler",
        "conditioner.embedders.1.head",
    )
    assert block_lists(shapes) == ["conditioner.embedders.0.layers"]


def test_an_unknown_unet():
    shapes = model(
        "input_blocks.{1-4}.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.{1-4}.1.transformer_blocks.0.attn1.to_k",
        "input_blocks.{1-4}.0.emb_layers.1",
        "middle_block.1.transformer_blocks.0.attn1.to_q",
        "middle_block.1.transformer_blocks.0.attn1.to_k",
        "time_embed.0",
    )
    found = quantized(select(shapes))
    assert {name.split(".")[0] for name in found} == {"input_blocks", "middle_block"}
    assert not any("emb_layers" in name for name in found)


# Extra keep-sets


@pytest.mark.parametrize(
    ("name", "flag", "fewer"),
    [
        ("flux1-dev", "flux2", ""),
        ("flux1-dev-diffusers", "flux2", ""),
        ("qwen-image", "qwen", r"^transformer_blocks\.0\.img_mod\."),
        ("z-image", "zimage", r"adaLN_modulation"),
        ("z-image", "zimage_refiner", r"_refiner\."),
        ("wan2.1-t2v-14b", "wan", ""),
        ("te-t5-xxl", "t5xxl", ""),
        ("te-t5-xxl", "mistral", ""),
        ("flux1-dev", "nerf_large", r"_attn\.proj"),
        ("flux1-dev", "hunyuan", ""),
        ("flux1-dev", "lora", ""),
    ],
)
def test_flags_add_to_what_the_preset_keeps(name, flag, fewer):
    shapes = small(name)
    less = quantized(plan(shapes)) - quantized(plan(shapes, keep_sets=[flag]))
    assert less == {key for key in quantized(plan(shapes)) if fewer and re.search(fewer, key)}


def test_flags_work_without_a_preset():
    shapes = model("blocks.{0-1}.img_in", "blocks.{0-1}.out", "blocks.{0-1}.out_img_in")
    decisions = select(shapes, keep_sets=["distillation_large"])
    assert decisions["blocks.0.img_in.weight"].reason == "kept by distillation_large: img_in"
    assert decisions["blocks.0.out_img_in.weight"].action == "quantize", "whole components only"


def test_visual_keeps_the_vision_tower_and_not_the_language_model():
    shapes = model("model.layers.{0-3}.mlp.down_proj", "model.layers.{0-3}.mlp.up_proj")
    tower = model("visual.blocks.{0-3}.mlp.down_proj", "visual.blocks.{0-3}.mlp.up_proj")
    assert len(quantized(select({**shapes, **tower}))) == 16
    assert len(quantized(select({**shapes, **tower}, keep_sets=["visual"]))) == 8


def test_t5xxl_removes_a_decoder_but_not_that_of_a_vae():
    shapes = {
        **model(
            "decoder.block.{0-1}.layer.0.SelfAttention.q", "decoder.block.{0-1}.layer.1.DenseReluDense.wo"
        ),
        **model("vae.decoder.mid.attn_1.q", "first_stage_model.decoder.up.0.attn.0.q"),
    }
    decisions = select(shapes, keep_sets=["t5xxl"])
    removed = {name for name, decision in decisions.items() if decision.action == "remove"}
    assert removed == {name for name in shapes if name.startswith("decoder.")}


def test_an_unknown_keep_set_is_refused():
    with pytest.raises(ValueError, match="did you mean wan"):
        select({}, keep_sets=["wann"])


# Properties


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(catalogs.names(catalogs.SMALL)),
    prefix=st.sampled_from(["", "model.diffusion_model.", "a.b.", "transformer.", "x.0.y."]),
    use_preset=st.booleans(),
    strict=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_prefix_and_order_change_nothing(name, prefix, use_preset, strict, seed):
    shapes = small(name)
    items = [(prefix + key, shape) for key, shape in shapes.items()]
    random.Random(seed).shuffle(items)
    moved = dict(items)
    expected = select(shapes, detect(shapes) if use_preset else (), strict)
    found = select(moved, detect(moved) if use_preset else (), strict)
    assert list(found) == list(moved)
    assert {key.removeprefix(prefix): decision.action for key, decision in found.items()} == {
        key: decision.action for key, decision in expected.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.dictionaries(
        st.from_regex(r"\A(?:(?:[a-c]|\d|norm|gate|experts)\.){0,4}(?:weight|bias|x)\Z"),
        st.lists(st.sampled_from([1, 63, 64, 256]), max_size=3).map(tuple),
        max_size=30,
    ),
    strict=st.booleans(),
)
def test_any_header_gets_a_decision_and_only_real_weights_are_quantized(shapes, strict):
    decisions = select(shapes, strict=strict)
    assert list(decisions) == list(shapes)
    for name, decision in decisions.items():
        assert decision.reason
        if decision.action == "quantize":
            assert name.endswith("weight")
            assert len(shapes[name]) == (3 if is_bank(name, shapes[name]) else 2)
            assert min(shapes[name][-2:]) >= 64


@pytest.mark.parametrize("with_preset", [True, False], ids=["preset", "general rule"])
def test_work_grows_with_the_header_and_no_faster(with_preset):
    """The time itself is bench/dry_run.py's matter."""
    matches = [detect({**small("qwen-image")})[0]] if with_preset else []

    def work(blocks):
        names = (f"transformer_blocks.{{0-{blocks - 1}}}.attn.layer{index}" for index in range(8))
        shapes = model(*names)
        assert len(shapes) == 16 * blocks
        return calls(lambda: (detect(shapes), select(shapes, matches)))

    few, many = work(70), work(280)
    assert many < 4.2 * few
    assert many < 100 * 16 * 280, "function calls per tensor"
