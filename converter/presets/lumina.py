"""The preset table: models with refiners before the main blocks (Z-Image, Lumina, OmniGen)."""

from __future__ import annotations

from . import fold_tables
from .facts import Preset, dim, has, lacks
from .rows import DIFFUSERS_KEEP, DIFFUSERS_MODULATION, diffusers, naming

LUMINA_FAMILY = (
    Preset(
        name="z-image",
        title="Z-Image (also Turbo)",
        namings=(
            naming(has("cap_embedder.1.weight"), dim("noise_refiner.0.attention.qkv.weight", 1, 3840)),
            # Other widths: the padding tokens are Z-Image's own.
            naming(
                has("noise_refiner.0.attention.qkv.weight"),
                has("x_pad_token"),
                has("cap_pad_token"),
                lacks("clip_text_pooled_proj.0.weight"),
            ),
            diffusers(
                has("all_x_embedder.2-1.weight"),
                has("noise_refiner.0.attention.to_q.weight"),
            ),
        ),
        # The published file has both refiners in INT8.
        blocks=(r"^(layers|noise_refiner|context_refiner)\.\d+\.",),
        # sdnq also keeps layers.0.adaLN_modulation. The published file quantizes it, with
        # 202 of 208 layers, so it is strict only.
        keep=(
            r"^(x_embedder|cap_embedder|t_embedder|final_layer|siglip_embedder)\.",
            r"^(all_x_embedder|all_final_layer)\.",
        ),
        strict=(r"adaLN_modulation\b",),
        aliases=("zimage", "z-image-turbo"),
        folds=fold_tables.Z_IMAGE,
    ),
    Preset(
        name="lumina-image-2",
        title="Lumina-Image 2",
        namings=(
            naming(
                has("cap_embedder.1.weight"),
                dim("noise_refiner.0.attention.qkv.weight", 1, 2304),
                lacks("clip_text_pooled_proj.0.weight"),
            ),
            diffusers(
                dim("layers.0.attn.to_q.weight", 0, 2304),
                has("time_caption_embed.timestep_embedder.linear_1.weight"),
            ),
        ),
        blocks=(r"^(layers|noise_refiner|context_refiner)\.\d+\.",),
        keep=(
            r"^(x_embedder|cap_embedder|t_embedder|final_layer)\.",
            r"^layers\.0\.(adaLN_modulation|norm1\.linear)\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"adaLN_modulation\b", DIFFUSERS_MODULATION),
        aliases=("lumina2", "lumina-2"),
        folds=fold_tables.Z_IMAGE,
    ),
    Preset(
        name="newbie-image",
        title="NewBie-Image",
        namings=(naming(has("cap_embedder.1.weight"), has("clip_text_pooled_proj.0.weight")),),
        blocks=(r"^(layers|noise_refiner|context_refiner)\.\d+\.",),
        keep=(r"^(x_embedder|cap_embedder|t_embedder|clip_text_pooled_proj|time_text_embed|final_layer)\.",),
        strict=(r"adaLN_modulation\b",),
        aliases=("newbie",),
        folds=fold_tables.Z_IMAGE,
    ),
    Preset(
        name="omnigen2",
        title="OmniGen2",
        namings=(
            naming(
                has("time_caption_embed.timestep_embedder.linear_1.weight"),
                lacks("double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight"),
                has("ref_image_patch_embedder.weight"),
            ),
        ),
        blocks=(r"^(layers|noise_refiner|ref_image_refiner|context_refiner)\.\d+\.",),
        keep=(r"^(x_embedder|ref_image_patch_embedder|time_caption_embed|norm_out)\.",),
        strict=(DIFFUSERS_MODULATION,),
        folds=fold_tables.OMNIGEN2,
    ),
    Preset(
        name="boogu-image",
        title="Boogu-Image",
        namings=(
            naming(
                has("double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight"),
                has("x_embedder.weight"),
            ),
        ),
        blocks=(
            r"^(double_stream_layers|single_stream_layers|noise_refiner|ref_image_refiner|context_refiner)\.\d+\.",
        ),
        keep=(r"^(x_embedder|ref_image_patch_embedder|image_index_embedding|time_caption_embed|norm_out)\b",),
        strict=(r"norm\d\.linear\.",),
        aliases=("boogu",),
        folds=fold_tables.BOOGU_IMAGE,
    ),
)
