"""The folds of the other image models."""

from ....names.rows import Part
from ..folds import BlockFolds, Modulation, Norm, SharedModulation, Up, Use, Values, fold

_LAST_OF_QKV = Part("qkv", 2)

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
