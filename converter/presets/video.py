"""The preset table: video models."""

from __future__ import annotations

from . import fold_tables
from .facts import Preset, dim, has, lacks, ndim
from .rows import DIFFUSERS_BLOCKS, DIFFUSERS_KEEP, DIFFUSERS_MODULATION, diffusers, naming, variant

VIDEO = (
    Preset(
        name="wan",
        title="Wan 2.1 / 2.2",
        namings=(
            naming(has("head.modulation"), has("blocks.0.ffn.0.weight"), has("text_embedding.0.weight")),
            diffusers(
                has("condition_embedder.time_proj.weight"),
                has("blocks.0.attn2.to_v.weight"),
                has("blocks.0.ffn.net.0.proj.weight"),
            ),
        ),
        blocks=(r"^(vace_)?blocks\.\d+\.",),
        # The published Wan-Animate file leaves the face adapter (8 blocks) as it is.
        keep=(
            r"^(text_embedding|time_embedding|time_projection|img_emb|head|patch_embedding"
            r"|vace_patch_embedding|pose_patch_embedding|face_encoder|face_adapter|motion_encoder"
            r"|casual_audio_encoder|cond_encoder|frame_packer|audio_injector|trainable_cond_mask)\b",
            DIFFUSERS_KEEP,
        ),
        variants=(
            variant(
                "wan2.1-flf2v-14b",
                has("img_emb.emb_pos"),
                diffusers=(has("condition_embedder.image_embedder.pos_embed"),),
            ),
            variant(
                "wan2.1-i2v-14b",
                dim("patch_embedding.weight", 0, 5120),
                dim("patch_embedding.weight", 1, 36),
                has("img_emb.proj.1.weight"),
                lacks("img_emb.emb_pos"),
                lacks("face_adapter.fuser_blocks.0.linear1_kv.weight"),
                diffusers=(
                    dim("patch_embedding.weight", 0, 5120),
                    dim("patch_embedding.weight", 1, 36),
                    has("condition_embedder.image_embedder.ff.net.0.proj.weight"),
                    lacks("condition_embedder.image_embedder.pos_embed"),
                    lacks("pose_patch_embedding.weight"),
                ),
            ),
            variant(
                "wan2.1-t2v-1.3b",
                dim("patch_embedding.weight", 0, 1536),
                dim("patch_embedding.weight", 1, 16),
                lacks("vace_patch_embedding.weight"),
            ),
            # Wan 2.2 T2V-A14B (high and low noise) has the same header.
            variant(
                "wan2.1-t2v-14b",
                dim("patch_embedding.weight", 0, 5120),
                dim("patch_embedding.weight", 1, 16),
                lacks("vace_patch_embedding.weight"),
                lacks("casual_audio_encoder.encoder.final_linear.weight"),
            ),
            variant(
                "wan2.1-vace-1.3b",
                has("vace_patch_embedding.weight"),
                dim("patch_embedding.weight", 0, 1536),
            ),
            variant(
                "wan2.1-vace-14b",
                has("vace_patch_embedding.weight"),
                dim("patch_embedding.weight", 0, 5120),
            ),
            variant(
                "wan2.2-animate-14b",
                has("face_adapter.fuser_blocks.0.linear1_kv.weight"),
                diffusers=(has("face_adapter.0.to_q.weight"),),
            ),
            variant(
                "wan2.2-i2v-a14b",
                dim("patch_embedding.weight", 0, 5120),
                dim("patch_embedding.weight", 1, 36),
                lacks("img_emb.proj.1.weight"),
                lacks("condition_embedder.image_embedder.ff.net.0.proj.weight"),
            ),
            variant("wan2.2-s2v-14b", has("casual_audio_encoder.encoder.final_linear.weight")),
            variant(
                "wan2.2-ti2v-5b",
                dim("patch_embedding.weight", 0, 3072),
                dim("patch_embedding.weight", 1, 48),
            ),
        ),
        aliases=("wan2.1", "wan2.2"),
        folds=fold_tables.WAN,
    ),
    Preset(
        name="hunyuan-video",
        title="HunyuanVideo",
        namings=(
            naming(
                has("txt_in.input_embedder.weight"),
                has("vector_in.in_layer.weight"),
                ndim("img_in.proj.weight", 5),
            ),
            diffusers(
                has("context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight"),
                has("time_text_embed.text_embedder.linear_1.weight"),
                ndim("x_embedder.proj.weight", 5),
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.", DIFFUSERS_BLOCKS),
        keep=(r"^(img_in|txt_in|time_in|guidance_in|vector_in|final_layer)\.", DIFFUSERS_KEEP),
        strict=(r"(img_mod|txt_mod|modulation)\.", DIFFUSERS_MODULATION),
        variants=(
            variant(
                "hunyuan-video",
                dim("img_in.proj.weight", 1, 16),
                diffusers=(dim("x_embedder.proj.weight", 1, 16),),
            ),
            variant(
                "hunyuan-video-i2v",
                dim("img_in.proj.weight", 1, 33),
                diffusers=(dim("x_embedder.proj.weight", 1, 33),),
            ),
        ),
        folds=fold_tables.HUNYUAN_VIDEO,
    ),
    Preset(
        name="hunyuan-video-1.5",
        title="HunyuanVideo 1.5",
        namings=(
            naming(
                has("txt_in.input_embedder.weight"),
                has("vision_in.proj.1.weight"),
                has("cond_type_embedding.weight"),
            ),
            diffusers(
                has("cond_type_embed.weight"),
                has("context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight"),
            ),
        ),
        blocks=(r"^double_blocks\.\d+\.", r"^transformer_blocks\.\d+\."),
        keep=(
            r"^(img_in|txt_in|time_in|time_r_in|guidance_in|byt5_in|vision_in|cond_type_embedding|final_layer)\b",
            r"^cond_type_embed\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"(img_mod|txt_mod)\.", DIFFUSERS_MODULATION),
        aliases=("hunyuan",),
        folds=fold_tables.HUNYUAN_VIDEO,
    ),
    Preset(
        name="hunyuan-image-2.1",
        title="HunyuanImage 2.1",
        namings=(
            naming(has("txt_in.input_embedder.weight"), ndim("img_in.proj.weight", 4)),
            diffusers(
                has("context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight"),
                has("time_guidance_embed.timestep_embedder.linear_1.weight"),
            ),
        ),
        blocks=(r"^(double_blocks|single_blocks)\.\d+\.", DIFFUSERS_BLOCKS),
        keep=(
            r"^(img_in|txt_in|time_in|time_r_in|guidance_in|byt5_in|final_layer)\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"(img_mod|txt_mod|modulation)\.", DIFFUSERS_MODULATION),
        aliases=("hunyuan-image",),
        folds=fold_tables.HUNYUAN_VIDEO,
    ),
    Preset(
        name="ltx-video",
        title="LTX-Video",
        namings=(
            naming(
                has("patchify_proj.weight"),
                has("adaln_single.linear.weight"),
                lacks("audio_adaln_single.linear.weight"),
            ),
            # Sana and PixArt have patch_embed where this has the Linear proj_in.
            diffusers(
                has("time_embed.linear.weight"),
                has("proj_in.weight"),
                has("transformer_blocks.0.attn2.to_q.weight"),
                lacks("audio_time_embed.linear.weight"),
            ),
        ),
        blocks=(r"^transformer_blocks\.\d+\.",),
        keep=(r"^(patchify_proj|adaln_single|caption_projection|proj_out)\.", DIFFUSERS_KEEP),
        variants=(
            variant(
                "ltx-video-13b",
                dim("patchify_proj.weight", 0, 4096),
                diffusers=(dim("proj_in.weight", 0, 4096),),
            ),
            variant(
                "ltx-video-2b",
                dim("patchify_proj.weight", 0, 2048),
                diffusers=(dim("proj_in.weight", 0, 2048),),
            ),
        ),
        aliases=("ltxv",),
        folds=fold_tables.LTX_VIDEO,
    ),
    Preset(
        name="ltx-2",
        title="LTX-2 (2, 2.3, 2.5)",
        namings=(
            naming(has("audio_adaln_single.linear.weight"), has("patchify_proj.weight")),
            diffusers(has("audio_time_embed.linear.weight"), has("audio_proj_in.weight")),
        ),
        # The published file has the connectors in INT8; they stand apart from the main list.
        blocks=(
            r"^transformer_blocks\.\d+\.",
            r"^(audio|video)_embeddings_connector\.transformer_1d_blocks\.\d+\.",
        ),
        keep=(
            r"^(patchify_proj|audio_patchify_proj|proj_out|audio_proj_out|caption_projection|audio_caption_projection)\.",
            r"adaln_single\.",
            r"\bto_gate_logits\b",
            r"^(audio_proj_in|audio_time_embed|audio_prompt_adaln|prompt_adaln|av_cross_attn_\w+)\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"^transformer_blocks\.(0|1|46|47)\.", r"_embeddings_connector\."),
        variants=(
            variant(
                "ltx-2-19b",
                has("patchify_proj.weight"),
                lacks("prompt_adaln_single.linear.weight"),
                diffusers=(has("proj_in.weight"), lacks("prompt_adaln.linear.weight")),
            ),
            variant(
                "ltx-2.3-22b",
                has("prompt_adaln_single.linear.weight"),
                lacks("keyframes_abs_pos_embedding"),
                diffusers=(has("prompt_adaln.linear.weight"),),
            ),
            variant(
                "ltx-2.5-22b",
                has("prompt_adaln_single.linear.weight"),
                has("keyframes_abs_pos_embedding"),
            ),
        ),
        aliases=("ltx2", "ltxv2"),
        folds=fold_tables.LTX2,
    ),
    Preset(
        name="mochi-preview",
        title="Mochi 1 preview",
        namings=(
            naming(has("t5_yproj.weight"), has("t5_y_embedder.to_kv.weight")),
            diffusers(
                has("time_embed.pooler.to_q.weight"),
                has("transformer_blocks.0.norm1_context.linear.weight"),
            ),
        ),
        blocks=(r"^blocks\.\d+\.", r"^transformer_blocks\.\d+\."),
        keep=(r"^(x_embedder|t_embedder|t5_y_embedder|t5_yproj|final_layer)\.", DIFFUSERS_KEEP),
        strict=(r"\.mod_[xy]\.", r"\.norm1(_context)?\.linear(_1)?\."),
        aliases=("mochi",),
        folds=fold_tables.MOCHI,
    ),
    Preset(
        name="kandinsky5",
        title="Kandinsky 5 Lite",
        namings=(
            naming(
                has("visual_embeddings.in_layer.weight"),
                has("visual_transformer_blocks.0.cross_attention.to_query.weight"),
            ),
        ),
        blocks=(r"^(text_transformer_blocks|visual_transformer_blocks)\.\d+\.",),
        keep=(r"^(time_embeddings|text_embeddings|pooled_text_embeddings|visual_embeddings|out_layer)\.",),
        strict=(r"(text|visual)_modulation\.",),
        variants=(
            variant("kandinsky5-lite-t2i", dim("visual_embeddings.in_layer.weight", 0, 2560)),
            variant("kandinsky5-lite-t2v", dim("visual_embeddings.in_layer.weight", 0, 1792)),
        ),
        aliases=("kandinsky",),
        folds=fold_tables.KANDINSKY5,
    ),
    # Video and audio in one; ComfyUI renames diffusers' tensors, scales with them.
    Preset(
        name="kandinsky6",
        title="Kandinsky 6",
        namings=(
            naming(
                has("visual_blocks.0.videoT.self_attention.to_query.weight"),
                has("audio_embeddings.in_layer.weight"),
            ),
            diffusers(
                has("visual_transformer_blocks.0.video_dec_block.self_attention.to_query.weight"),
                has("audio_embeddings.in_layer.weight"),
            ),
        ),
        blocks=(r"^(visual_blocks|visual_transformer_blocks|(video|audio)_text_transformer_blocks)\.\d+\.",),
        keep=(
            r"^((video|audio)_(time|text|pooled_text)_embeddings|(visual|audio)_embeddings"
            r"|visual_token_type_embeddings|out_layer|audio_outLayer|audio_out_layer)\.",
        ),
        strict=(r"(text|visual|va|av)_modulation\.",),
        variants=(
            variant("kandinsky6-pro", dim("visual_embeddings.in_layer.weight", 0, 4096)),
            variant("kandinsky6-lite", dim("visual_embeddings.in_layer.weight", 0, 1792)),
        ),
    ),
    Preset(
        name="joyimage",
        title="JoyImage",
        namings=(
            naming(
                has("double_blocks.0.attn.img_attn_qkv.weight"),
                has("condition_embedder.time_embedder.linear_1.weight"),
            ),
        ),
        blocks=(r"^double_blocks\.\d+\.",),
        keep=(r"^(img_in|condition_embedder|proj_out)\.",),
        aliases=("joy",),
        folds=fold_tables.JOYIMAGE,
    ),
    Preset(
        name="minimax-h3",
        title="MiniMax-H3",
        namings=(
            naming(
                has("video_patch_proj.weight"),
                has("audio_patch_proj.weight"),
                has("blocks.0.attn.qkv_proj.weight"),
            ),
            diffusers(
                has("time_embedder.linear_2.weight"),
                has("audio_proj_in.weight"),
                has("token_refiner.refiner_blocks.0.attn.to_q.weight"),
            ),
        ),
        blocks=(r"^(transformer_)?blocks\.\d+\.",),
        # The published files leave the token refiner (2 blocks) as it is. In the pruned
        # model the per-block adaln_proj has 8 columns and is too small to quantize.
        keep=(
            r"^(video_patch_proj|audio_patch_proj|condition_proj|time_embedder|token_refiner|final_layer)\.",
            r"^(audio_proj_in|audio_proj_out)\.",
            DIFFUSERS_KEEP,
        ),
        strict=(r"adaln_proj\b",),
        variants=(
            variant(
                "minimax-h3",
                has("time_embedder.proj_in.weight"),
                diffusers=(has("time_embedder.linear_2.weight"),),
            ),
            variant("minimax-h3-pruned", has("adaln_t_table")),
        ),
        aliases=("h3",),
        folds=fold_tables.MINIMAX_H3,
    ),
)
