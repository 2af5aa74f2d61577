"""The preset table: the other image models."""

from __future__ import annotations

from . import fold_tables
from .facts import Preset, dim, has, lacks
from .rows import DIFFUSERS_KEEP, DIFFUSERS_MODULATION, diffusers, naming, variant

IMAGE = (
    # A Qwen3 8B with a second set of weights that makes images, and no encoder of its own.
    Preset(
        name="sensenova-u1.5",
        title="SenseNova-U1.5",
        namings=(
            naming(
                has("language_model.model.layers.0.self_attn.q_proj_mot_gen.weight"),
                has("fm_modules.fm_head.conv1.weight"),
            ),
        ),
        blocks=(r"^language_model\.model\.layers\.\d+\.",),
        keep=(r"^(vision_model|fm_modules)\.", r"\b(embed_tokens|lm_head)\b"),
        aliases=("sensenova",),
    ),
    Preset(
        name="anima",
        title="Anima",
        namings=(
            naming(has("blocks.0.mlp.layer1.weight"), has("llm_adapter.blocks.0.cross_attn.q_proj.weight")),
        ),
        blocks=(r"^blocks\.\d+\.",),
        keep=(r"^(x_embedder|t_embedder|final_layer|llm_adapter)\.",),
        strict=(r"adaln_modulation", r"^blocks\.0\."),
        folds=fold_tables.COSMOS_PREDICT2,
    ),
    Preset(
        name="cosmos-predict2",
        title="Cosmos-Predict2",
        namings=(
            naming(
                has("blocks.0.mlp.layer1.weight"),
                has("x_embedder.proj.1.weight"),
                lacks("llm_adapter.embed.weight"),
            ),
            diffusers(
                has("time_embed.t_embedder.linear_2.weight"),
                has("transformer_blocks.0.norm3.linear_2.weight"),
            ),
        ),
        blocks=(r"^blocks\.\d+\.", r"^transformer_blocks\.\d+\."),
        keep=(r"^(x_embedder|t_embedder|final_layer)\.", DIFFUSERS_KEEP),
        strict=(r"adaln_modulation", DIFFUSERS_MODULATION),
        variants=(
            variant(
                "cosmos-predict2-14b-t2i",
                dim("x_embedder.proj.1.weight", 0, 5120),
                dim("x_embedder.proj.1.weight", 1, 68),
                diffusers=(dim("patch_embed.proj.weight", 0, 5120), dim("patch_embed.proj.weight", 1, 68)),
            ),
            variant(
                "cosmos-predict2-2b-t2i",
                dim("x_embedder.proj.1.weight", 0, 2048),
                dim("x_embedder.proj.1.weight", 1, 68),
                diffusers=(dim("patch_embed.proj.weight", 0, 2048), dim("patch_embed.proj.weight", 1, 68)),
            ),
            variant(
                "cosmos-predict2-2b-v2w",
                dim("x_embedder.proj.1.weight", 0, 2048),
                dim("x_embedder.proj.1.weight", 1, 72),
                diffusers=(dim("patch_embed.proj.weight", 0, 2048), dim("patch_embed.proj.weight", 1, 72)),
            ),
        ),
        aliases=("cosmos",),
        folds=fold_tables.COSMOS_PREDICT2,
    ),
    Preset(
        name="auraflow-0.3",
        title="AuraFlow",
        namings=(
            naming(has("double_layers.0.attn.w1q.weight"), has("init_x_linear.weight")),
            diffusers(
                has("time_step_proj.linear_2.weight"),
                has("joint_transformer_blocks.0.attn.to_q.weight"),
            ),
        ),
        blocks=(r"^(double_layers|single_layers)\.\d+\.", r"^(joint|single)_transformer_blocks\.\d+\."),
        keep=(
            r"^(t_embedder|cond_seq_linear|init_x_linear|modF|final_linear)\.",
            r"^(pos_embed|time_step_proj)\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"\.mod(C|X|CX)\.", DIFFUSERS_MODULATION),
        aliases=("auraflow",),
        folds=fold_tables.AURAFLOW,
    ),
    Preset(
        name="ernie-image",
        title="ERNIE-Image",
        namings=(naming(has("layers.0.mlp.linear_fc2.weight"), has("text_proj.weight")),),
        blocks=(r"^layers\.\d+\.",),
        # One adaLN_modulation, shared by all blocks.
        keep=(
            r"^(x_embedder|text_proj|time_embedding|time_proj|adaLN_modulation|final_norm|final_linear)\b",
        ),
        strict=(r"^layers\.(0|35)\.",),
        aliases=("ernie",),
        folds=fold_tables.ERNIE_IMAGE,
    ),
    Preset(
        name="hidream-i1",
        title="HiDream-I1",
        namings=(
            naming(
                has("caption_projection.0.linear.weight"),
                has("p_embedder.pooled_embedder.linear_1.weight"),
            ),
        ),
        blocks=(r"^(double_stream_blocks|single_stream_blocks)\.\d+\.",),
        keep=(
            r"^(x_embedder|t_embedder|p_embedder|caption_projection|final_layer)\.",
            r"\bff_i\.gate\b",  # expert router
        ),
        strict=(r"adaLN_modulation\b",),
        aliases=("hidream",),
        folds=fold_tables.HIDREAM_I1,
    ),
    Preset(
        name="hidream-o1",
        title="HiDream-O1",
        namings=(naming(has("t_embedder1.mlp.0.weight"), has("x_embedder.proj1.weight")),),
        blocks=(r"^(model\.)?language_model\.(model\.)?layers\.\d+\.",),
        keep=(
            r"\b(embed_tokens|lm_head|x_embedder|t_embedder1|final_layer2?|visual)\.",
            r"\b(patch_embed|pos_embed)\b",
        ),
    ),
    Preset(
        name="ideogram4",
        title="Ideogram 4",
        namings=(
            naming(
                has("embed_image_indicator.weight"),
                has("llm_cond_proj.weight"),
                has("layers.0.attention.qkv.weight"),
            ),
            diffusers(
                has("embed_image_indicator.weight"),
                has("llm_cond_proj.weight"),
                has("layers.0.attention.to_q.weight"),
            ),
        ),
        blocks=(r"^layers\.\d+\.",),
        keep=(r"^(input_proj|llm_cond_proj|t_embedding|adaln_proj|embed_image_indicator|final_layer)\b",),
        strict=(r"adaln_modulation\b",),
        aliases=("ideogram",),
        folds=fold_tables.IDEOGRAM4,
    ),
    Preset(
        name="krea2",
        title="Krea 2 (raw, turbo)",
        namings=(
            naming(has("txtfusion.projector.weight"), has("first.weight"), has("blocks.0.attn.wq.weight")),
            diffusers(has("time_mod_proj.weight"), has("text_fusion.projector.weight")),
        ),
        blocks=(r"^(transformer_)?blocks\.\d+\.",),
        # The published file leaves the text fusion stack (4 blocks) as it is.
        keep=(
            r"^(first|last|tmlp|txtmlp|tproj|txtfusion)\.",
            r"^(img_in|txt_in|time_embed|time_mod_proj|text_fusion|final_layer)\.",
        ),
        aliases=("krea-2",),
        folds=fold_tables.KREA2,
    ),
    Preset(
        name="sd3",
        title="Stable Diffusion 3.5",
        namings=(
            naming(has("joint_blocks.0.context_block.attn.qkv.weight"), has("context_embedder.weight")),
            diffusers(
                has("time_text_embed.text_embedder.linear_1.weight"),
                has("pos_embed.proj.weight"),
                has("transformer_blocks.0.norm1_context.linear.weight"),
            ),
        ),
        blocks=(r"^(joint_blocks|transformer_blocks)\.\d+\.",),
        keep=(
            r"^(x_embedder|t_embedder|y_embedder|context_embedder|final_layer)\.",
            r"^pos_embed\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"adaLN_modulation\b", DIFFUSERS_MODULATION),
        variants=(
            variant(
                "sd3.5-large",
                dim("x_embedder.proj.weight", 0, 2432),
                diffusers=(dim("pos_embed.proj.weight", 0, 2432),),
            ),
            variant(
                "sd3.5-medium",
                dim("x_embedder.proj.weight", 0, 1536),
                has("joint_blocks.0.x_block.attn2.qkv.weight"),
                diffusers=(
                    dim("pos_embed.proj.weight", 0, 1536),
                    has("transformer_blocks.0.attn2.to_q.weight"),
                ),
            ),
        ),
        aliases=("sd3.5", "sd35"),
        folds=fold_tables.SD3,
    ),
    Preset(
        name="sdxl-unet",
        title="Stable Diffusion XL (UNet)",
        namings=(
            naming(
                has("input_blocks.0.0.weight"),
                dim("label_emb.0.0.weight", 1, 2816),
                has("middle_block.1.transformer_blocks.9.attn2.to_k.weight"),
            ),
            diffusers(
                has("conv_in.weight"),
                dim("add_embedding.linear_1.weight", 1, 2816),
                has("mid_block.attentions.0.transformer_blocks.9.attn2.to_k.weight"),
            ),
        ),
        blocks=(
            r"^(input_blocks|middle_block|output_blocks)\.\d+\.",
            r"^(down_blocks|mid_block|up_blocks)\.",
        ),
        keep=(
            r"^(time_embed|label_emb|out)\.",
            r"\bemb_layers\.",
            r"^(time_embedding|add_embedding)\.",
            r"\btime_emb_proj\.",
        ),
        variants=(
            variant(
                "sdxl-base-unet",
                dim("input_blocks.0.0.weight", 1, 4),
                diffusers=(dim("conv_in.weight", 1, 4),),
            ),
        ),
        aliases=("sdxl",),
        folds=fold_tables.UNET,
    ),
)
