"""Diffusers' classes, tensor by tensor, against what released checkpoints are called."""

from itertools import pairwise

import pytest
import torch
from catalogs import FULL, each, load, needs_catalogs
from peers import peer

from convert_to_quant.names.aliases import Aliases
from convert_to_quant.names.diffusers import KNOWN, recognise, renamed_without_a_table
from convert_to_quant.names.families import FAMILIES
from convert_to_quant.names.keymap import KeyMap

SD35 = {
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
BOTH = {"num_layers": 2, "num_single_layers": 2}
RELEASED = {
    "auraflow-0.3": (
        "AuraFlowTransformer2DModel",
        {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "pos_embed_max_size": 9216},
    ),
    "chroma1-hd": ("ChromaTransformer2DModel", BOTH),
    "flux1-dev": ("FluxTransformer2DModel", {**BOTH, "guidance_embeds": True}),
    "flux1-schnell": ("FluxTransformer2DModel", BOTH),
    "flux2-dev": ("Flux2Transformer2DModel", BOTH),
    "longcat-image": ("LongCatImageTransformer2DModel", BOTH),
    "ltx-video-2b": ("LTXVideoTransformer3DModel", {"num_layers": 2}),
    "sd3.5-large": (
        "SD3Transformer2DModel",
        {
            **SD35,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
    ),
    "sd3.5-medium": (
        "SD3Transformer2DModel",
        {
            **SD35,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
    ),
    "sdxl-base-unet": ("UNet2DConditionModel", XL),
    "wan2.1-t2v-14b": ("WanTransformer3DModel", {"num_layers": 2}),
    "z-image": ("ZImageTransformer2DModel", {"n_layers": 2}),
}
"""Catalog -> the class and configuration of the same release; other stacks of blocks cut down to two."""


def tensors(name: str) -> dict[str, torch.Tensor]:
    diffusers = peer("diffusers")
    kind, sizes = RELEASED[name]
    with torch.device("meta"):
        return dict(getattr(diffusers, kind)(**sizes).state_dict())


@needs_catalogs
@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_under_diffusers_names_becomes_the_released_checkpoint(name):
    """All of its names, none left over, every shape; the blocks that were cut away are not asked for."""
    theirs = tensors(name)
    found = recognise(theirs)
    assert found is not None
    table = KeyMap(found[1].rows(theirs))
    assert all(table.lists(n) for n in theirs)
    ours = {}
    for n, mapped in table.inverse(theirs).items():
        assert table(n) == mapped
        shapes = [tuple(theirs[t].shape) for t in mapped.targets]
        ours[n] = (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
    released = load(FULL, name)[1]
    assert ours == {n: s for n, s in released.items() if n in ours or not _cut_away(n, name)}


def _cut_away(tensor: str, name: str) -> bool:
    if name.startswith(("sd3", "sdxl")):
        return False
    stacks = ("blocks", "layers")
    parts = tensor.split(".")
    return any(a.endswith(stacks) and b.isdigit() and int(b) > 1 for a, b in pairwise(parts))


@each(FULL)
def test_no_released_checkpoint_is_taken_for_one_of_diffusers(name):
    _, shapes = load(FULL, name)
    assert recognise(shapes) is None
    assert not renamed_without_a_table(shapes)


def test_every_known_model_has_a_table():
    assert all(model.family in FAMILIES or model.family == "unet" for model in KNOWN)


@pytest.mark.parametrize(
    ("layer", "known", "found"),
    [
        (
            "double_blocks.3.img_attn.qkv",
            [
                "transformer_blocks.3.attn.to_v",
                "transformer_blocks.3.attn.to_q",
                "transformer_blocks.4.attn.to_q",
            ],
            ("transformer_blocks.3.attn.to_q", "transformer_blocks.3.attn.to_v"),
        ),
        (
            "transformer_blocks.3.attn.to_k",
            ["double_blocks.3.img_attn.qkv"],
            ("double_blocks.3.img_attn.qkv",),
        ),
        (
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"],
            ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",),
        ),
        # One model's name for it, and another's: nothing tells which is meant.
        (
            "transformer_blocks.3.attn.to_k",
            ["double_blocks.3.img_attn.qkv", "joint_blocks.3.x_block.attn.qkv"],
            (),
        ),
        ("elsewhere.3.attn.to_k", ["double_blocks.3.img_attn.qkv"], ()),
    ],
)
def test_a_layer_is_found_under_its_name_on_the_other_side(layer, known, found):
    assert Aliases(known).of(layer) == found
