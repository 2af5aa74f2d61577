"""The folds of video models."""

from collections.abc import Iterator

from ....names.rows import Part
from ..folds import BlockFolds, Fold, Modulation, Norm, SharedModulation, Up, Use, Values, fold

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


def _modulated(linear: str, table: str, scale: int, shift: int, *uses: str) -> Fold:
    """Return the fold of an LTX input; uses: layers, with a ? behind those that not all models have."""
    layers = (Use(u.removesuffix("?"), optional=u.endswith("?")) for u in uses)
    return fold(*layers, by=SharedModulation(f"{linear}.linear", table, scale, shift))


def _ltx_values(*attentions: str) -> Iterator[Fold]:
    for a in attentions:
        yield fold(f"{a}.to_out.0", by=Values(f"{a}.to_v", gate=f"{a}.to_gate_logits.weight"))


def _ltx_stream(s: str) -> Iterator[Fold]:
    """Yield the folds of one stream of LTX; s: what stands before its names.

    Since LTX-2.3 attention is gated per head, and what it reads of the text and for it is modulated too.
    """
    table, attn1, attn2 = f"{s}scale_shift_table", f"{s}attn1", f"{s}attn2"
    qkv = (f"{attn1}.to_{x}" for x in "qkv")
    yield _modulated(f"{s}adaln_single", table, 1, 0, *qkv, f"{attn1}.to_gate_logits?")
    yield _modulated(f"{s}adaln_single", table, 7, 6, f"{attn2}.to_q", f"{attn2}.to_gate_logits?")
    yield _modulated(
        f"{s}prompt_adaln_single", f"{s}prompt_scale_shift_table", 1, 0, f"{attn2}.to_k", f"{attn2}.to_v"
    )
    yield _modulated(f"{s}adaln_single", table, 4, 3, f"{s}ff.net.0.proj")
    yield from _ltx_values(attn1, attn2)


LTX_VIDEO = (BlockFolds(r"transformer_blocks\.\d+", tuple(_ltx_stream(""))),)


def _ltx_across(stream: str, query: str, context: str, query_first: bool) -> Iterator[Fold]:
    """Yield the folds of what one stream gives to both attentions between streams."""
    linear, table = f"av_ca_{stream}_scale_shift_adaln_single", f"scale_shift_table_a2v_ca_{stream}"
    places = ((0, 1), (2, 3)) if query_first else ((2, 3), (0, 1))
    yield _modulated(linear, table, *places[0], f"{query}.to_q", f"{query}.to_gate_logits?")
    yield _modulated(linear, table, *places[1], f"{context}.to_k", f"{context}.to_v")


_A2V, _V2A = "audio_to_video_attn", "video_to_audio_attn"

LTX2 = (
    BlockFolds(
        r"transformer_blocks\.\d+",
        (
            *_ltx_stream(""),
            *_ltx_stream("audio_"),
            *_ltx_across("video", _A2V, _V2A, query_first=True),
            *_ltx_across("audio", _V2A, _A2V, query_first=False),
            *_ltx_values(_A2V, _V2A),
        ),
    ),
    BlockFolds(
        r"(audio|video)_embeddings_connector\.transformer_1d_blocks\.\d+", tuple(_ltx_values("attn1"))
    ),
)

# Text and video are normalised alike, modulated each by its own rows, and read by the same layers.
COGVIDEOX = (
    BlockFolds(
        r"blocks\.\d+",
        (
            *(
                fold(*layers, by=tuple(Modulation(f"{norm}.linear", scale=p + 1, shift=p) for p in (0, 3)))
                for norm, layers in (("norm1", "qkv"), ("norm2", ("ff_proj",)))
            ),
            fold("attn_out", by=Values("v")),
        ),
    ),
)


_MOCHI_MLP = Part("kv", 1)

# Its modulation only scales; the text's is one of four parts but in the last block, which gives no text.
MOCHI = (
    BlockFolds(
        r"blocks\.\d+",
        (
            *(
                f
                for s in "xy"
                for f in (
                    fold(f"attn.qkv_{s}", by=Modulation(f"mod_{s}", scale=0, shift=None)),
                    fold(f"mlp_{s}.w1", by=Modulation(f"mod_{s}", scale=2, shift=None)),
                    fold(f"mlp_{s}.w2", by=Up(f"mlp_{s}.w1", _MOCHI_MLP)),
                )
            ),
            fold(
                "attn.proj_x",
                Use("attn.proj_y", optional=True),
                by=tuple(Values(f"attn.qkv_{s}", Part("thirds", 2)) for s in "xy"),
            ),
        ),
    ),
)

# Each of three modalities has rows of its own, and all tokens go through the same layers.
MINIMAX_H3 = (
    BlockFolds(
        r"blocks\.\d+",
        (
            *(
                fold(
                    layer,
                    by=tuple(
                        Modulation(
                            "adaln_proj.linear", scale=6 * modality + place + 1, shift=6 * modality + place
                        )
                        for modality in range(3)
                    ),
                )
                for layer, place in (("attn.qkv_proj", 0), ("mlp.fc1", 3))
            ),
            fold("attn.out_proj", by=Values("attn.qkv_proj", Part("thirds", 2))),
            fold("mlp.fc2", by=Up("mlp.fc1", Part("kv", 1))),
        ),
    ),
)


def _kandinsky(blocks: str, mod: str, inputs: tuple[tuple[str, ...], ...], *attentions: str) -> BlockFolds:
    """Return blocks of Kandinsky 5; inputs: the readers of each modulated input, in order of its rows."""
    modulated = (
        fold(*layers, by=Modulation(f"{mod}.out_layer", scale=3 * i + 1, shift=3 * i))
        for i, layers in enumerate(inputs)
    )
    values = (fold(f"{a}.out_layer", by=Values(f"{a}.to_value")) for a in attentions)
    return BlockFolds(blocks, (*modulated, *values))


_SELF = tuple(f"self_attention.to_{x}" for x in ("query", "key", "value"))
_ACROSS, _IN = ("cross_attention.to_query",), ("feed_forward.in_layer",)

KANDINSKY5 = (
    _kandinsky(r"text_transformer_blocks\.\d+", "text_modulation", (_SELF, _IN), "self_attention"),
    _kandinsky(
        r"visual_transformer_blocks\.\d+",
        "visual_modulation",
        (_SELF, _ACROSS, _IN),
        "self_attention",
        "cross_attention",
    ),
)
