"""Z-Image, and Lumina 2, of whose blocks it is made but which diffusers names otherwise.

Sources: the released checkpoints' headers, diffusers' model classes (0.42) and conversion scripts.
"""

from collections.abc import Iterable

from .rows import Row, same, under

_STACKS = ("layers", "noise_refiner", "context_refiner")


def _in_each(rows: Iterable[tuple]) -> tuple[Row, ...]:
    rows = tuple(rows)
    return tuple(row for s in _STACKS for row in under(f"{s}.{{i}}", f"{s}.{{i}}", rows))


Z_IMAGE = (
    *_in_each(
        (
            ("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"), "qkv"),
            ("attention.out", "attention.to_out.0"),
            ("attention.q_norm", "attention.norm_q"),
            ("attention.k_norm", "attention.norm_k"),
            *same("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "adaLN_modulation.0"),
            *same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        )
    ),
    *same(
        "x_pad_token",
        "cap_pad_token",
        "cap_embedder.0",
        "cap_embedder.1",
        "t_embedder.mlp.0",
        "t_embedder.mlp.2",
    ),
    Row("x_embedder", "all_x_embedder.2-1"),
    Row("final_layer.linear", "all_final_layer.2-1.linear"),
    Row("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
    Row("norm_final", ()),
)

LUMINA2 = (
    *_in_each(
        (
            ("attention.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "qkv"),
            ("attention.out", "attn.to_out.0"),
            ("attention.q_norm", "attn.norm_q"),
            ("attention.k_norm", "attn.norm_k"),
            ("feed_forward.w1", "feed_forward.linear_1"),
            ("feed_forward.w2", "feed_forward.linear_2"),
            ("feed_forward.w3", "feed_forward.linear_3"),
            ("adaLN_modulation.1", "norm1.linear"),
            ("attention_norm2", "norm2"),
            *same("ffn_norm1", "ffn_norm2"),
        )
    ),
    *(Row(f"{s}.{{i}}.attention_norm1", f"{s}.{{i}}.norm1.norm") for s in ("layers", "noise_refiner")),
    Row("context_refiner.{i}.attention_norm1", "context_refiner.{i}.norm1"),
    *same("x_embedder"),
    Row("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
    Row("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2"),
    Row("cap_embedder.0", "time_caption_embed.caption_embedder.0"),
    Row("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
    Row("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
    Row("final_layer.linear", "norm_out.linear_2"),
    Row("norm_final", ()),
)
