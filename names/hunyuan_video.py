"""HunyuanVideo: Flux's blocks under other leaf names, and a refiner of the text. Source: as for Flux."""

from .flux import ENDS, SINGLE_BLOCKS, double_blocks, embedders, modulations
from .rows import Row, under

HUNYUAN_VIDEO = (
    *embedders("time_text_embed", ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder")),
    *double_blocks("fc1", "fc2", "net.0.proj", "net.2"),
    *modulations("linear"),
    *SINGLE_BLOCKS,
    *under(
        "txt_in.individual_token_refiner.blocks.{i}",
        "context_embedder.token_refiner.refiner_blocks.{i}",
        (
            ("self_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "qkv"),
            ("self_attn.proj", "attn.to_out.0"),
            ("mlp.fc1", "ff.net.0.proj"),
            ("mlp.fc2", "ff.net.2"),
            ("adaLN_modulation.1", "norm_out.linear"),
            ("norm1", "norm1"),
            ("norm2", "norm2"),
        ),
    ),
    *under(
        "txt_in",
        "context_embedder",
        (
            ("input_embedder", "proj_in"),
            ("t_embedder.in_layer", "time_text_embed.timestep_embedder.linear_1"),
            ("t_embedder.out_layer", "time_text_embed.timestep_embedder.linear_2"),
            ("c_embedder.in_layer", "time_text_embed.text_embedder.linear_1"),
            ("c_embedder.out_layer", "time_text_embed.text_embedder.linear_2"),
        ),
    ),
    Row("img_in.proj", "x_embedder.proj"),
    *ENDS,
)
