"""The preset table: music and sound."""

from __future__ import annotations

from .facts import Preset, has
from .rows import DIFFUSERS_KEEP, diffusers, naming

AUDIO = (
    Preset(
        name="ace-step",
        title="ACE-Step 1",
        namings=(
            naming(
                has("genre_embedder.weight"),
                has("lyric_encoder.encoders.0.self_attn.linear_q.weight"),
                has("transformer_blocks.0.cross_attn.add_q_proj.weight"),
            ),
        ),
        blocks=(r"^transformer_blocks\.\d+\.",),
        keep=(
            r"^(lyric_encoder|lyric_embs|lyric_proj|genre_embedder|speaker_embedder|projectors)\b",
            r"^(timestep_embedder|t_block|proj_in|final_layer)\.",
        ),
    ),
    Preset(
        name="ace-step-1.5",
        title="ACE-Step 1.5",
        namings=(
            naming(
                has("encoder.lyric_encoder.layers.0.input_layernorm.weight"),
                has("decoder.layers.0.self_attn_norm.weight"),
            ),
            diffusers(has("proj_in_conv.weight"), has("layers.0.cross_attn.to_q.weight")),
        ),
        blocks=(r"^(decoder\.)?layers\.\d+\.",),
        keep=(
            r"^(encoder|tokenizer|detokenizer|null_condition_emb)\b",
            r"^decoder\.(proj_in|proj_out|time_embed|time_embed_r|condition_embedder)\b",
            r"^(time_embed_r|proj_in_conv|proj_out_conv)\.",
            DIFFUSERS_KEEP,
        ),
    ),
    Preset(
        name="stable-audio",
        title="Stable Audio",
        namings=(
            naming(
                has("transformer.layers.0.self_attn.to_qkv.weight"),
                has("to_cond_embed.0.weight"),
                has("preprocess_conv.weight"),
            ),
            diffusers(has("cross_attention_proj.0.weight"), has("global_proj.0.weight")),
        ),
        blocks=(r"^transformer\.layers\.\d+\.", r"^transformer_blocks\.\d+\."),
        keep=(
            r"^(to_timestep_embed|to_cond_embed|to_global_embed|timestep_features|preprocess_conv|postprocess_conv)\.",
            r"^transformer\.(project_in|project_out|global_cond_embedder)\.",
            r"^(timestep_proj|global_proj|cross_attention_proj)\.",
            DIFFUSERS_KEEP,
        ),
    ),
)
