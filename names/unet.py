"""UNets of Stable Diffusion 1, 2 and XL, whose blocks diffusers numbers stage by stage.

Source: ``comfy/utils.py`` of ComfyUI.
"""

from collections.abc import Collection, Iterator, Sequence

from .rows import Row, under

_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)

_SAME = (
    "norm",
    "proj_in",
    "proj_out",
    *(f"transformer_blocks.{{i}}.norm{n}" for n in (1, 2, 3)),
    *(f"transformer_blocks.{{i}}.attn{n}.to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out.0")),
    "transformer_blocks.{i}.ff.net.0.proj",
    "transformer_blocks.{i}.ff.net.2",
)
"""The layers of an attention, named alike on both sides."""

_ATTENTION = tuple((name, name) for name in _SAME)

_ENDS = (
    Row("input_blocks.0.0", "conv_in"),
    Row("out.0", "conv_norm_out"),
    Row("out.2", "conv_out"),
    Row("time_embed.0", "time_embedding.linear_1"),
    Row("time_embed.2", "time_embedding.linear_2"),
    Row("label_emb.0.0", "add_embedding.linear_1"),
    Row("label_emb.0.2", "add_embedding.linear_2"),
    *under("middle_block.0", "mid_block.resnets.0", _RESNET),
    *under("middle_block.1", "mid_block.attentions.0", _ATTENTION),
    *under("middle_block.2", "mid_block.resnets.1", _RESNET),
)


def unet(names: Collection[str]) -> tuple[Row, ...]:
    """Return the rows of the UNet with diffusers' `names`: how its blocks are made decides their numbers."""
    down = [_count(names, f"down_blocks.{n}.resnets") for n in range(_count(names, "down_blocks"))]
    up = [
        (_count(names, f"up_blocks.{n}.resnets"), _count(names, f"up_blocks.{n}.attentions") > 0)
        for n in range(_count(names, "up_blocks"))
    ]
    return (*_ENDS, *_down(down), *_up(up))


def _down(stages: Sequence[int]) -> Iterator[Row]:
    """Yield the rows of the stages on the way down, each of so many resnets."""
    number = 1
    for stage, resnets in enumerate(stages):
        for j in range(resnets):
            yield from _block(f"input_blocks.{number}", f"down_blocks.{stage}", j)
            number += 1
        yield Row(f"input_blocks.{number}.0.op", f"down_blocks.{stage}.downsamplers.0.conv")
        number += 1


def _up(stages: Sequence[tuple[int, bool]]) -> Iterator[Row]:
    """Yield the rows of the stages on the way up, each of so many resnets, with attention or without."""
    number = 0
    for stage, (resnets, attention) in enumerate(stages):
        for j in range(resnets):
            yield from _block(f"output_blocks.{number}", f"up_blocks.{stage}", j)
            number += 1
        # The upsampler stands behind the stage's last attention, where it has one.
        place = 2 if attention else 1
        yield Row(f"output_blocks.{number - 1}.{place}.conv", f"up_blocks.{stage}.upsamplers.0.conv")


def _block(ours: str, theirs: str, j: int) -> Iterator[Row]:
    yield from under(f"{ours}.0", f"{theirs}.resnets.{j}", _RESNET)
    yield from under(f"{ours}.1", f"{theirs}.attentions.{j}", _ATTENTION)


def _count(names: Collection[str], stack: str) -> int:
    """Return how many modules, numbered from 0, the names have in `stack`."""
    count = 0
    while any(name.startswith(f"{stack}.{count}.") for name in names):
        count += 1
    return count


UNET = tuple(dict.fromkeys((*_ENDS, *_down([2] * 4), *_up([(3, True)] * 4), *_up([(3, False)] * 4))))
"""The rows of every layer that Stable Diffusion 1, 2 or XL may have: where a LoRA's names are looked up."""
