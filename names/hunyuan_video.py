"""HunyuanVideo: Flux's blocks under other leaf names, and a refiner of the text. Source: as for Flux."""

from .flux import ENDS, SINGLE_BLOCKS, double_blocks, embedders, modulations
from .rows import under

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
        ),
    ),
    *ENDS,
)
