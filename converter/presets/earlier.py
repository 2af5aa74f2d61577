"""The preset table: earlier image and video models, 3D models and restoration."""

from __future__ import annotations

from . import fold_tables
from .facts import Preset, dim, has, lacks
from .rows import DIFFUSERS_KEEP, DIFFUSERS_MODULATION, diffusers, naming, variant


def _unet(name: str, title: str, text: int, *aliases: str) -> Preset:
    """Make the preset of a UNet whose prompts have `text` columns."""
    native, theirs = (
        f"{block}.transformer_blocks.0.attn2.to_k.weight"
        for block in ("input_blocks.1.1", "down_blocks.0.attentions.0")
    )
    return Preset(
        name=name,
        title=title,
        namings=(
            naming(dim(native, 1, text), has("out.2.weight"), lacks("label_emb.0.0.weight")),
            diffusers(dim(theirs, 1, text), has("conv_out.weight"), lacks("add_embedding.linear_1.weight")),
        ),
        blocks=(
            r"^(input_blocks|middle_block|output_blocks)\.\d+\.",
            r"^(down_blocks|mid_block|up_blocks)\.",
        ),
        keep=(r"^(time_embed|out)\.", r"\bemb_layers\.", r"^time_embedding\.", r"\btime_emb_proj\."),
        aliases=aliases,
        folds=fold_tables.UNET,
    )


EARLIER = (
    _unet("sd1-unet", "Stable Diffusion 1 (UNet)", 768, "sd1", "sd15", "sd1.5"),
    _unet("sd2-unet", "Stable Diffusion 2 (UNet)", 1024, "sd2", "sd21", "sd2.1"),
    Preset(
        name="pixart",
        title="PixArt (Alpha, Sigma)",
        namings=(
            naming(has("t_block.1.weight"), has("blocks.0.cross_attn.kv_linear.weight")),
            diffusers(
                has("adaln_single.emb.timestep_embedder.linear_1.weight"),
                has("pos_embed.proj.weight"),
                has("caption_projection.linear_1.weight"),
            ),
        ),
        blocks=(r"^(transformer_)?blocks\.\d+\.",),
        keep=(
            r"^(x_embedder|t_embedder|y_embedder|csize_embedder|ar_embedder|t_block|final_layer)\.",
            r"^(pos_embed|adaln_single|caption_projection)\.",
            DIFFUSERS_KEEP,
        ),
        variants=(
            variant(
                "pixart-alpha",
                has("ar_embedder.mlp.0.weight"),
                diffusers=(has("adaln_single.emb.aspect_ratio_embedder.linear_1.weight"),),
            ),
            variant("pixart-sigma", has("t_block.1.weight"), diffusers=(has("adaln_single.linear.weight"),)),
        ),
        folds=fold_tables.PIXART,
    ),
    Preset(
        name="hunyuan-dit",
        title="HunyuanDiT",
        namings=(naming(has("mlp_t5.0.weight"), has("blocks.0.attn1.Wqkv.weight")),),
        blocks=(r"^blocks\.\d+\.",),
        keep=(r"^(mlp_t5|pooler|x_embedder|t_embedder|extra_embedder|style_embedder|final_layer)\.",),
        strict=(r"\bdefault_modulation\b",),
        aliases=("hydit",),
    ),
    Preset(
        name="hunyuan3d-2",
        title="Hunyuan3D 2",
        namings=(
            naming(
                has("latent_in.weight"), has("cond_in.weight"), has("double_blocks.0.img_attn.qkv.weight")
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.",),
        keep=(r"^(latent_in|cond_in|time_in|guidance_in|final_layer)\.",),
        strict=(r"(img_mod|txt_mod|modulation)\.lin\b",),
        aliases=("hunyuan3d",),
        folds=fold_tables.FLUX1,
    ),
    Preset(
        name="hunyuan3d-2.1",
        title="Hunyuan3D 2.1",
        namings=(
            naming(
                has("blocks.0.attn1.k_norm.weight"),
                has("blocks.0.attn1.to_q.weight"),
                has("t_embedder.mlp.2.weight"),
                has("x_embedder.weight"),
            ),
        ),
        blocks=(r"^blocks\.\d+\.",),
        keep=(r"^(x_embedder|t_embedder|pooler|extra_embedder|final_layer)\.", r"\bmoe\.gate\b"),
    ),
    Preset(
        name="cogvideox",
        title="CogVideoX",
        namings=(
            naming(has("blocks.0.norm1.linear.weight"), has("patch_embed.text_proj.weight")),
            diffusers(
                has("transformer_blocks.0.norm1.linear.weight"),
                has("patch_embed.text_proj.weight"),
                has("time_embedding.linear_1.weight"),
            ),
        ),
        blocks=(r"^(transformer_)?blocks\.\d+\.",),
        keep=(
            r"^(time_embedding|ofs_embedding)(_linear_\d)?\.",
            r"^(time_embedding|ofs_embedding)\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"\.norm[12]\.linear\.",),
        aliases=("cogvideo",),
        folds=fold_tables.COGVIDEOX,
    ),
    Preset(
        name="cosmos-1",
        title="Cosmos 1",
        namings=(
            naming(has("blocks.block0.blocks.0.block.attn.to_q.0.weight"), has("x_embedder.proj.1.weight")),
            diffusers(
                has("time_embed.t_embedder.linear_2.weight"),
                has("transformer_blocks.0.norm3.linear_2.weight"),
                has("learnable_pos_embed.pos_emb_t"),
            ),
        ),
        blocks=(r"^blocks\.block\d+\.", r"^transformer_blocks\.\d+\."),
        keep=(r"^(x_embedder|t_embedder|extra_pos_embedder|final_layer)\.", DIFFUSERS_KEEP),
        strict=(r"\badaLN_modulation\b", DIFFUSERS_MODULATION),
    ),
    Preset(
        name="seedvr2",
        title="SeedVR2",
        namings=(
            naming(
                has("vid_in.proj.weight"),
                has("blocks.0.attn.proj_qkv.vid.weight"),
                has("emb_in.proj_in.weight"),
            ),
        ),
        blocks=(r"^blocks\.\d+\.",),
        keep=(r"^(vid_in|txt_in|emb_in|vid_out)\.",),
        variants=(
            variant("seedvr2-3b", dim("vid_in.proj.weight", 0, 2560)),
            variant("seedvr2-7b", dim("vid_in.proj.weight", 0, 3072)),
        ),
    ),
    # Named by diffusers alone so far: no ComfyUI loads it yet.
    Preset(
        name="flux3",
        title="Flux.3",
        namings=(
            diffusers(
                has("x_embedders.image.weight"),
                has("mode_blocks.image.0.attn.to_q.weight"),
                has("txt_mode_blocks.0.attn.to_q.weight"),
            ),
        ),
        blocks=(r"^(mode_blocks\.\w+|txt_mode_blocks|single_transformer_blocks)\.\d+\.",),
        keep=(
            r"^(x_embedders|timestep_embedder|early_stream_modulations|single_stream_modulations)\.",
            DIFFUSERS_KEEP,
        ),
        aliases=("flux-3",),
    ),
)
