"""ComfyUI tensor names -> diffusers names, as tables for `keymap.KeyMap`. Rows only: no code.

Sources: the released checkpoints' headers and diffusers' model classes (0.42). Fused projections list
their targets in row order. Qwen-Image has the same names on both sides.
"""


def _embedder(source: str, target: str) -> tuple:
    return ((f"{source}.in_layer", f"{target}.linear_1"), (f"{source}.out_layer", f"{target}.linear_2"))


_DOUBLE, _SINGLE = "double_blocks.{i}", "single_blocks.{i}"
_JOINT, _ALONE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"


def _norms(source: str, query: str, key: str) -> tuple:
    """Return the rules of RMSNorms: .scale in the released files, .weight where ComfyUI saved them again."""
    return (
        (f"{source}.query_norm.scale", f"{query}.weight"),
        (f"{source}.key_norm.scale", f"{key}.weight"),
        (f"{source}.query_norm", query),
        (f"{source}.key_norm", key),
    )


FLUX = (
    *_embedder("time_in", "time_text_embed.timestep_embedder"),
    *_embedder("vector_in", "time_text_embed.text_embedder"),
    *_embedder("guidance_in", "time_text_embed.guidance_embedder"),
    ("txt_in", "context_embedder"),
    ("img_in", "x_embedder"),
    (f"{_DOUBLE}.img_mod.lin", f"{_JOINT}.norm1.linear"),
    (f"{_DOUBLE}.txt_mod.lin", f"{_JOINT}.norm1_context.linear"),
    (f"{_DOUBLE}.img_attn.qkv", tuple(f"{_JOINT}.attn.{n}" for n in ("to_q", "to_k", "to_v"))),
    (
        f"{_DOUBLE}.txt_attn.qkv",
        tuple(f"{_JOINT}.attn.{n}" for n in ("add_q_proj", "add_k_proj", "add_v_proj")),
    ),
    *_norms(f"{_DOUBLE}.img_attn.norm", f"{_JOINT}.attn.norm_q", f"{_JOINT}.attn.norm_k"),
    *_norms(f"{_DOUBLE}.txt_attn.norm", f"{_JOINT}.attn.norm_added_q", f"{_JOINT}.attn.norm_added_k"),
    (f"{_DOUBLE}.img_attn.proj", f"{_JOINT}.attn.to_out.0"),
    (f"{_DOUBLE}.txt_attn.proj", f"{_JOINT}.attn.to_add_out"),
    (f"{_DOUBLE}.img_mlp.0", f"{_JOINT}.ff.net.0.proj"),
    (f"{_DOUBLE}.img_mlp.2", f"{_JOINT}.ff.net.2"),
    (f"{_DOUBLE}.txt_mlp.0", f"{_JOINT}.ff_context.net.0.proj"),
    (f"{_DOUBLE}.txt_mlp.2", f"{_JOINT}.ff_context.net.2"),
    (f"{_SINGLE}.modulation.lin", f"{_ALONE}.norm.linear"),
    (
        f"{_SINGLE}.linear1",
        (*(f"{_ALONE}.attn.{n}" for n in ("to_q", "to_k", "to_v")), f"{_ALONE}.proj_mlp"),
    ),
    (f"{_SINGLE}.linear2", f"{_ALONE}.proj_out"),
    *_norms(f"{_SINGLE}.norm", f"{_ALONE}.attn.norm_q", f"{_ALONE}.attn.norm_k"),
    ("final_layer.linear", "proj_out"),
    # Shift then scale in the checkpoint, scale then shift in diffusers.
    ("final_layer.adaLN_modulation.1", "norm_out.linear", "swap"),
)


def _z_image_block(block: str) -> tuple:
    return (
        (f"{block}.attention.qkv", tuple(f"{block}.attention.{n}" for n in ("to_q", "to_k", "to_v"))),
        (f"{block}.attention.out", f"{block}.attention.to_out.0"),
        (f"{block}.attention.q_norm", f"{block}.attention.norm_q"),
        (f"{block}.attention.k_norm", f"{block}.attention.norm_k"),
    )


Z_IMAGE = (
    *(rule for b in ("layers", "noise_refiner", "context_refiner") for rule in _z_image_block(f"{b}.{{i}}")),
    ("x_embedder", "all_x_embedder.2-1"),
    ("final_layer.linear", "all_final_layer.2-1.linear"),
    ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
    ("norm_final", ()),
)


def _wan_block(block: str) -> tuple:
    attention = (
        (f"{block}.{a}_attn.{theirs}", f"{block}.{b}.{ours}")
        for a, b in (("self", "attn1"), ("cross", "attn2"))
        for theirs, ours in (
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
    )
    return (
        *attention,
        (f"{block}.modulation", f"{block}.scale_shift_table"),
        (f"{block}.norm3", f"{block}.norm2"),
        (f"{block}.ffn.0", f"{block}.ffn.net.0.proj"),
        (f"{block}.ffn.2", f"{block}.ffn.net.2"),
        (f"{block}.before_proj", f"{block}.proj_in"),
        (f"{block}.after_proj", f"{block}.proj_out"),
    )


_WAN_IMAGE = "condition_embedder.image_embedder"

WAN = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("img_emb.proj.0", f"{_WAN_IMAGE}.norm1"),
    ("img_emb.proj.1", f"{_WAN_IMAGE}.ff.net.0.proj"),
    ("img_emb.proj.3", f"{_WAN_IMAGE}.ff.net.2"),
    ("img_emb.proj.4", f"{_WAN_IMAGE}.norm2"),
    ("img_emb.emb_pos", f"{_WAN_IMAGE}.pos_embed"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    *_wan_block("blocks.{i}"),
    *_wan_block("vace_blocks.{i}"),
)

TABLES: dict[str, tuple] = {
    "FluxTransformer2DModel": FLUX,
    "QwenImageTransformer2DModel": (),
    "ZImageTransformer2DModel": Z_IMAGE,
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN,
}
"""Rules by diffusers class name."""
