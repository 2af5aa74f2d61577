"""PixArt Alpha and Sigma. Source: ``comfy/utils.py`` of ComfyUI."""

from .rows import Row, under


def _pair(ours: str, theirs: str, first: str = "0", second: str = "2") -> tuple[Row, Row]:
    return Row(f"{ours}.{first}", f"{theirs}.linear_1"), Row(f"{ours}.{second}", f"{theirs}.linear_2")


PIXART = (
    *under(
        "blocks.{i}",
        "transformer_blocks.{i}",
        (
            ("scale_shift_table", "scale_shift_table"),
            ("attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "qkv"),
            ("attn.proj", "attn1.to_out.0"),
            ("cross_attn.q_linear", "attn2.to_q"),
            ("cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v"), "kv"),
            ("cross_attn.proj", "attn2.to_out.0"),
            ("mlp.fc1", "ff.net.0.proj"),
            ("mlp.fc2", "ff.net.2"),
        ),
    ),
    *_pair("t_embedder.mlp", "adaln_single.emb.timestep_embedder"),
    *_pair("csize_embedder.mlp", "adaln_single.emb.resolution_embedder"),
    *_pair("ar_embedder.mlp", "adaln_single.emb.aspect_ratio_embedder"),
    *_pair("y_embedder.y_proj", "caption_projection", "fc1", "fc2"),
    Row("y_embedder.y_embedding", "caption_projection.y_embedding"),
    Row("t_block.1", "adaln_single.linear"),
    Row("x_embedder.proj", "pos_embed.proj"),
    Row("final_layer.linear", "proj_out"),
    Row("final_layer.scale_shift_table", "scale_shift_table"),
)
