"""The tables of folds on the names and shapes of real files: what they find, and what they leave alone."""

from dataclasses import replace

import catalogs
import pytest

from convert_to_quant.converter.fold.find import find_inputs
from convert_to_quant.converter.presets import Match, assume, by_name, detect

REAL = {
    "anima": 28 * 2,
    "auraflow-0.3": 4 * 3 + 32 * 2,
    "boogu-image": 8 * 9 + 32 * 4 + 6 * 4,
    "chroma1-hd": 19 + 38,
    "ernie-image": 36 * 2,
    "flux2-klein-4b": 5 * 3 + 20 * 2,
    "hidream-i1": 16 * 11 + 32 * 8,
    "hunyuan-image-2.1": 20 * 5 + 40 * 2,
    "hunyuan-video": 20 * 5 + 40 * 2,
    "hunyuan-video-1.5": 54 * 5,
    "ideogram4": 34 * 4,
    "kandinsky5-lite-t2v": 2 * 3 + 32 * 5,
    "krea2": 28 * 2 + 2,
    "lens": 48 * 7,
    "longcat-image": 10 * 5 + 20 * 2,
    "ltx-2-19b": 48 * 14 + 2 * 2 + 8,
    "ltx-2.3-22b": 48 * 18 + 2 * 8 + 12,
    "ltx-video-2b": 28 * 4 + 2,
    "lumina-image-2": 30 * 4,
    "mage-flow": 12 * 5,
    "minimax-h3-pruned": 50 * 4,
    "mochi-preview": 48 * 7 - 2,
    "newbie-image": 40 * 4,
    "omnigen2": 38 * 4,
    "qwen-image-2.1": 32 * 2,
    "sd3.5-large": 38 * 5 - 1,
    "sd3.5-medium": 13 * 7 + 11 * 5 - 1,
    "sdxl-base-unet": 70 * 5,
    "te-clip-l": 12 * 3,
    "te-gemma-3-4b": 34 * 4,
    "te-ministral-3-3b": 26 * 4,
    "te-qwen2.5-vl-7b": 28 * 4,
    "te-qwen3-vl-4b": 36 * 4,
    "te-umt5-xxl": 24 * 4,
    "wan2.1-vace-1.3b": 30 * 5 + 15 * 5 + 2,
    "wan2.2-s2v-14b": 40 * 5 + 2,
}
"""Inputs that are folded: of each block, or where blocks share a modulation of all."""


def found(shapes, name=""):
    matches = [Match(by_name(name))] if name else detect(shapes)
    return list(find_inputs(shapes, matches, ("mean", "smooth")))


@catalogs.each(catalogs.SMALL)
def test_what_is_folded_in_small_catalogs(name):
    """Those by diffusers' names of models that are renamed, and models without a table, have none."""
    expected, shapes = catalogs.load(catalogs.SMALL, name)
    inputs = found(shapes)
    assert [len(inputs), sum(one.mean for one in inputs)] == expected.get("folded", [0, 0])


@catalogs.needs_catalogs
@pytest.mark.parametrize("name", REAL)
def test_what_is_folded_in_real_files(name):
    _, shapes = catalogs.load(catalogs.FULL, name)
    prefixed = {f"model.diffusion_model.{n}": s for n, s in shapes.items()}
    assert len(found(shapes)) == len(found(prefixed)) == REAL[name]


def test_a_mean_does_not_pass_a_gate():
    """LTX: per head, since 2.3; without a mean there is no shift of the values' bias either."""
    attention = {"to_v": (8, 8), "to_out.0": (8, 8), "to_gate_logits": (2, 8)}
    before = "transformer_blocks.0.attn1."
    shapes = {
        f"{before}{n}.{leaf}": s[:r] for n, s in attention.items() for leaf, r in (("weight", 2), ("bias", 1))
    }
    (gated,) = found(shapes, "ltx-2")
    (plain,) = found({n: s for n, s in shapes.items() if "gate" not in n}, "ltx-2")
    assert (gated.smooth, gated.mean) == (True, False)
    assert (plain.smooth, plain.mean) == (True, True)


def test_values_that_are_normalised_after_all_are_left_alone():
    """PixArt's blocks that compress keys and values."""
    _, shapes = catalogs.load(catalogs.SMALL, "pixart-alpha")
    compressed = {**shapes, "blocks.1.attn.sr.weight": (1152, 1, 2, 2)}
    missing = {one.columns[0].layer for one in found(shapes)} - {
        one.columns[0].layer for one in found(compressed)
    }
    assert missing == {"blocks.1.attn.proj"}


def test_heads_of_another_size_are_not_folded():
    """The user calls a model Llama 3 that is narrower: its heads have 64 channels, and no tensor says so."""
    before = "model.layers.0.self_attn."
    shapes = {f"{before}v_proj.weight": (512, 2048), f"{before}o_proj.weight": (2048, 2048)}
    match = assume("llama", shapes)
    assert not list(find_inputs(shapes, [match], ("smooth",)))
    (known,) = find_inputs(shapes, [replace(match, named=False)], ("smooth",))
    assert (known.repeats, known.head) == (4, 128)


def test_layers_of_gemma_are_no_layers_of_llama():
    """Their norms have other places, and their weights are one less."""
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")
    shapes = {f"model.layers.0.{n}.weight": (8,) for n in norms}
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        shapes[f"model.layers.0.{layer}.weight"] = (8, 8)
    assert {one.rows[0].offset for one in found(shapes, "te-gemma-3-4b")} == {1.0}
    assert not found(shapes, "te-qwen3-4b")
    del shapes["model.layers.0.pre_feedforward_layernorm.weight"]
    assert {one.rows[0].offset for one in found(shapes, "te-qwen3-4b")} == {0.0}
    assert not found(shapes, "te-gemma-3-4b")


def test_a_layer_under_two_names_is_left_alone():
    """Both claim the same readers; which of the two a model uses, the file does not say."""
    one = {"img_attn.qkv.weight": (24, 8), "img_mod.linear.weight": (48, 8), "img_mod.linear.bias": (48,)}
    shapes = {f"double_blocks.0.{n}": s for n, s in one.items()}
    assert len(found(shapes, "hunyuan-video")) == 1
    twice = {n.replace("linear", "lin"): s for n, s in shapes.items()}
    assert not found({**shapes, **twice}, "hunyuan-video")


@pytest.mark.parametrize(
    "changes",
    [
        {"time_projection.1.bias": (6, 5120)},
        {"time_projection.1.bias": (5120,)},
        {"time_projection.1.weight": None},
        {"blocks.1.modulation": (1, 5, 5120)},
        {"blocks.1.ffn.0.weight": None, "blocks.0.self_attn.q.weight": (5120, 128)},
    ],
    ids=["rank", "too few", "no weight", "a short table", "a block without the layer"],
)
def test_a_modulation_for_all_blocks_is_folded_in_all_or_none(changes):
    """In Wan: factors that fit some blocks would change the others."""
    _, shapes = catalogs.load(catalogs.SMALL, "wan2.1-t2v-14b")
    broken = {n: changes.get(n, s) for n, s in shapes.items() if changes.get(n, s) is not None}
    counts = [
        sum(any(r.tensor.startswith("time_projection") for r in one.rows) for one in found(names, "wan"))
        for names in (shapes, broken)
    ]
    assert counts == [2, 0]
