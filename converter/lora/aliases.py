"""Diffusers' names for layers that ComfyUI's checkpoints call otherwise.

Rows of (diffusers name, checkpoint name, rows). N is the block's number, the same on both sides. `rows`
says which rows of the checkpoint's fused weight [N, K] the diffusers layer is (see `ROWS`). Checkpoint names
are compared with dots and underscores alike, so ``img_attn.qkv`` is also Tencent's ``img_attn_qkv``.
Sources: ``comfy/utils.py`` of ComfyUI and the conversion scripts of diffusers.
"""

from collections.abc import Callable

Alias = tuple[str, str, str]
Segments = tuple[tuple[int, int, int], ...]
"""Rows of a weight that a delta is added to: (first row, first row of the delta, count)."""

ROWS: dict[str, Callable[[int, int], Segments]] = {
    # Attention inputs: as many rows as columns for q; k and v share the rest (fewer heads in Lumina).
    "q": lambda n, k: ((0, 0, k),),
    "k": lambda n, k: ((k, 0, (n - k) // 2),),
    "v": lambda n, k: ((k + (n - k) // 2, 0, (n - k) // 2),),
    # Single blocks: q, k, v of K rows each, then the MLP.
    "1q": lambda n, k: ((0, 0, k),),
    "1k": lambda n, k: ((k, 0, k),),
    "1v": lambda n, k: ((2 * k, 0, k),),
    "1mlp": lambda n, k: ((3 * k, 0, n - 3 * k),),
    # diffusers has scale before shift, the checkpoints shift before scale.
    "swap": lambda n, k: ((n // 2, 0, n // 2), (0, n // 2, n // 2)),
    "": lambda n, k: (),
}
"""Rows name -> from the weight's (N, K) to segments; no segments: all rows."""


def _qkv(diffusers: str, fused: str, names: str = "to_q to_k to_v") -> tuple[Alias, ...]:
    return tuple(
        (f"{diffusers}.{name}", fused, part) for name, part in zip(names.split(), "qkv", strict=True)
    )


def _same_rows(*pairs: str) -> tuple[Alias, ...]:
    """Read lines of "diffusers name = checkpoint name", each for all rows of its layer."""
    split = (pair.split(" = ") for pair in pairs)
    return tuple((diffusers, ours, "") for diffusers, ours in split)


_ADDED = "add_q_proj add_k_proj add_v_proj"

# Flux 1 and 2, Chroma, LongCat-Image, HunyuanVideo (which says fc1, fc2 and linear).
FLUX: tuple[Alias, ...] = (
    *_qkv("transformer_blocks.N.attn", "double_blocks.N.img_attn.qkv"),
    *_qkv("transformer_blocks.N.attn", "double_blocks.N.txt_attn.qkv", _ADDED),
    *_same_rows(
        "transformer_blocks.N.attn.to_out.0 = double_blocks.N.img_attn.proj",
        "transformer_blocks.N.attn.to_out = double_blocks.N.img_attn.proj",
        "transformer_blocks.N.attn.to_add_out = double_blocks.N.txt_attn.proj",
        "transformer_blocks.N.norm1.linear = double_blocks.N.img_mod.lin",
        "transformer_blocks.N.norm1.linear = double_blocks.N.img_mod.linear",
        "transformer_blocks.N.norm1_context.linear = double_blocks.N.txt_mod.lin",
        "transformer_blocks.N.norm1_context.linear = double_blocks.N.txt_mod.linear",
        "transformer_blocks.N.ff.net.0.proj = double_blocks.N.img_mlp.0",
        "transformer_blocks.N.ff.net.0.proj = double_blocks.N.img_mlp.fc1",
        "transformer_blocks.N.ff.net.2 = double_blocks.N.img_mlp.2",
        "transformer_blocks.N.ff.net.2 = double_blocks.N.img_mlp.fc2",
        "transformer_blocks.N.ff.linear_in = double_blocks.N.img_mlp.0",
        "transformer_blocks.N.ff.linear_out = double_blocks.N.img_mlp.2",
        "transformer_blocks.N.ff_context.net.0.proj = double_blocks.N.txt_mlp.0",
        "transformer_blocks.N.ff_context.net.0.proj = double_blocks.N.txt_mlp.fc1",
        "transformer_blocks.N.ff_context.net.2 = double_blocks.N.txt_mlp.2",
        "transformer_blocks.N.ff_context.net.2 = double_blocks.N.txt_mlp.fc2",
        "transformer_blocks.N.ff_context.linear_in = double_blocks.N.txt_mlp.0",
        "transformer_blocks.N.ff_context.linear_out = double_blocks.N.txt_mlp.2",
        "single_transformer_blocks.N.norm.linear = single_blocks.N.modulation.lin",
        "single_transformer_blocks.N.norm.linear = single_blocks.N.modulation.linear",
        "single_transformer_blocks.N.proj_out = single_blocks.N.linear2",
        "single_transformer_blocks.N.attn.to_out = single_blocks.N.linear2",
        "single_transformer_blocks.N.attn.to_qkv_mlp_proj = single_blocks.N.linear1",
        "x_embedder = img_in",
        "context_embedder = txt_in",
        "proj_out = final_layer.linear",
        "time_text_embed.timestep_embedder.linear_1 = time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2 = time_in.out_layer",
        "time_text_embed.text_embedder.linear_1 = vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2 = vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1 = guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2 = guidance_in.out_layer",
        "time_guidance_embed.timestep_embedder.linear_1 = time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2 = time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1 = guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2 = guidance_in.out_layer",
        "double_stream_modulation_img.linear = double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear = double_stream_modulation_txt.lin",
        "single_stream_modulation.linear = single_stream_modulation.lin",
    ),
    ("single_transformer_blocks.N.attn.to_q", "single_blocks.N.linear1", "1q"),
    ("single_transformer_blocks.N.attn.to_k", "single_blocks.N.linear1", "1k"),
    ("single_transformer_blocks.N.attn.to_v", "single_blocks.N.linear1", "1v"),
    ("single_transformer_blocks.N.proj_mlp", "single_blocks.N.linear1", "1mlp"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", "swap"),
)

HUNYUAN_VIDEO: tuple[Alias, ...] = (
    *_qkv(
        "context_embedder.token_refiner.refiner_blocks.N.attn",
        "txt_in.individual_token_refiner.blocks.N.self_attn.qkv",
    ),
    *_same_rows(
        "context_embedder.token_refiner.refiner_blocks.N.attn.to_out.0"
        " = txt_in.individual_token_refiner.blocks.N.self_attn.proj",
        "context_embedder.token_refiner.refiner_blocks.N.ff.net.0.proj"
        " = txt_in.individual_token_refiner.blocks.N.mlp.fc1",
        "context_embedder.token_refiner.refiner_blocks.N.ff.net.2"
        " = txt_in.individual_token_refiner.blocks.N.mlp.fc2",
    ),
)

Z_IMAGE: tuple[Alias, ...] = (
    *(
        row
        for part in ("layers", "noise_refiner", "context_refiner")
        for row in (
            *_qkv(f"{part}.N.attention", f"{part}.N.attention.qkv"),
            *_same_rows(
                f"{part}.N.attention.to_out.0 = {part}.N.attention.out",
                f"{part}.N.attention.to_out = {part}.N.attention.out",
            ),
            # Lumina 2 in diffusers.
            *_qkv(f"{part}.N.attn", f"{part}.N.attention.qkv"),
            *_same_rows(
                f"{part}.N.attn.to_out.0 = {part}.N.attention.out",
                f"{part}.N.feed_forward.linear_1 = {part}.N.feed_forward.w1",
                f"{part}.N.feed_forward.linear_2 = {part}.N.feed_forward.w2",
                f"{part}.N.feed_forward.linear_3 = {part}.N.feed_forward.w3",
                f"{part}.N.norm1.linear = {part}.N.adaLN_modulation.1",
            ),
        )
    ),
    *_same_rows(
        "all_x_embedder.2-1 = x_embedder",
        "all_final_layer.2-1.linear = final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1 = final_layer.adaLN_modulation.1",
    ),
)

WAN: tuple[Alias, ...] = _same_rows(
    *(
        f"{part}.N.{diffusers} = {part}.N.{ours}"
        for part in ("blocks", "vace_blocks")
        for diffusers, ours in (
            *((f"attn1.to_{x}", f"self_attn.{x}") for x in "qkv"),
            *((f"attn2.to_{x}", f"cross_attn.{x}") for x in "qkv"),
            ("attn1.to_out.0", "self_attn.o"),
            ("attn2.to_out.0", "cross_attn.o"),
            ("attn2.add_k_proj", "cross_attn.k_img"),
            ("attn2.add_v_proj", "cross_attn.v_img"),
            ("ffn.net.0.proj", "ffn.0"),
            ("ffn.net.2", "ffn.2"),
            ("proj_in", "before_proj"),
            ("proj_out", "after_proj"),
        )
    ),
    "condition_embedder.time_embedder.linear_1 = time_embedding.0",
    "condition_embedder.time_embedder.linear_2 = time_embedding.2",
    "condition_embedder.text_embedder.linear_1 = text_embedding.0",
    "condition_embedder.text_embedder.linear_2 = text_embedding.2",
    "condition_embedder.time_proj = time_projection.1",
    "condition_embedder.image_embedder.ff.net.0.proj = img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2 = img_emb.proj.3",
    "proj_out = head.head",
)

SD3: tuple[Alias, ...] = (
    *_qkv("transformer_blocks.N.attn", "joint_blocks.N.x_block.attn.qkv"),
    *_qkv("transformer_blocks.N.attn2", "joint_blocks.N.x_block.attn2.qkv"),
    *_qkv("transformer_blocks.N.attn", "joint_blocks.N.context_block.attn.qkv", _ADDED),
    *_same_rows(
        "transformer_blocks.N.attn.to_out.0 = joint_blocks.N.x_block.attn.proj",
        "transformer_blocks.N.attn2.to_out.0 = joint_blocks.N.x_block.attn2.proj",
        "transformer_blocks.N.attn.to_add_out = joint_blocks.N.context_block.attn.proj",
        "transformer_blocks.N.norm1.linear = joint_blocks.N.x_block.adaLN_modulation.1",
        "transformer_blocks.N.norm1_context.linear = joint_blocks.N.context_block.adaLN_modulation.1",
        "transformer_blocks.N.ff.net.0.proj = joint_blocks.N.x_block.mlp.fc1",
        "transformer_blocks.N.ff.net.2 = joint_blocks.N.x_block.mlp.fc2",
        "transformer_blocks.N.ff_context.net.0.proj = joint_blocks.N.context_block.mlp.fc1",
        "transformer_blocks.N.ff_context.net.2 = joint_blocks.N.context_block.mlp.fc2",
    ),
)

KREA: tuple[Alias, ...] = _same_rows(
    *(
        f"{diffusers}.N.{theirs} = {ours}.N.{name}"
        for diffusers, ours in (
            ("transformer_blocks", "blocks"),
            ("text_fusion.layerwise_blocks", "txtfusion.layerwise_blocks"),
            ("text_fusion.refiner_blocks", "txtfusion.refiner_blocks"),
        )
        for theirs, name in (
            ("attn.to_q", "attn.wq"),
            ("attn.to_k", "attn.wk"),
            ("attn.to_v", "attn.wv"),
            ("attn.to_gate", "attn.gate"),
            ("attn.to_out.0", "attn.wo"),
            ("attn.to_out", "attn.wo"),
            ("ff.gate", "mlp.gate"),
            ("ff.up", "mlp.up"),
            ("ff.down", "mlp.down"),
        )
    ),
    "img_in = first",
    "time_embed.linear_1 = tmlp.0",
    "time_embed.linear_2 = tmlp.2",
    "time_mod_proj = tproj.1",
    "txt_in.linear_1 = txtmlp.1",
    "txt_in.linear_2 = txtmlp.3",
    "text_fusion.projector = txtfusion.projector",
    "final_layer.linear = last.linear",
)

LTX: tuple[Alias, ...] = _same_rows(
    "proj_in = patchify_proj",
    "time_embed.emb.timestep_embedder.linear_1 = adaln_single.emb.timestep_embedder.linear_1",
    "time_embed.emb.timestep_embedder.linear_2 = adaln_single.emb.timestep_embedder.linear_2",
    "time_embed.linear = adaln_single.linear",
)

ALIASES: tuple[Alias, ...] = (*FLUX, *HUNYUAN_VIDEO, *Z_IMAGE, *WAN, *SD3, *KREA, *LTX)
