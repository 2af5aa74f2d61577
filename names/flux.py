"""Flux 1 and 2; Chroma and LongCat-Image are named as Flux 1 is, but for their embedders.

Sources: the released checkpoints' headers, diffusers' model classes (0.42) and conversion scripts.
"""

from .rows import Row, same, under


def norms(ours: str, query: str, key: str) -> tuple[Row, ...]:
    """Return the rows of RMSNorms: .scale in the released files, .weight where ComfyUI saved them again."""
    return (
        Row(f"{ours}.query_norm.scale", f"{query}.weight"),
        Row(f"{ours}.key_norm.scale", f"{key}.weight"),
        Row(f"{ours}.query_norm", query),
        Row(f"{ours}.key_norm", key),
    )


def embedders(time: str, *extra: tuple[str, str]) -> tuple[Row, ...]:
    """Return the rows of embedders: each a pair of linears; below `time` in diffusers."""
    return tuple(
        Row(f"{ours}.{a}", f"{time}.{theirs}.{b}")
        for ours, theirs in (("time_in", "timestep_embedder"), *extra)
        for a, b in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
    )


def double_blocks(up: str, down: str, ff_up: str, ff_down: str) -> tuple[Row, ...]:
    """Return attention and MLP of both streams; the arguments name the MLP's two linears, here and there."""
    return under(
        "double_blocks.{i}",
        "transformer_blocks.{i}",
        (
            ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "qkv"),
            ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "qkv"),
            *norms("img_attn.norm", "attn.norm_q", "attn.norm_k"),
            *norms("txt_attn.norm", "attn.norm_added_q", "attn.norm_added_k"),
            ("img_attn.proj", "attn.to_out.0"),
            ("txt_attn.proj", "attn.to_add_out"),
            (f"img_mlp.{up}", f"ff.{ff_up}"),
            (f"img_mlp.{down}", f"ff.{ff_down}"),
            (f"txt_mlp.{up}", f"ff_context.{ff_up}"),
            (f"txt_mlp.{down}", f"ff_context.{ff_down}"),
        ),
    )


def modulations(leaf: str) -> tuple[Row, ...]:
    """Return the modulation of each block; `leaf` is its linear's name."""
    return (
        Row(f"double_blocks.{{i}}.img_mod.{leaf}", "transformer_blocks.{i}.norm1.linear"),
        Row(f"double_blocks.{{i}}.txt_mod.{leaf}", "transformer_blocks.{i}.norm1_context.linear"),
        Row(f"single_blocks.{{i}}.modulation.{leaf}", "single_transformer_blocks.{i}.norm.linear"),
    )


SINGLE_BLOCKS = under(
    "single_blocks.{i}",
    "single_transformer_blocks.{i}",
    (
        ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "qkv+mlp"),
        ("linear2", "proj_out"),
        *norms("norm", "attn.norm_q", "attn.norm_k"),
    ),
)

ENDS = (
    Row("txt_in", "context_embedder"),
    Row("img_in", "x_embedder"),
    Row("final_layer.linear", "proj_out"),
    # Shift then scale in the checkpoint, scale then shift in diffusers.
    Row("final_layer.adaLN_modulation.1", "norm_out.linear", "swap"),
)

_GUIDANCE = ("guidance_in", "guidance_embedder")

FLUX_BLOCKS = (
    *double_blocks("0", "2", "net.0.proj", "net.2"),
    *modulations("lin"),
    *SINGLE_BLOCKS,
    *ENDS,
)

FLUX = (*embedders("time_text_embed", ("vector_in", "text_embedder"), _GUIDANCE), *FLUX_BLOCKS)

# Its released file, like what ComfyUI saves, ends the names of RMSNorms in .weight.
LONGCAT = (*embedders("time_embed"), *(row for row in FLUX_BLOCKS if not row.ours.endswith(".scale")))

CHROMA = (
    *same("distilled_guidance_layer.in_proj", "distilled_guidance_layer.out_proj"),
    Row("distilled_guidance_layer.layers.{i}.in_layer", "distilled_guidance_layer.layers.{i}.linear_1"),
    Row("distilled_guidance_layer.layers.{i}.out_layer", "distilled_guidance_layer.layers.{i}.linear_2"),
    Row("distilled_guidance_layer.norms.{i}.scale", "distilled_guidance_layer.norms.{i}.weight"),
    *FLUX_BLOCKS,
)

FLUX2 = (
    *embedders("time_guidance_embed", _GUIDANCE),
    *double_blocks("0", "2", "linear_in", "linear_out"),
    Row("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
    Row("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
    Row("single_stream_modulation.lin", "single_stream_modulation.linear"),
    *under(
        "single_blocks.{i}",
        "single_transformer_blocks.{i}",
        (
            ("linear1", "attn.to_qkv_mlp_proj"),
            ("linear2", "attn.to_out"),
            *norms("norm", "attn.norm_q", "attn.norm_k"),
        ),
    ),
    *ENDS,
)
