"""Folds of the files that ComfyUI loaded, found for each part of a model under ComfyUI's names."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from foldable import FAMILIES, uneven
from models import save
from safetensors.torch import load_file

from convert_to_quant.folding.changes import MADE_FOR
from folding import folded, record, save_model


def load_clip_model_patcher():
    """Named as ComfyUI's."""


def load_checkpoint_guess_config():
    """Named as ComfyUI's."""


def patcher(state, file, loader=load_clip_model_patcher):
    return SimpleNamespace(
        model=SimpleNamespace(state_dict=lambda: state), cached_patcher_init=(loader, (file, None))
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folded CLIP."""
    folder, made = tmp_path_factory.mktemp("clip"), FAMILIES["clip"]
    model, g = uneven("clip"), torch.Generator().manual_seed(1)
    source = save_model(model, folder / "l.safetensors")
    inputs = record(model, [made.inputs(g) for _ in range(2)], folder / "c.safetensors")
    tensors, plan = folded(source, inputs, preset=made.preset, force=True)
    return save(folder / "l-folded.safetensors", tensors, dict(plan.metadata))


def of(pack, part):
    return sys.modules[f"{pack.__name__}.{part}"]


def test_a_text_encoders_folds_are_found_below_comfyuis_names(pack, clip):
    state = {f"clip_l.transformer.{n}": t for n, t in load_file(clip).items()}
    state["t5xxl.transformer.shared.weight"] = torch.zeros(8, 4)
    folds = of(pack, "folded").folds_of(patcher(state, ["/nowhere/t5.safetensors", str(clip)]))
    assert folds.inputs
    assert folds.tensors.keys() <= state.keys()
    assert all(n.startswith("clip_l.transformer.text_model.encoder") for n in folds.tensors)


def test_of_two_encoders_with_the_same_names_the_one_that_fits(pack, clip):
    small = load_file(clip)
    other = {n: torch.zeros(*(2 * s for s in t.shape)) for n, t in small.items()}
    state = {f"clip_g.transformer.{n}": t for n, t in other.items()}
    state |= {f"clip_l.transformer.{n}": t for n, t in small.items()}
    folds = of(pack, "folded").folds_of(patcher(state, [str(clip)]))
    assert {n.partition(".")[0] for n in folds.tensors} == {"clip_l"}


def test_of_an_all_in_one_checkpoint_each_part_has_its_own(pack, clip, tmp_path):
    folds_of = of(pack, "folded").folds_of
    state = {"diffusion_model.x.weight": torch.zeros(2, 2)}
    assert not folds_of(patcher(state, str(clip), load_checkpoint_guess_config)).inputs
    with pytest.raises(RuntimeError, match=r"names its layers otherwise.*--merge-lora"):
        folds_of(patcher(state, str(clip)))
    assert folds_of(patcher(state, str(save(tmp_path / "plain.safetensors", state)))) is None
    assert folds_of(SimpleNamespace()) is None


def test_merges_are_left_alone_and_said(pack, clip, caplog):
    patches = of(pack, "folded_patches")
    state = load_file(clip)
    folds = of(pack, "folded").folds_of(patcher(state, [str(clip)]))
    name = next(n for n in folds.tensors if n.endswith("q_proj.weight"))
    merge = {name: [(state[name], lambda t, **k: t)]}
    with caplog.at_level(logging.WARNING):
        assert patches.folded_patches(folds, merge) == {name: (name, merge[name])}
    assert "merged or rescaled" in caplog.text
    with pytest.raises(RuntimeError, match=r"sets .* anew"):
        patches.folded_patches(folds, {name: ("set", (state[name],))})
    with pytest.raises(RuntimeError, match="some columns"):
        patches.folded_patches(folds, {(name, (1, 0, 4)): ("diff", (state[name][:, :4],))})
    tensors = {"x": torch.zeros(2)}
    patches.mark(tensors, {MADE_FOR: "l.safetensors"})
    same = {name: ("diff", (tensors["x"],))}
    assert patches.folded_patches(folds, same) == {name: (name, same[name])}
