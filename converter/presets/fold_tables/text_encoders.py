"""The folds of text encoders."""

from ..folds import BlockFolds, Norm, Up, Values, fold

T5 = (
    BlockFolds(
        r"encoder\.block\.\d+",
        (
            fold(*(f"layer.0.SelfAttention.{x}" for x in "qkv"), by=Norm("layer.0.layer_norm")),
            fold("layer.0.SelfAttention.o", by=Values("layer.0.SelfAttention.v")),
            fold("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1", by=Norm("layer.1.layer_norm")),
            fold("layer.1.DenseReluDense.wo", by=Up("layer.1.DenseReluDense.wi_1")),
        ),
    ),
)


_BEFORE_MLP = "pre_feedforward_layernorm"
"""A norm of Gemma's alone, in which post_attention_layernorm stands elsewhere."""


def _language_model(mlp_norm: str, offset: float, head: int, **told: str) -> tuple[BlockFolds, ...]:
    """Return the layers of a language model; head: channels of a head where no norm of queries tells."""
    q_norm = "self_attn.q_norm.weight"
    return (
        BlockFolds(
            r"(model\.)?(language_model\.)?(model\.)?layers\.\d+",
            (
                fold(*(f"self_attn.{x}_proj" for x in "qkv"), by=Norm("input_layernorm", offset)),
                fold("self_attn.o_proj", by=Values("self_attn.v_proj", head=q_norm)),
                fold("self_attn.o_proj", by=Values("self_attn.v_proj", head=head), unless=q_norm),
                fold("mlp.gate_proj", "mlp.up_proj", by=Norm(mlp_norm, offset)),
                fold("mlp.down_proj", by=Up("mlp.up_proj")),
            ),
            **told,
        ),
    )


LLAMA = _language_model("post_attention_layernorm", 0.0, 128, lacks=f"{_BEFORE_MLP}.weight")
"""Llama, Mistral, Ministral, Qwen 2.5 and 3."""

GEMMA = _language_model(_BEFORE_MLP, 1.0, 256, has=f"{_BEFORE_MLP}.weight")
"""Gemma 2 and 3; the norms of Gemma 4 are others."""

CLIP = (
    BlockFolds(
        r"text_model\.encoder\.layers\.\d+",
        (
            fold(*(f"self_attn.{x}_proj" for x in "qkv"), by=Norm("layer_norm1")),
            fold("self_attn.out_proj", by=Values("self_attn.v_proj")),
            fold("mlp.fc1", by=Norm("layer_norm2")),
        ),
    ),
)
