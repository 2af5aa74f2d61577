"""The folds of models whose modulation only scales: the norms before it have weights of each block."""

from ....names.rows import Part
from ..folds import BlockFolds, Fold, Norm, Up, Values, fold

_LAST_OF_QKV = Part("qkv", 2)

# Lumina 2 has fewer heads for keys and values. NewBie's blocks are the same.
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

IDEOGRAM4 = (
    BlockFolds(
        r"layers\.\d+",
        (
            fold("attention.qkv", by=Norm("attention_norm1")),
            fold("attention.o", by=Values("attention.qkv", _LAST_OF_QKV)),
            fold("feed_forward.w1", "feed_forward.w3", by=Norm("ffn_norm1")),
            fold("feed_forward.w2", by=Up("feed_forward.w3")),
        ),
    ),
)

_TO_QKV = tuple(f"to_{x}" for x in "qkv")


def _gated_mlp(mlp: str, norm: str) -> tuple[Fold, Fold]:
    """Return the folds of an MLP of three Linears; norm: what stands before it."""
    up = fold(f"{mlp}.linear_1", f"{mlp}.linear_3", by=Norm(norm))
    return up, fold(f"{mlp}.linear_2", by=Up(f"{mlp}.linear_3"))


def _refiner(blocks: str, norm: str) -> BlockFolds:
    """Return the blocks of OmniGen2; norm: the weights before attention."""
    return BlockFolds(
        blocks,
        (
            fold(*(f"attn.{x}" for x in _TO_QKV), by=Norm(norm)),
            fold("attn.to_out.0", by=Values("attn.to_v", head="attn.norm_q.weight")),
            *_gated_mlp("feed_forward", "ffn_norm1"),
        ),
    )


OMNIGEN2 = (
    _refiner(r"(layers|noise_refiner|ref_image_refiner)\.\d+", "norm1.norm"),
    _refiner(r"context_refiner\.\d+", "norm1"),
)

_JOINT, _ALONE = "img_instruct_attn", "img_self_attn"

BOOGU_IMAGE = (
    _refiner(r"(single_stream_layers|noise_refiner|ref_image_refiner)\.\d+", "norm1.norm"),
    _refiner(r"context_refiner\.\d+", "norm1"),
    BlockFolds(
        r"double_stream_layers\.\d+",
        (
            *(
                fold(*(f"{_JOINT}.processor.{s}_{x}" for x in _TO_QKV), by=Norm(f"{s}_norm1.norm"))
                for s in ("img", "instruct")
            ),
            fold(
                *(f"{_JOINT}.processor.{s}_out" for s in ("img", "instruct")),
                by=tuple(
                    Values(f"{_JOINT}.processor.{s}_to_v", head=f"{_JOINT}.norm_q.weight")
                    for s in ("img", "instruct")
                ),
            ),
            fold(*(f"{_ALONE}.{x}" for x in _TO_QKV), by=Norm("img_norm3.norm")),
            fold(f"{_ALONE}.to_out.0", by=Values(f"{_ALONE}.to_v", head=f"{_ALONE}.norm_q.weight")),
            *_gated_mlp("img_feed_forward", "img_ffn_norm1"),
            *_gated_mlp("instruct_feed_forward", "instruct_ffn_norm1"),
        ),
    ),
)
