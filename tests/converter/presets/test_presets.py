"""Every known model is recognised as itself, under any prefix, and as nothing else."""

import random
import re
import subprocess
import sys

import catalogs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert_to_quant.converter.presets import (
    KEEP_SETS,
    PRESETS,
    Match,
    assume,
    by_name,
    detect,
    keep_set,
)

PREFIXES = {
    "diffusion": (
        "model.diffusion_model.",
        "diffusion_model.",
        "transformer.",
        "model.model.",
        "net.",
        "module.",
    ),
    "text encoder": (
        "text_encoders.some_name.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoder.",
        "language_model.",
    ),
}


def under(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def flux():
    return catalogs.load(catalogs.SMALL, "flux1-dev")[1]


# The table itself


def test_names_and_aliases_are_unique():
    names = [name for preset in PRESETS for name in (preset.name, *preset.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_row_is_complete(preset):
    assert preset.title
    assert preset.namings
    assert preset.blocks
    for pattern in (*preset.blocks, *preset.keep, *preset.strict, *preset.remove):
        re.compile(pattern)
    for naming in preset.namings:
        assert naming.anchor.count(".") >= 1, "an anchor of one component would match anywhere"


def test_importing_presets_and_selection_does_not_import_torch():
    code = (
        "import sys; import convert_to_quant.converter.presets, convert_to_quant.converter.layers.selection; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=catalogs.REPOSITORY).returncode == 0


# Detection


@catalogs.each(catalogs.SMALL)
def test_small_catalogs_are_recognised(name):
    expected, shapes = catalogs.load(catalogs.SMALL, name)
    (match,) = detect(shapes)
    assert (match.preset.name, match.variant, match.naming, match.prefix) == (
        expected["preset"],
        expected["variant"],
        expected["naming"],
        "",
    )


@catalogs.each(catalogs.FULL)
def test_every_catalog_is_recognised_as_itself_only(name):
    catalog, shapes = catalogs.load(catalogs.FULL, name)
    for prefix in ("", *PREFIXES[by_name(catalog["family"]).kind]):
        (match,) = detect(under(prefix, shapes))
        assert match.preset.name == catalog["family"]
        assert match.prefix == prefix
        assert match.label == name or not match.preset.variants


@catalogs.needs_catalogs
def test_every_family_has_a_row():
    """There may be rows besides: a new one comes with a small catalog, not with the full one."""
    assert {preset.name for preset in PRESETS} >= set(catalogs.facts("fingerprints"))


@catalogs.needs_catalogs
@pytest.mark.parametrize(
    "name", ["te-qwen2.5-vl-7b", "te-qwen3-4b", "te-qwen3-8b", "te-qwen3-vl-4b", "te-qwen3-vl-8b"]
)
def test_vision_language_models_are_recognised_in_both_namings(name):
    """Newer transformers saves model.language_model.* and model.visual.*, ComfyUI model.* and visual.*"""
    _, shapes = catalogs.load(catalogs.FULL, name)
    swap = {"model.language_model.": "model.", "model.visual.": "visual."}
    if not any(key.startswith("model.language_model.") for key in shapes):
        swap = {"model.": "model.language_model.", "visual.": "model.visual."}

    def renamed(key):
        old = next((old for old in swap if key.startswith(old)), "")
        return swap.get(old, "") + key.removeprefix(old)

    (match,) = detect({renamed(key): shape for key, shape in shapes.items()})
    assert (match.preset.name, match.prefix) == (name, "")


def test_evidence_can_be_read():
    (match,) = detect(under("model.diffusion_model.", flux()), {"modelspec.architecture": "flux-1-dev"})
    assert match.evidence == (
        "model.diffusion_model.double_blocks.0.img_mod.lin.weight present",
        "model.diffusion_model.vector_in.in_layer.weight present",
        "model.diffusion_model.img_in.weight present",
        "model.diffusion_model.img_in.weight has 64 columns",
        "model.diffusion_model.guidance_in.in_layer.weight present",
        "the header's modelspec.architecture says flux-1-dev",
    )


def test_an_all_in_one_file_has_a_match_for_each_part():
    t5 = catalogs.load(catalogs.SMALL, "te-t5-xxl")[1]
    shapes = {
        **under("text_encoders.t5xxl.transformer.", t5),
        **under("model.diffusion_model.", flux()),
        "vae.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    }
    assert [(match.label, match.prefix) for match in detect(shapes)] == [
        ("flux1-dev", "model.diffusion_model."),
        ("te-t5-xxl", "text_encoders.t5xxl.transformer."),
    ]


def test_a_model_inside_a_vae_part_is_no_match():
    assert detect(under("vae.", flux())) == []


def test_tiny_relatives_are_recognised_by_their_structure():
    shapes = {name: tuple(min(size, 128) for size in shape) for name, shape in flux().items()}
    (match,) = detect(shapes)
    assert match.preset.name == "flux1"


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"weight": (8, 8)},
        {"encoder.layer.0.attention.self.query.weight": (768, 768)},
        {"lora.double_blocks.0.img_mod.lin.lora_A.weight": (16, 3072)},
    ],
    ids=["empty", "one tensor", "bert", "lora"],
)
def test_other_files_have_no_match(shapes):
    assert detect(shapes) == []


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(catalogs.names(catalogs.SMALL)),
    prefix=st.from_regex(r"\A(?:[a-z_0-9]{1,8}\.){0,3}\Z"),
    seed=st.integers(0, 2**16),
)
def test_detection_ignores_prefix_and_order(name, prefix, seed):
    expected, shapes = catalogs.load(catalogs.SMALL, name)
    items = list(under(f"x{prefix}" if prefix else "", shapes).items())
    random.Random(seed).shuffle(items)
    (match,) = detect(dict(items))
    assert match.preset.name == expected["preset"]
    assert match.prefix == (f"x{prefix}" if prefix else "")
    assert all(line for line in match.evidence)


# Names


@pytest.mark.parametrize(
    ("typed", "preset"),
    [
        ("flux1", "flux1"),
        ("flux2", "flux2"),
        ("t5xxl", "te-t5-xxl"),
        ("mistral", "te-mistral-small-3"),
        ("hunyuan", "hunyuan-video-1.5"),
        ("wan", "wan"),
        ("qwen", "qwen-image"),
        ("zimage", "z-image"),
        ("radiance", "chroma-radiance"),
        ("Qwen_Image", "qwen-image"),
        ("flux1-schnell", "flux1"),
        ("wan2.2-ti2v-5b", "wan"),
    ],
)
def test_names_aliases_and_variants(typed, preset):
    assert by_name(typed).name == preset


@pytest.mark.parametrize(
    ("ask", "typed", "hint"),
    [
        (by_name, "flx1", "did you mean flux1"),
        (by_name, "qwen-imgae", "did you mean qwen-image"),
        (by_name, "zzzzzz", "the names are: ace-step, "),
        (keep_set, "zimage_refinr", "did you mean zimage-refiner"),
        (keep_set, "zzzzzz", "the names are: anima, "),
    ],
)
def test_unknown_names_get_a_hint(ask, typed, hint):
    with pytest.raises(ValueError, match=re.escape(hint)) as caught:
        ask(typed)
    assert typed in str(caught.value)


def test_keep_sets_have_the_flags_people_type():
    flags = (
        "flux2 t5xxl mistral visual hunyuan wan qwen zimage zimage_refiner distillation_large "
        "distillation_small nerf_large nerf_small radiance lora anima boogu gemma4 generic_text "
        "ideogram4 krea2 lens ltxv2 minimaxh3 qwen35 qwen_vlm"
    )
    assert {keep.name for keep in KEEP_SETS} == set(flags.split())
    assert keep_set("--zimage-refiner") is keep_set("zimage_refiner")


def test_a_named_preset_finds_its_prefix():
    shapes = {f"odd.{name}": shape for name, shape in flux().items() if not name.startswith("vector_in")}
    assert detect(shapes) == []
    match = assume("flux1", shapes)
    assert (match.preset.name, match.prefix) == ("flux1", "odd.")
    assert match.evidence == ("named by the user; 64 tensors lie in its blocks",)


def test_a_named_preset_that_was_detected_keeps_its_evidence():
    assert assume("flux1-dev", flux()) == detect(flux())[0]


def test_a_named_preset_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"te-t5-xxl \(T5-XXL\) does not fit this file"):
        assume("t5xxl", flux())


def test_a_match_can_be_made_by_hand():
    assert Match(by_name("wan")).label == "wan"
