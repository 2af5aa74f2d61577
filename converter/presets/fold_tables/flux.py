"""The folds of Flux and its kin: two streams that attend together, then one."""

from collections.abc import Iterator

from ....names.rows import Part
from ..folds import BlockFolds, Fold, Modulation, Up, Use, Values, fold

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
