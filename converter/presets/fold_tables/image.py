"""The folds of the other image models."""

from collections.abc import Iterator

from ....names.rows import Part
from ..folds import BlockFolds, Fold, Modulation, SharedModulation, Up, Use, Values, fold

_LAST_OF_QKV, _SECOND = Part("qkv", 2), Part("kv", 1)

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

# One network makes the modulation of all blocks: Qwen-Image 2.1's has no bias, and its blocks no tables;
# JoyImage's is the same for both streams of a block.
QWEN_IMAGE21 = (
    BlockFolds(
        r"transformer_blocks\.\d+",
        (fold("attn.to_out.0", by=Values("attn.to_v")), fold("img_mlp.out", by=Up("img_mlp.proj"))),
    ),
)

JOYIMAGE = (
    BlockFolds(
        r"double_blocks\.\d+",
        (
            fold(
                *(f"attn.{s}_attn_proj" for s in ("img", "txt")),
                by=tuple(Values(f"attn.{s}_attn_qkv", _LAST_OF_QKV) for s in ("img", "txt")),
            ),
        ),
    ),
)

LENS = (
    BlockFolds(
        r"transformer_blocks\.\d+",
        (
            *(
                f
                for s in ("img", "txt")
                for f in (
                    fold(f"attn.{s}_qkv", by=Modulation(f"{s}_mod.1", scale=1, shift=0)),
                    fold(f"{s}_mlp.w1", f"{s}_mlp.w3", by=Modulation(f"{s}_mod.1", scale=4, shift=3)),
                    fold(f"{s}_mlp.w2", by=Up(f"{s}_mlp.w3")),
                )
            ),
            fold(
                "attn.to_out.0",
                "attn.to_add_out",
                by=tuple(Values(f"attn.{s}_qkv", _LAST_OF_QKV) for s in ("img", "txt")),
            ),
        ),
    ),
)


_TO_QKV = tuple(f"to_{x}" for x in "qkv")


def _hidream(s: str, first: int, *mlps: str) -> Iterator[Fold]:
    """Yield the folds of a stream of HiDream; first: its part of the modulation, mlps: all of one input."""
    end = {"i": "", "t": "_t"}[s]
    shift = 6 * first
    yield fold(
        *(f"attn1.{x}{end}" for x in _TO_QKV),
        by=Modulation("adaLN_modulation.1", scale=shift + 1, shift=shift),
    )
    readers = [f"ff_{s}.{mlp}w{n}" for mlp in mlps for n in (1, 3)]
    router = [Use("ff_i.gate", optional=True)] if s == "i" else []
    yield fold(
        *readers,
        *router,
        by=Modulation("adaLN_modulation.1", scale=shift + 4, shift=shift + 3),
        unless="ff_i.experts.4.w1.weight",
    )
    for mlp in mlps:
        yield fold(f"ff_{s}.{mlp}w2", by=Up(f"ff_{s}.{mlp}w3"))


_EXPERTS = ("shared_experts.", *(f"experts.{i}." for i in range(4)))

HIDREAM_I1 = (
    BlockFolds(
        r"double_stream_blocks\.\d+\.block",
        (
            *_hidream("i", 0, *_EXPERTS),
            *_hidream("t", 1, ""),
            fold("attn1.to_out", "attn1.to_out_t", by=(Values("attn1.to_v"), Values("attn1.to_v_t"))),
        ),
    ),
    BlockFolds(
        r"single_stream_blocks\.\d+\.block",
        (*_hidream("i", 0, *_EXPERTS), fold("attn1.to_out", by=Values("attn1.to_v"))),
    ),
)

# The modulation of Cosmos-Predict2, Anima and AuraFlow has no bias; ERNIE-Image's is one for all blocks,
# without tables of theirs.
COSMOS_PREDICT2 = (
    BlockFolds(
        r"blocks\.\d+",
        tuple(fold(f"{a}.output_proj", by=Values(f"{a}.v_proj")) for a in ("self_attn", "cross_attn")),
    ),
)

ERNIE_IMAGE = (
    BlockFolds(
        r"layers\.\d+",
        (
            fold("self_attention.to_out.0", by=Values("self_attention.to_v")),
            fold("mlp.linear_fc2", by=Up("mlp.up_proj")),
        ),
    ),
)

AURAFLOW = (
    BlockFolds(
        r"double_layers\.\d+",
        (
            fold("attn.w1o", "attn.w2o", by=(Values("attn.w1v"), Values("attn.w2v"))),
            *(fold(f"{mlp}.c_proj", by=Up(f"{mlp}.c_fc2")) for mlp in ("mlpC", "mlpX")),
        ),
    ),
    BlockFolds(
        r"single_layers\.\d+",
        (fold("attn.w1o", by=Values("attn.w1v")), fold("mlp.c_proj", by=Up("mlp.c_fc2"))),
    ),
)

PIXART = (
    BlockFolds(
        r"blocks\.\d+",
        (
            fold("attn.qkv", by=SharedModulation("t_block.1", "scale_shift_table", scale=1, shift=0)),
            fold("mlp.fc1", by=SharedModulation("t_block.1", "scale_shift_table", scale=4, shift=3)),
            # Blocks that compress keys and values normalise the values.
            fold("attn.proj", by=Values("attn.qkv", _LAST_OF_QKV), unless="attn.sr.weight"),
            fold("cross_attn.proj", by=Values("cross_attn.kv_linear", _SECOND)),
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
                for layer, place in (("attn.qkv", 0), ("mlp.fc1", 3))
            ),
            fold(f"{_X}.attn2.qkv", by=Modulation(f"{_X}.adaLN_modulation.1", scale=7, shift=6)),
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
            fold(out, by=Values(v, head=head, gate=f"{gate}.weight")),
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
