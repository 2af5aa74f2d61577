"""Layers whose columns ComfyUI counts in the file: packed, the model would be taken for another."""

import pytest
import torch
from models import save
from safetensors import safe_open

from convert_to_quant.formats.choose import options
from convert_to_quant.quantization import convert_to_int8

READ = (
    "transformer_blocks.0.attn2.to_k",
    "blocks.0.norm1.linear",
    "transformer.layers.0.self_attn.to_qkv",
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
)
OTHERS = (
    "transformer_blocks.1.attn2.to_k",
    "transformer_blocks.0.attn1.to_k",
    "blocks.10.norm1.linear",
    "transformer.layers.0.self_attn.to_out",
)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", options())
def test_they_keep_their_columns(name, prefix, tmp_path):
    g = torch.Generator().manual_seed(0)
    names = [f"{prefix}{layer}" for layer in (*READ, *OTHERS)]
    source = save(
        tmp_path / "m.safetensors", {f"{n}.weight": torch.randn(128, 256, generator=g) for n in names}
    )
    report = convert_to_int8(
        source, tmp_path / "q.safetensors", format=name, custom_layers=".*", custom_type=name
    )
    with safe_open(report.output, "pt") as file:
        columns = {n: file.get_slice(f"{n}.weight").get_shape()[1] for n in names}
    packed = {"w4a8": 128, "int4": 128, "nvfp4": 128, "w6a8": 192}.get(name, 256)
    assert columns == {f"{prefix}{n}": 256 for n in READ} | {f"{prefix}{n}": packed for n in OTHERS}
