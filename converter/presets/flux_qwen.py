"""The preset table: Flux, Chroma and their kin, Qwen-Image and its kin."""

from __future__ import annotations

from . import fold_tables
from .facts import Preset, dim, has, lacks
from .rows import DIFFUSERS_BLOCKS, DIFFUSERS_KEEP, DIFFUSERS_MODULATION, diffusers, naming, variant

FLUX_FAMILY = (
    Preset(
        name="flux1",
        title="Flux.1 (dev, schnell, fill, Krea, Kontext)",
        namings=(
            naming(
                has("double_blocks.0.img_mod.lin.weight"),
                has("vector_in.in_layer.weight"),
                has("img_in.weight"),
            ),
            diffusers(
                has("time_text_embed.text_embedder.linear_1.weight"),
                has("single_transformer_blocks.0.proj_mlp.weight"),
                has("x_embedder.weight"),
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.", DIFFUSERS_BLOCKS),
        keep=(r"^(img_in|txt_in|time_in|guidance_in|vector_in|final_layer)\.", DIFFUSERS_KEEP),
        strict=(r"(img_mod|txt_mod|modulation)\.lin\b", DIFFUSERS_MODULATION),
        variants=(
            variant(
                "flux1-dev",
                dim("img_in.weight", 1, 64),
                has("guidance_in.in_layer.weight"),
                diffusers=(
                    dim("x_embedder.weight", 1, 64),
                    has("time_text_embed.guidance_embedder.linear_1.weight"),
                ),
            ),
            variant(
                "flux1-fill-dev",
                dim("img_in.weight", 1, 384),
                diffusers=(dim("x_embedder.weight", 1, 384),),
            ),
            variant(
                "flux1-schnell",
                dim("img_in.weight", 1, 64),
                lacks("guidance_in.in_layer.weight"),
                diffusers=(
                    dim("x_embedder.weight", 1, 64),
                    lacks("time_text_embed.guidance_embedder.linear_1.weight"),
                ),
            ),
        ),
        aliases=("flux", "flux-1"),
        folds=fold_tables.FLUX1,
    ),
    Preset(
        name="flux2",
        title="Flux.2 (dev, klein)",
        namings=(
            naming(
                has("double_stream_modulation_img.lin.weight"), has("single_stream_modulation.lin.weight")
            ),
            diffusers(
                has("double_stream_modulation_img.linear.weight"),
                has("single_stream_modulation.linear.weight"),
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.", DIFFUSERS_BLOCKS),
        # Modulation is shared by all blocks here (1.8 % of dev): it is not per-block and stays.
        keep=(
            r"^(img_in|txt_in|time_in|guidance_in|final_layer|double_stream_modulation_\w+|single_stream_modulation)\.",
            DIFFUSERS_KEEP,
        ),
        variants=(
            variant(
                "flux2-dev",
                dim("img_in.weight", 0, 6144),
                diffusers=(dim("x_embedder.weight", 0, 6144),),
            ),
            variant(
                "flux2-klein-4b",
                dim("img_in.weight", 0, 3072),
                diffusers=(dim("x_embedder.weight", 0, 3072),),
            ),
            variant(
                "flux2-klein-9b",
                dim("img_in.weight", 0, 4096),
                diffusers=(dim("x_embedder.weight", 0, 4096),),
            ),
        ),
        aliases=("flux-2", "klein"),
        folds=fold_tables.FLUX2,
    ),
    Preset(
        name="longcat-image",
        title="LongCat-Image",
        namings=(
            naming(
                has("double_blocks.0.img_mod.lin.weight"),
                lacks("vector_in.in_layer.weight"),
                dim("txt_in.weight", 1, 3584),
            ),
            # Bria has the same names with a text width of 4096.
            diffusers(
                has("time_embed.timestep_embedder.linear_1.weight"),
                has("x_embedder.weight"),
                dim("context_embedder.weight", 1, 3584),
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.", DIFFUSERS_BLOCKS),
        keep=(r"^(img_in|txt_in|time_in|final_layer)\.", DIFFUSERS_KEEP),
        strict=(r"(img_mod|txt_mod|modulation)\.lin\b", DIFFUSERS_MODULATION),
        aliases=("longcat",),
        folds=fold_tables.FLUX1,
    ),
    Preset(
        name="chroma",
        title="Chroma1",
        namings=(
            naming(has("distilled_guidance_layer.in_proj.weight"), has("img_in.weight")),
            diffusers(
                has("distilled_guidance_layer.layers.0.linear_1.weight"),
                has("x_embedder.weight"),
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.", DIFFUSERS_BLOCKS),
        keep=(r"^(img_in|txt_in|distilled_guidance_layer|final_layer)\.", DIFFUSERS_KEEP),
        variants=(
            variant(
                "chroma1-hd",
                dim("img_in.weight", 0, 3072),
                diffusers=(dim("x_embedder.weight", 0, 3072),),
            ),
        ),
        folds=fold_tables.CHROMA,
    ),
    Preset(
        name="chroma-radiance",
        title="Chroma1-Radiance",
        namings=(naming(has("distilled_guidance_layer.in_proj.weight"), has("img_in_patch.weight")),),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.",),
        keep=(r"^(img_in_patch|txt_in|distilled_guidance_layer|nerf_\w+)\.",),
        strict=(r"_attn\.proj\b",),
        variants=(variant("chroma1-radiance", dim("img_in_patch.weight", 0, 3072)),),
        aliases=("radiance",),
        folds=fold_tables.CHROMA,
    ),
)

QWEN_FAMILY = (
    Preset(
        name="qwen-image",
        title="Qwen-Image (also 2512, Edit, 2509, 2511, Layered)",
        namings=(
            naming(
                has("transformer_blocks.0.img_mod.1.weight"),
                has("time_text_embed.timestep_embedder.linear_1.weight"),
                dim("txt_in.weight", 1, 3584),
            ),
        ),
        blocks=(r"^transformer_blocks\.\d+\.",),
        # Three converters also keep transformer_blocks.0.img_mod (56.6 M parameters).
        # The published file quantizes it, with 840 of 846 layers, so it is strict only.
        keep=(r"^(img_in|txt_in|time_text_embed|norm_out|proj_out)\.",),
        strict=(r"(img|txt)_mod\.1\b",),
        aliases=("qwen",),
        folds=fold_tables.QWEN_IMAGE,
    ),
    Preset(
        name="qwen-image-2.1",
        title="Qwen-Image 2.1",
        namings=(naming(has("txt_in.in_layer.weight"), has("transformer_blocks.0.attn.to_q.weight")),),
        blocks=(r"^transformer_blocks\.\d+\.",),
        keep=(r"^(img_in|txt_in|time_text_embed|modulation|norm_out|proj_out)\.",),
        folds=fold_tables.QWEN_IMAGE21,
    ),
    Preset(
        name="lens",
        title="Lens",
        namings=(
            naming(
                has("transformer_blocks.0.img_mlp.w1.weight"), has("transformer_blocks.0.img_mod.1.weight")
            ),
        ),
        blocks=(r"^transformer_blocks\.\d+\.",),
        keep=(r"^(img_in|txt_in|time_text_embed|norm_out|proj_out)\.",),
        strict=(r"(img|txt)_mod\.1\b",),
        folds=fold_tables.LENS,
    ),
    Preset(
        name="mage-flow",
        title="Mage-Flow",
        namings=(naming(has("transformer_blocks.0.img_mod.1.weight"), dim("txt_in.weight", 1, 2560)),),
        blocks=(r"^transformer_blocks\.\d+\.",),
        keep=(r"^(img_in|txt_in|time_text_embed|norm_out|proj_out)\.",),
        strict=(r"(img|txt)_mod\.1\b",),
        folds=fold_tables.QWEN_IMAGE,
    ),
)
