"""Wan 2.1 and 2.2, VACE included.

Sources: the released checkpoints' headers, diffusers' model classes (0.42) and conversion scripts.
"""

from .rows import Row, same, under

_ATTENTION = (
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("k_img", "add_k_proj"),
    ("v_img", "add_v_proj"),
    ("norm_q", "norm_q"),
    ("norm_k", "norm_k"),
    ("norm_k_img", "norm_added_k"),
)


def _blocks(stack: str) -> tuple[Row, ...]:
    block = f"{stack}.{{i}}"
    return (
        *under(f"{block}.self_attn", f"{block}.attn1", _ATTENTION),
        *under(f"{block}.cross_attn", f"{block}.attn2", _ATTENTION),
        *under(
            block,
            block,
            (
                ("modulation", "scale_shift_table"),
                ("norm3", "norm2"),
                ("ffn.0", "ffn.net.0.proj"),
                ("ffn.2", "ffn.net.2"),
                ("before_proj", "proj_in"),
                ("after_proj", "proj_out"),
            ),
        ),
    )


WAN = (
    Row("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    Row("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    Row("time_projection.1", "condition_embedder.time_proj"),
    Row("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    Row("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    *under(
        "img_emb",
        "condition_embedder.image_embedder",
        (
            ("proj.0", "norm1"),
            ("proj.1", "ff.net.0.proj"),
            ("proj.3", "ff.net.2"),
            ("proj.4", "norm2"),
            ("emb_pos", "pos_embed"),
        ),
    ),
    Row("head.modulation", "scale_shift_table"),
    Row("head.head", "proj_out"),
    *same("patch_embedding", "vace_patch_embedding"),
    *_blocks("blocks"),
    *_blocks("vace_blocks"),
)
