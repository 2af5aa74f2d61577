"""The folds of each family, as its forward pass has them; see `folds` for the words.

Sources: the model classes of ComfyUI 0.33, diffusers and transformers; tests build each class where there is
one, fold it and compare what it computes.
"""

from ...names.rows import Part
from .folds import BlockFolds, Modulation, Norm, Up, Use, Values, fold

_LAST_OF_QKV = Part("qkv", 2)

_JOINT_VALUES = fold(
    "img_attn.proj",
    "txt_attn.proj",
    by=(Values("img_attn.qkv", _LAST_OF_QKV), Values("txt_attn.qkv", _LAST_OF_QKV)),
)
"""Both streams attend to the values of both."""

_SINGLE_VALUES = fold(Use("linear2", "first"), by=Values("linear1", Part("qkv+mlp", 2)))


def _flux(leaf: str, up: str) -> tuple[BlockFolds, ...]:
    """Return the blocks of Flux.1; leaf: the modulation's Linear, up: the MLP's first."""
    streams = (
        f
        for s in ("img", "txt")
        for f in (
            fold(f"{s}_attn.qkv", by=Modulation(f"{s}_mod.{leaf}", scale=1, shift=0)),
            fold(f"{s}_mlp.{up}", by=Modulation(f"{s}_mod.{leaf}", scale=4, shift=3)),
        )
    )
    single = fold("linear1", by=Modulation(f"modulation.{leaf}", scale=1, shift=0))
    return (
        BlockFolds(r"double_blocks\.\d+", (*streams, _JOINT_VALUES)),
        BlockFolds(r"single_blocks\.\d+", (single, _SINGLE_VALUES)),
    )


FLUX1 = _flux("lin", "0")

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
