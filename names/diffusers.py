"""Which model a checkpoint with diffusers' names holds, and what ComfyUI does with such names.

Stock ComfyUI gives some of these files its own names when it loads them: weights, biases and norms. It knows
nothing of what stands beside a quantized weight and leaves that behind, so that the integers are used as
they are. Others it does not load at all. Source: ``convert_diffusers_mmdit`` and
``unet_config_from_diffusers_unet`` in ``comfy/model_detection.py`` of ComfyUI 0.33.
"""

from collections.abc import Collection
from dataclasses import dataclass

from .families import FAMILIES
from .prefixes import CHECKPOINT
from .rows import Row
from .unet import unet

NAMES_KEY = "convert_to_quant.names"
"""The key of a header's metadata that says whose names a checkpoint from diffusers was given or left."""

DIFFUSERS = "diffusers"
COMFYUI = "comfyui"

_FLUX_BLOCKS = ("transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.proj_mlp.weight")


@dataclass(frozen=True)
class DiffusersNames:
    """A model whose names are diffusers'.

    family: a name in `families.FAMILIES`, or "unet". marks: tensors that are all there. lacks: tensors that
    are not. renamed: whether stock ComfyUI renames such a file when it loads it; else it does not load it.
    """

    family: str
    marks: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    renamed: bool = True

    def fits(self, names: Collection[str], prefix: str) -> bool:
        """Tell whether a checkpoint with `names` holds it under `prefix`."""
        there = all(prefix + mark in names for mark in self.marks)
        return there and not any(prefix + name in names for name in self.lacks)

    def rows(self, names: Collection[str]) -> tuple[Row, ...]:
        """Return the table by which the checkpoint's `names`, without their prefix, become ComfyUI's."""
        return unet(names) if self.family == "unet" else FAMILIES[self.family]


KNOWN = (
    DiffusersNames("auraflow", ("joint_transformer_blocks.0.attn.add_k_proj.weight",)),
    DiffusersNames("pixart", ("adaln_single.emb.timestep_embedder.linear_1.bias", "pos_embed.proj.bias")),
    DiffusersNames("z-image", ("noise_refiner.0.attention.norm_k.weight", "all_x_embedder.2-1.weight")),
    DiffusersNames("chroma", ("distilled_guidance_layer.layers.0.linear_1.weight", *_FLUX_BLOCKS)),
    DiffusersNames("longcat-image", ("time_embed.timestep_embedder.linear_1.weight", *_FLUX_BLOCKS)),
    DiffusersNames(
        "flux",
        ("time_text_embed.text_embedder.linear_1.weight", "x_embedder.weight", *_FLUX_BLOCKS),
    ),
    DiffusersNames(
        "flux2",
        ("x_embedder.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"),
        renamed=False,
    ),
    DiffusersNames("sd3", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight")),
    DiffusersNames("unet", ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "conv_out.weight")),
    DiffusersNames(
        "wan",
        ("condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight"),
        renamed=False,
    ),
    DiffusersNames(
        "lumina2",
        ("time_caption_embed.timestep_embedder.linear_1.weight", "noise_refiner.0.attn.to_q.weight"),
        lacks=("image_index_embedding",),  # OmniGen2 and Boogu-Image, which ComfyUI names as diffusers does
        renamed=False,
    ),
    DiffusersNames(
        "hunyuan-video",
        (
            "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight",
            "x_embedder.proj.weight",
            "time_text_embed.text_embedder.linear_1.weight",
        ),
        renamed=False,
    ),
    DiffusersNames(
        "ltx-video",
        ("time_embed.linear.weight", "proj_in.weight", "transformer_blocks.0.attn2.norm_q.weight"),
        renamed=False,
    ),
)
"""The models whose every tensor has a ComfyUI name in a table."""

_RENAMED_ANYHOW = (
    # Whatever has these, ComfyUI takes for Flux or for a UNet if nothing else fits.
    ("x_embedder.weight", "x_embedder.bias", "transformer_blocks.0."),
    ("conv_in.weight", "conv_in.bias", "down_blocks.0."),
)


def recognise(names: Collection[str]) -> tuple[str, DiffusersNames] | None:
    """Return the prefix of a model with diffusers' names, and which it is; None where there is none."""
    known = set(names)
    for prefix in CHECKPOINT:
        for model in KNOWN:
            if model.fits(known, prefix):
                return prefix, model
    return None


def renamed_without_a_table(names: Collection[str]) -> bool:
    """Tell whether stock ComfyUI would rename tensors of a file that is none of `KNOWN`."""
    known = set(names)
    return any(
        weight in known and bias in known and any(name.startswith(stack) for name in known)
        for weight, bias, stack in _RENAMED_ANYHOW
    )
