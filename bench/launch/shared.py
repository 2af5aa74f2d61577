"""What one quantization for the Linears of one input saves: launches and bytes per forward.

    python bench/launch/shared.py      no GPU needed; needs diffusers

Models of diffusers' classes, with two blocks of each kind and few channels, run on Triton's launcher over a
driver that runs nothing (`stub`) and counts. Who reads which input is the same at any size, so the figures of
the released models follow from their blocks, widths and tokens. An avoided quantization reads M K activations
of 16 bits less and writes M K integers and M scales less.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import stub
import torch
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.kernels._library import _LIBRARY, LAUNCHERS, on_device

IMAGE, TEXT, WIDTH = 64, 24, 128
"""Tokens and channels of the small models."""


@dataclass(frozen=True)
class Model:
    """A released model: blocks by the name of their list, columns by those of the small model, tokens."""

    title: str
    cls: str
    small: dict[str, Any]
    inputs: dict[str, Any]
    blocks: dict[str, int]
    columns: dict[int, int]
    image: int
    text: int


HEADS = {"attention_head_dim": 32, "num_attention_heads": WIDTH // 32}
MODELS = (
    Model(
        "FLUX.1, 1024 x 1024",
        "FluxTransformer2DModel",
        HEADS
        | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 64}
        | {"pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12)},
        {
            "hidden_states": torch.zeros(1, IMAGE, 16),
            "encoder_hidden_states": torch.zeros(1, TEXT, 64),
            "pooled_projections": torch.zeros(1, 32),
            "timestep": torch.tensor([0.7]),
            "img_ids": torch.zeros(IMAGE, 3),
            "txt_ids": torch.zeros(TEXT, 3),
        },
        {"transformer_blocks": 19, "single_transformer_blocks": 38},
        {WIDTH: 3072, 4 * WIDTH: 12288, 5 * WIDTH: 15360},
        4096,
        512,
    ),
    Model(
        "Qwen-Image, 1024 x 1024",
        "QwenImageTransformer2DModel",
        HEADS
        | {"in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 64}
        | {"axes_dims_rope": (8, 12, 12)},
        {
            "hidden_states": torch.zeros(1, IMAGE, 16),
            "encoder_hidden_states": torch.zeros(1, TEXT, 64),
            "encoder_hidden_states_mask": torch.ones(1, TEXT, dtype=torch.bool),
            "timestep": torch.tensor([0.7]),
            "img_shapes": [(1, 8, 8)],
        },
        {"transformer_blocks": 60},
        {WIDTH: 3072, 4 * WIDTH: 12288},
        4096,
        512,
    ),
    Model(
        "Wan 2.1 14B, 81 frames of 1280 x 720",
        "WanTransformer3DModel",
        HEADS
        | {"in_channels": 4, "out_channels": 4, "text_dim": 64, "freq_dim": 64, "ffn_dim": 2 * WIDTH}
        | {"num_layers": 2, "cross_attn_norm": True, "rope_max_seq_len": 32},
        {
            "hidden_states": torch.zeros(1, 4, 1, 16, 16),
            "timestep": torch.tensor([700]),
            "encoder_hidden_states": torch.zeros(1, TEXT, 64),
        },
        {"blocks": 40},
        {WIDTH: 5120, 2 * WIDTH: 13824},
        75600,
        512,
    ),
)


def quantized(model: Model) -> nn.Module:
    """Return the small model with every Linear of its blocks quantized, modulations aside."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    made = getattr(diffusers, model.cls)(**model.small).to(torch.bfloat16).eval().requires_grad_(False)
    for name, module in made.named_modules():
        words = set(name.replace("_", ".").split("."))
        wanted = name.split(".")[0] in model.blocks and not words & {"norm", "norm1", "mod"}
        if wanted and isinstance(module, nn.Linear):
            weight = torch.zeros(module.weight.shape, dtype=torch.bfloat16)
            q = QuantizedTensor.from_float(weight, "TensorWiseINT8Layout", rotation=64)
            module.weight = nn.Parameter(q, requires_grad=False)
    return made


def reads_of(model: Model, made: nn.Module) -> list[tuple[str, int, int, int]]:
    """Return (list of blocks, tokens, width, Linears) for each input of a forward, at the released sizes."""
    found: list[tuple[str, Any]] = []
    for name, module in made.named_modules():
        if isinstance(getattr(module, "weight", None), QuantizedTensor):
            kind = name.split(".")[0]
            module.register_forward_pre_hook(lambda m, args, kind=kind: found.append((kind, args[0])))
    made(**inputs(model))
    for module in made.modules():
        module._forward_pre_hooks.clear()
    tokens = {IMAGE: model.image, TEXT: model.text, IMAGE + TEXT: model.image + model.text}
    reads = []
    for _, group in groupby(found, key=lambda read: id(read[1])):
        kind, x = (same := list(group))[0]
        reads.append((kind, tokens[x.shape[1]], model.columns[x.shape[-1]], len(same)))
    return reads


def inputs(model: Model) -> dict[str, Any]:
    """Return the inputs, floats in the model's dtype but for the coordinates."""
    given = {}
    for name, value in model.inputs.items():
        is_data = torch.is_tensor(value) and value.is_floating_point() and not name.endswith("_ids")
        given[name] = value.bfloat16() if is_data else value
    return given


def launches(made: nn.Module, model: Model, shared: bool, counter: Any) -> int:
    """Return the kernels launched by one forward, after two that compile and learn."""
    os.environ["CONVERT_TO_QUANT_SHARE"] = "1" if shared else "0"
    for _ in range(2):
        made(**inputs(model))
    before = counter.stub_launches()
    made(**inputs(model))
    return counter.stub_launches() - before


def row(model: Model, counter: Any) -> str:
    """Return the model's line of the table. AssertionError where the launches are not those it predicts."""
    made = quantized(model)
    reads = reads_of(model, made)
    apart, once = (launches(made, model, shared, counter) for shared in (False, True))
    assert apart == 2 * sum(n for *_, n in reads), "two launches a Linear"
    assert apart - once == sum(n - 1 for *_, n in reads), "one quantization an input"
    each = {kind: model.blocks[kind] / 2 for kind in model.blocks}  # two blocks were run
    before = sum(2 * n * each[kind] for kind, _, _, n in reads)
    saved = sum((n - 1) * each[kind] for kind, _, _, n in reads)
    moved = sum(n * each[kind] * (3 * m * k + 4 * m) for kind, m, k, n in reads)
    spared = sum((n - 1) * each[kind] * (3 * m * k + 4 * m) for kind, m, k, n in reads)
    return (
        f"| {model.title} | {before:.0f} | {before - saved:.0f} | {moved / 1e9:.1f} | "
        f"{(moved - spared) / 1e9:.1f} | {spared / moved:.0%} |"
    )


def main() -> int:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    os.environ["CONVERT_TO_QUANT_AUTOTUNE"] = "0"
    try:
        counter = stub.install()
    except stub.NoCompiler as error:
        print(f"bench/launch: {error}", file=sys.stderr)
        return 1
    for name in LAUNCHERS:  # the stub takes CPU tensors for a device's
        _LIBRARY.impl(name, on_device(name, refuse, LAUNCHERS[name]), "CPU")
    print("| model | launches apart | once | quantizer's GB apart | once | saved |")
    print("| --- | --- | --- | --- | --- | --- |")
    with torch.no_grad():
        for model in MODELS:
            print(row(model, counter), flush=True)
    return 0


def refuse(*args: Any) -> None:
    """Stand for the eager twins, whose work would not be counted."""
    raise RuntimeError("an op was not launched")


if __name__ == "__main__":
    sys.exit(main())
