"""LTX-Video: the layers around its blocks, whose names agree. Source: diffusers' conversion script."""

from .rows import Row

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
)
