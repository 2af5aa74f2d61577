"""The folds of each family, as its forward pass has them; see `folds` for the words.

Sources: the model classes of ComfyUI 0.33, diffusers and transformers; tests build each class where there is
one, fold it and compare what it computes.
"""

from collections.abc import Iterator

from ...names.rows import Part
from .folds import BlockFolds, Fold, Modulation, Norm, SharedModulation, Up, Use, Values, fold

_LAST_OF_QKV = Part("qkv", 2)


def _joint_values(join: str = ".") -> Fold:
    """Return the fold of values where both streams attend to those of both; join: before qkv and proj."""
    img, txt = (Values(f"{s}_attn{join}qkv", _LAST_OF_QKV) for s in ("img", "txt"))
    return fold(f"img_attn{join}proj", f"txt_attn{join}proj", by=(img, txt))


_SINGLE_VALUES = fold(Use("linear2", "first"), by=Values("linear1", Part("qkv+mlp", 2)))


def _streams(mod: str = "lin", up: str = "0", join: str = ".") -> Iterator[Fold]:
    """Yield the folds of modulated inputs; mod: the modulation's Linear, up: the MLP's first."""
    for s in ("img", "txt"):
        yield fold(f"{s}_attn{join}qkv", by=Modulation(f"{s}_mod.{mod}", scale=1, shift=0))
        yield fold(f"{s}_mlp.{up}", by=Modulation(f"{s}_mod.{mod}", scale=4, shift=3))


def _single(mod: str = "lin") -> Fold:
    return fold("linear1", by=Modulation(f"modulation.{mod}", scale=1, shift=0))


FLUX1 = (
    BlockFolds(r"double_blocks\.\d+", (*_streams(), _joint_values())),
    BlockFolds(r"single_blocks\.\d+", (_single(), _SINGLE_VALUES)),
)

_TENCENT = [("linear", "fc1", "_"), ("linear", "fc1", "."), ("lin", "0", ".")]
"""The names in Tencent's files, in ComfyUI's, and in those that ComfyUI has saved."""

HUNYUAN_VIDEO = (
    BlockFolds(
        r"double_blocks\.\d+",
        (
            *dict.fromkeys(f for names in _TENCENT for f in _streams(*names)),
            *(_joint_values(join) for join in "_."),
        ),
    ),
    BlockFolds(r"single_blocks\.\d+", (_single("linear"), _single(), _SINGLE_VALUES)),
)

# The modulation of all blocks comes from one network, whose last Linear serves each alike.
CHROMA = (
    BlockFolds(r"double_blocks\.\d+", (_joint_values(),)),
    BlockFolds(r"single_blocks\.\d+", (_SINGLE_VALUES,)),
)

# Its modulation has no bias, in which the 1 of 1 + scale could be changed; nor have its other Linears.
FLUX2 = (
    BlockFolds(
        r"double_blocks\.\d+",
        (
            _joint_values(),
            *(fold(f"{s}_mlp.2", by=Up(f"{s}_mlp.0", Part("kv", 1))) for s in ("img", "txt")),
        ),
    ),
    BlockFolds(
        r"single_blocks\.\d+",
        (
            fold(Use("linear2", "first"), by=Values("linear1", Part("qkv+gate+up", 2))),
            fold(Use("linear2", "rest"), by=Up("linear1", Part("qkv+gate+up", 4))),
        ),
    ),
)

QWEN_IMAGE = (
    BlockFolds(
        r"transformer_blocks\.\d+",
        (
            fold(*(f"attn.to_{x}" for x in "qkv"), by=Modulation("img_mod.1", scale=1, shift=0)),
            fold(*(f"attn.add_{x}_proj" for x in "qkv"), by=Modulation("txt_mod.1", scale=1, shift=0)),
            *(
                fold(f"{s}_mlp.net.0.proj", by=Modulation(f"{s}_mod.1", scale=4, shift=3))
                for s in ("img", "txt")
            ),
            fold("attn.to_out.0", "attn.to_add_out", by=(Values("attn.to_v"), Values("attn.add_v_proj"))),
        ),
    ),
)

# Its modulation scales only; Lumina 2 has fewer heads for keys and values.
Z_IMAGE = (
    BlockFolds(
        r"(layers|noise_refiner|context_refiner)\.\d+",
        (
            fold("attention.qkv", by=Norm("attention_norm1")),
            fold("attention.out", by=Values("attention.qkv", _LAST_OF_QKV, "attention.q_norm.weight")),
            fold("feed_forward.w1", "feed_forward.w3", by=Norm("ffn_norm1")),
            fold("feed_forward.w2", by=Up("feed_forward.w3")),
        ),
    ),
)

_X, _CONTEXT = "x_block", "context_block"

SD3 = (
    BlockFolds(
        r"joint_blocks\.\d+",
        (
            *(
                fold(f"{s}.{layer}", by=Modulation(f"{s}.adaLN_modulation.1", scale=place + 1, shift=place))
                for s in (_X, _CONTEXT)
                for layer, place in (("attn.qkv", 0), ("mlp.fc1", 3), ("attn2.qkv", 6))
            ),
            fold(
                f"{_X}.attn.proj",
                Use(f"{_CONTEXT}.attn.proj", optional=True),  # the last block gives no text
                by=tuple(Values(f"{s}.attn.qkv", _LAST_OF_QKV) for s in (_X, _CONTEXT)),
            ),
            fold(f"{_X}.attn2.proj", by=Values(f"{_X}.attn2.qkv", _LAST_OF_QKV)),
        ),
    ),
)

WAN = (
    BlockFolds(
        r"(vace_)?blocks\.\d+",
        (
            fold(
                *(f"self_attn.{x}" for x in "qkv"),
                by=SharedModulation("time_projection.1", "modulation", scale=1, shift=0),
            ),
            fold("ffn.0", by=SharedModulation("time_projection.1", "modulation", scale=4, shift=3)),
            fold("self_attn.o", by=Values("self_attn.v")),
            fold("cross_attn.q", by=Norm("norm3")),
            fold("cross_attn.o", by=Values("cross_attn.v"), unless="cross_attn.v_img.weight"),
            # The outputs of two attentions, to the text and to an image, are added.
            fold("cross_attn.o", by=(Values("cross_attn.v"), Values("cross_attn.v_img", shifts=False))),
        ),
    ),
)

LTX_VIDEO = (
    BlockFolds(
        r"transformer_blocks\.\d+",
        (
            fold(
                *(f"attn1.to_{x}" for x in "qkv"),
                by=SharedModulation("adaln_single.linear", "scale_shift_table", scale=1, shift=0),
            ),
            fold(
                "ff.net.0.proj",
                by=SharedModulation("adaln_single.linear", "scale_shift_table", scale=4, shift=3),
            ),
            *(fold(f"{a}.to_out.0", by=Values(f"{a}.to_v")) for a in ("attn1", "attn2")),
        ),
    ),
)


def _krea(blocks: str, qkv: str, out: str, mlp: str, head: str, mod: str, table: str) -> BlockFolds:
    """Return the blocks of Krea 2; qkv: what queries, keys, values and the gate of the output are called."""
    q, k, v, gate = (f"attn.{name}" for name in qkv.split())
    gated, up, down = (f"{mlp}.{name}" for name in ("gate", "up", "down"))
    return BlockFolds(
        blocks,
        (
            fold(q, k, v, gate, by=SharedModulation(mod, table, scale=0, shift=1)),
            fold(gated, up, by=SharedModulation(mod, table, scale=3, shift=4)),
            fold(out, by=Values(v, head=head)),
            fold(down, by=Up(up)),
        ),
    )


KREA2 = (
    _krea(r"blocks\.\d+", "wq wk wv gate", "attn.wo", "mlp", "attn.qknorm.qnorm.scale", "tproj.1", "mod.lin"),
    _krea(
        r"transformer_blocks\.\d+",
        "to_q to_k to_v to_gate",
        "attn.to_out.0",
        "ff",
        "attn.norm_q.weight",
        "time_mod_proj",
        "scale_shift_table",
    ),
)
"""Under ComfyUI's names and under diffusers', for which there is no table."""

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


def _language_model(mlp_norm: str, offset: float, head: int) -> tuple[BlockFolds, ...]:
    """Return the layers of a language model; head: channels of a head that no norm of queries tells."""
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
        ),
    )


LLAMA = _language_model("post_attention_layernorm", 0.0, 128)
"""Llama, Mistral, Ministral, Qwen 2.5 and 3."""

GEMMA = _language_model("pre_feedforward_layernorm", 1.0, 256)
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
