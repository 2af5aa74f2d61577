"""Files that are no models are refused under their right names."""

import pytest
import torch
from lora_files import STYLES, low_rank, save_lora
from models import block_weights, save

from convert_to_quant.converter.presets.other_files import OTHER_FILES
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.quantization import convert_to_int8, plan_int8


def shaped(fact, way):
    """A tensor of which a fact is true."""
    return torch.zeros([3] * max([f.value for f in way if f.key == fact.key and f.op == "ndim"], default=2))


WAYS = [pytest.param(kind, way, id=f"{kind.title}-{way[0].key}") for kind in OTHER_FILES for way in kind.ways]


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_each_kind_is_refused_by_its_name(kind, way, tmp_path):
    tensors = {f.key: shaped(f, way) for f in way if f.op != "lacks"}
    path = save(tmp_path / "m.safetensors", {**tensors, **block_weights()})
    with pytest.raises(ConversionError, match=f"is {kind.title}, .*--preset none"):
        convert_to_int8(str(path))
    assert plan_int8(str(path), preset="none").layers


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_is_refused_with_the_command_that_merges_it(style, tmp_path):
    tensors = {}
    for module in ("transformer.blocks.0.attn.to_q", "transformer.blocks.0.attn.to_k"):
        tensors |= low_rank(module, 64, 64, style=style, alpha=4)[0]
    save_lora(tmp_path / "lora.safetensors", tensors)
    for preset in ("auto", "none"):
        with pytest.raises(ConversionError, match=r"is a LoRA.*--merge-lora \S*lora\.safetensors"):
            convert_to_int8(str(tmp_path / "lora.safetensors"), preset=preset)


def test_a_lora_of_a_kind_that_cannot_be_merged_is_a_lora_all_the_same(tmp_path):
    path = save(tmp_path / "m.safetensors", {f"blocks.{i}.proj.oft_blocks": torch.ones(4, 8) for i in (0, 1)})
    with pytest.raises(ConversionError, match="is a LoRA"):
        convert_to_int8(str(path))


def test_a_model_with_a_merged_adapters_left_over_is_still_a_model(tmp_path):
    extra = low_rank("blocks.0.attn.qkv", 768, 256)[0]
    path = save(tmp_path / "m.safetensors", {**block_weights(), **extra})
    assert plan_int8(str(path)).layers
