"""transformers' own from_pretrained and save_pretrained, on its own classes."""

import json

import pytest
import torch
from peers import peer
from safetensors.torch import load_file

transformers = peer("transformers")
peer("accelerate")

from convert_to_quant.comfy.quant_ops import QuantizedTensor  # noqa: E402
from convert_to_quant.runtime import load_quantized, quantize_model  # noqa: E402
from convert_to_quant.transformers import CtqConfig, disk_offload, mark_quantized  # noqa: E402

_COMMON = {"vocab_size": 100, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {**_COMMON, "intermediate_size": 256}
_HEADS = {**_WIDE, "num_key_value_heads": 4, "head_dim": 32}

_T5 = {"vocab_size": 100, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}

MODELS = {
    "t5": ("T5EncoderModel", "T5Config", _T5),
    "umt5": ("UMT5EncoderModel", "UMT5Config", _T5),
    "bert": ("BertModel", "BertConfig", _WIDE),
    "clip": ("CLIPTextModel", "CLIPTextConfig", {**_WIDE, "bos_token_id": 1, "eos_token_id": 2}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _WIDE),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_HEADS, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Model", "Gemma2Config", _HEADS),
    "mistral": ("MistralModel", "MistralConfig", _HEADS),
}


def make(family: str) -> torch.nn.Module:
    kind, config, sizes = MODELS[family]
    return getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return mine.keys() == theirs.keys() and all(
        isinstance(p, QuantizedTensor) == isinstance(theirs[n], QuantizedTensor) and torch.equal(p, theirs[n])
        for n, p in mine.items()
    )


@pytest.mark.parametrize("family", MODELS)
def test_a_model_is_quantized_while_it_is_loaded(family, tmp_path):
    """As quantize_model does it in place; saved and read again, in shards too, nothing is missing or left."""
    want = make(family)
    want.save_pretrained(tmp_path / "float")
    report = quantize_model(want)
    cls = type(want)
    got = cls.from_pretrained(tmp_path / "float", quantization_config=CtqConfig())
    assert report.quantized
    assert got.hf_quantizer.plan.forms.keys() == report.quantized.keys()
    assert same(got, want)
    for name, size in (("whole", "1GB"), ("shards", "100KB")):
        got.save_pretrained(tmp_path / name, max_shard_size=size)
        told = json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        assert told["quant_method"] == "ctq"
        again, info = cls.from_pretrained(tmp_path / name, output_loading_info=True)
        assert same(again, want)
        assert not any(info.values())
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        assert torch.isfinite(again(input_ids=ids)[0]).all()


OTHERS = [CtqConfig("int8_blockwise", block_size=32), CtqConfig("float8_e4m3fn")]


@pytest.mark.parametrize("config", OTHERS, ids=lambda c: c.format)
def test_other_formats_are_written_and_read(config, tmp_path):
    model = make("t5")
    model.save_pretrained(tmp_path / "a")
    got = type(model).from_pretrained(tmp_path / "a", quantization_config=config)
    got.save_pretrained(tmp_path / "b")
    assert same(type(model).from_pretrained(tmp_path / "b"), got)
    found = load_file(tmp_path / "b" / "model.safetensors")
    stored = json.loads(bytes(found["encoder.block.0.layer.0.SelfAttention.q.comfy_quant"].tolist()))
    assert stored["format"] == config.format
    other = make("t5")
    load_quantized(other, tmp_path / "b")
    assert same(other, got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_that_is_asked_for_is_everywhere(tmp_path, dtype):
    """But T5's own list of layers that float16 breaks: they stay float32, and float."""
    model = make("t5")
    model.save_pretrained(tmp_path / "a")
    got = type(model).from_pretrained(tmp_path / "a", dtype=dtype, quantization_config=CtqConfig())
    kept = [n for n, p in got.named_parameters() if p.dtype == torch.float32]
    assert {p.dtype for n, p in got.named_parameters() if n not in kept} == {dtype}
    assert all(n.endswith("wo.weight") for n in kept)
    assert len(kept) == (2 if dtype == torch.float16 else 0)
    assert not any(isinstance(got.get_parameter(n), QuantizedTensor) for n in kept)
    assert sum(isinstance(p, QuantizedTensor) for p in got.parameters()) == 12 - len(kept)
    got.save_pretrained(tmp_path / "b")
    assert same(type(model).from_pretrained(tmp_path / "b", dtype=dtype), got)


def test_it_is_dequantized_and_saved_as_floats(tmp_path):
    model = make("bert")
    model.save_pretrained(tmp_path / "a")
    got = type(model).from_pretrained(tmp_path / "a", quantization_config=CtqConfig())
    want = {n: p.dequantize() if isinstance(p, QuantizedTensor) else p for n, p in got.named_parameters()}
    got.dequantize()
    got.save_pretrained(tmp_path / "b")
    assert "quantization_config" not in json.loads((tmp_path / "b" / "config.json").read_text())
    again = dict(type(model).from_pretrained(tmp_path / "b").named_parameters())
    assert all(torch.equal(again[n], p) for n, p in want.items())


def test_a_model_quantized_in_place_is_saved_once_it_is_marked(tmp_path):
    model = make("llama")
    quantize_model(model)
    mark_quantized(model, CtqConfig(preset="none"))
    model.save_pretrained(tmp_path)
    assert same(type(model).from_pretrained(tmp_path), model)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["preset"] == "none"


def test_a_calibration_steers_the_rounding_while_loading(tmp_path):
    """Layers with a record use LDLQ: the same integers as quantize_model's with that file."""
    from convert_to_quant import calibrate

    model = make("bert")
    model.save_pretrained(tmp_path / "a")
    ids = torch.randint(100, (4, 24), generator=torch.Generator().manual_seed(0))
    calibrate(model, [{"input_ids": ids}], tmp_path / "c.safetensors", tokens=64)
    config = CtqConfig(calibration=tmp_path / "c.safetensors")
    got = type(model).from_pretrained(tmp_path / "a", quantization_config=config)
    plain = type(model).from_pretrained(tmp_path / "a", quantization_config=CtqConfig())
    quantize_model(model, calibration=tmp_path / "c.safetensors")
    assert same(got, model)
    assert not same(got, plain)


def test_tied_weights_wait_on_the_disk_once(tmp_path):
    model, ids = make("qwen3"), torch.tensor([[3, 5, 7, 9]])
    quantize_model(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        want = model(input_ids=ids)[0]
        path = disk_offload(model, tmp_path, "cpu")
        for _ in range(2):
            noise = (model(input_ids=ids)[0] - want).square().sum()
            assert 10 * torch.log10(want.square().sum() / noise) > 50
    assert "lm_head.weight" not in load_file(path)
