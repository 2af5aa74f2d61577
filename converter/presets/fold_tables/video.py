"""The folds of video models."""

from ..folds import BlockFolds, Norm, SharedModulation, Values, fold

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
