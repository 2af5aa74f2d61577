"""Krea 2: the linear layers. Source: diffusers' conversion script."""

from .rows import Row, under

_BLOCK = (
    ("attn.wq", "attn.to_q"),
    ("attn.wk", "attn.to_k"),
    ("attn.wv", "attn.to_v"),
    ("attn.gate", "attn.to_gate"),
    ("attn.wo", "attn.to_out.0"),
    ("mlp.gate", "ff.gate"),
    ("mlp.up", "ff.up"),
    ("mlp.down", "ff.down"),
)

KREA = (
    *under("blocks.{i}", "transformer_blocks.{i}", _BLOCK),
    *under("txtfusion.layerwise_blocks.{i}", "text_fusion.layerwise_blocks.{i}", _BLOCK),
    *under("txtfusion.refiner_blocks.{i}", "text_fusion.refiner_blocks.{i}", _BLOCK),
    Row("first", "img_in"),
    Row("tmlp.0", "time_embed.linear_1"),
    Row("tmlp.2", "time_embed.linear_2"),
    Row("tproj.1", "time_mod_proj"),
    Row("txtmlp.1", "txt_in.linear_1"),
    Row("txtmlp.3", "txt_in.linear_2"),
    Row("txtfusion.projector", "text_fusion.projector"),
    Row("last.linear", "final_layer.linear"),
)
