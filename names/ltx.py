"""LTX-Video: the layers around its blocks and the norms in them; the other names agree.

Source: diffusers' conversion script.
"""

from .rows import Row, same, under

LTX = (
    Row("patchify_proj", "proj_in"),
    Row(
        "adaln_single.emb.timestep_embedder.linear_1",
        "time_embed.emb.timestep_embedder.linear_1",
    ),
    Row(
        "adaln_single.emb.timestep_embedder.linear_2",
        "time_embed.emb.timestep_embedder.linear_2",
    ),
    Row("adaln_single.linear", "time_embed.linear"),
    *under(
        "transformer_blocks.{i}",
        "transformer_blocks.{i}",
        (
            *((f"{a}.{x}_norm", f"{a}.norm_{x}") for a in ("attn1", "attn2") for x in "qk"),
            *same(*(f"{a}.to_{x}" for a in ("attn1", "attn2") for x in ("q", "k", "v", "out.0"))),
            *same("ff.net.0.proj", "ff.net.2", "scale_shift_table"),
        ),
    ),
    *same("caption_projection.linear_1", "caption_projection.linear_2", "scale_shift_table", "proj_out"),
)
