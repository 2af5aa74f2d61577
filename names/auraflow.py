"""AuraFlow. Sources: ``comfy/utils.py`` of ComfyUI and the conversion script of diffusers."""

from .rows import Row, same, under


def _mlp(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"{ours}.c_fc1", f"{theirs}.linear_1"),
        (f"{ours}.c_fc2", f"{theirs}.linear_2"),
        (f"{ours}.c_proj", f"{theirs}.out_projection"),
    )


def _attention(stream: str, query: str, key: str, value: str, out: str) -> tuple[tuple[str, str], ...]:
    names = zip("qkvo", (query, key, value, out), strict=True)
    return tuple((f"attn.{stream}{letter}", f"attn.{name}") for letter, name in names)


_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")

AURAFLOW = (
    *under(
        "double_layers.{i}",
        "joint_transformer_blocks.{i}",
        (
            *_attention("w1", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            *_attention("w2", *_IMAGE),
            *_mlp("mlpC", "ff_context"),
            *_mlp("mlpX", "ff"),
            ("modC.1", "norm1_context.linear"),
            ("modX.1", "norm1.linear"),
        ),
    ),
    *under(
        "single_layers.{i}",
        "single_transformer_blocks.{i}",
        (*_attention("w1", *_IMAGE), *_mlp("mlp", "ff"), ("modCX.1", "norm1.linear")),
    ),
    *same("register_tokens"),
    Row("positional_encoding", "pos_embed.pos_embed"),
    Row("init_x_linear", "pos_embed.proj"),
    Row("t_embedder.mlp.0", "time_step_proj.linear_1"),
    Row("t_embedder.mlp.2", "time_step_proj.linear_2"),
    Row("cond_seq_linear", "context_embedder"),
    Row("final_linear", "proj_out"),
    Row("modF.1", "norm_out.linear", "swap"),
)
