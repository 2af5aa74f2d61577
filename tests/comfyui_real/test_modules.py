"""Modules of real ComfyUI that hold other weights than a Linear's, filled from what we write."""

import pytest
import torch
from format_cases import WRITTEN
from models import save

from convert_to_quant.quantization import convert_to_int8

TABLE = "model.embed_tokens.weight"
BANK = "layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize("case", [c for c in WRITTEN if c.form.banks and "tensor" not in c.id], ids=str)
def test_stock_comfyui_reads_every_expert_of_a_bank(stock, tmp_path, case):
    """Of INT8 also where rotation was asked for: ComfyUI would not un-rotate a bank."""
    tensors = {f"{BANK}.weight": torch.randn(3, 160, 128).bfloat16(), "layers.0.x.weight": torch.ones(2)}
    original = save(tmp_path / "m.safetensors", tensors)
    convert_to_int8(original, tmp_path / "q.safetensors", **case.options)
    found = stock.call("modules", "experts", path=tmp_path / "q.safetensors", original=original, name=BANK)
    assert len(found) == 3
    assert min(found) > case.least_db - 8


@pytest.mark.parametrize("options", [{}, {"convrot": False}, {"format": "nvfp4"}], ids=str)
def test_stock_comfyui_looks_rows_up_in_an_int8_table(stock, tmp_path, options):
    tensors = {TABLE: torch.randn(300, 256).bfloat16(), "model.layers.0.x.weight": torch.randn(128, 128)}
    original = save(tmp_path / "m.safetensors", tensors)
    convert_to_int8(original, tmp_path / "q.safetensors", embeddings=True, **options)
    found = stock.call(
        "modules",
        "embeddings",
        path=tmp_path / "q.safetensors",
        original=original,
        name=TABLE.removesuffix(".weight"),
    )
    assert 35 < found < 100
