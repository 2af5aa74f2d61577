"""Stable Diffusion 3 and 3.5.

Sources: ``comfy/utils.py`` of ComfyUI and the conversion scripts of diffusers.
"""

from .rows import Row, same, under

SD3 = (
    *under(
        "joint_blocks.{i}",
        "transformer_blocks.{i}",
        (
            ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "qkv"),
            ("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "qkv"),
            ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "qkv"),
            ("x_block.attn.proj", "attn.to_out.0"),
            ("x_block.attn2.proj", "attn2.to_out.0"),
            ("context_block.attn.proj", "attn.to_add_out"),
            ("x_block.attn.ln_q", "attn.norm_q"),
            ("x_block.attn.ln_k", "attn.norm_k"),
            ("x_block.attn2.ln_q", "attn2.norm_q"),
            ("x_block.attn2.ln_k", "attn2.norm_k"),
            ("context_block.attn.ln_q", "attn.norm_added_q"),
            ("context_block.attn.ln_k", "attn.norm_added_k"),
            ("x_block.adaLN_modulation.1", "norm1.linear"),
            # Of the last block's text only a shift and a scale are left, in diffusers the other way round.
            ("context_block.adaLN_modulation.1", "norm1_context.linear", "swap pair"),
            ("x_block.mlp.fc1", "ff.net.0.proj"),
            ("x_block.mlp.fc2", "ff.net.2"),
            ("context_block.mlp.fc1", "ff_context.net.0.proj"),
            ("context_block.mlp.fc2", "ff_context.net.2"),
        ),
    ),
    *same("context_embedder"),
    Row("x_embedder.proj", "pos_embed.proj"),
    Row("pos_embed", "pos_embed.pos_embed"),
    Row("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    Row("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    Row("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    Row("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    Row("final_layer.linear", "proj_out"),
    Row("final_layer.adaLN_modulation.1", "norm_out.linear", "swap"),
)
