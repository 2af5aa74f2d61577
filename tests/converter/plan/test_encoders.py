"""Text encoders that stock ComfyUI reads no quantized file of: left as they are, or told."""

import pytest
import torch
from models import save
from safetensors.torch import load_file

from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.quantization import convert_to_int8

CLIP, T5 = "text_model.encoder.layers", "encoder.block.{}.layer.0.SelfAttention"
SHAPES = {
    "CLIP-L": {
        "text_model.embeddings.token_embedding.weight": (100, 768),
        f"{CLIP}.0.mlp.fc1.weight": (128, 768),
    },
    "CLIP-G": {
        "text_model.embeddings.token_embedding.weight": (100, 1280),
        f"{CLIP}.30.mlp.fc1.weight": (128, 1280),
    },
    "ByT5-small (glyph encoder)": {f"{T5.format(0)}.q.weight": (64, 1472)},
}
UMT5 = {
    f"{T5.format(0)}.q.weight": (64, 4096),
    f"{T5.format(1)}.relative_attention_bias.weight": (32, 64),
}


def weights(shapes, prefix=""):
    g = torch.Generator().manual_seed(1)
    return {prefix + n: (torch.randn(s, generator=g) * 0.05).bfloat16() for n, s in shapes.items()}


@pytest.fixture(params=SHAPES, ids=str)
def title(request):
    return request.param


def test_alone_it_is_refused_with_the_reason(title, tmp_path):
    source, target = save(tmp_path / "e.safetensors", weights(SHAPES[title])), tmp_path / "q.safetensors"
    with pytest.raises(ConversionError) as refused:
        convert_to_int8(source, target)
    assert f"no quantized {title} and shows noise (--force quantizes it)" in str(refused.value)
    assert not target.exists()


def test_forced_it_is_quantized_and_told(title, tmp_path):
    """By the conversion, by inspect and by verify."""
    source, target = save(tmp_path / "e.safetensors", weights(SHAPES[title])), tmp_path / "q.safetensors"
    report = convert_to_int8(source, target, force=True)
    assert [r.name for r in report.layers] == [
        n.removesuffix(".weight") for n in SHAPES[title] if "embed" not in n
    ]
    assert any(f"1 layers of {title} are quantized, for other runtimes" in note for note in report.notes)
    for found in (inspect_file(target).problems, verify(source, target).problems):
        (problem,) = [p for p in found if p.kind == "text encoder"]
        assert problem.fatal
        assert f"1 quantized layers of {title}: stock ComfyUI takes" in problem.text


def test_inside_an_all_in_one_file_it_stays_as_it_is(title, tmp_path):
    """While what ComfyUI reads quantized beside it is quantized."""
    clip = weights(SHAPES[title], "text_encoders.a.transformer.")
    umt5 = weights(UMT5, "text_encoders.umt5xxl.transformer.")
    source = save(tmp_path / "e.safetensors", {**clip, **umt5})
    report = convert_to_int8(source, tmp_path / "q.safetensors")
    assert [r.name for r in report.layers] == [
        "text_encoders.umt5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    ]
    written = load_file(tmp_path / "q.safetensors")
    assert all(torch.equal(written[n], t) for n, t in clip.items())
    assert any(note.startswith(f"{title} stays as it is") for note in report.notes)
    assert verify(source, tmp_path / "q.safetensors").ok


def test_a_pattern_of_a_persons_own_is_followed_and_told(tmp_path):
    source = save(tmp_path / "e.safetensors", weights(SHAPES["CLIP-L"]))
    report = convert_to_int8(source, tmp_path / "q.safetensors", custom_layers="fc1", custom_type="int8")
    assert len(report.layers) == 1
    assert any("for other runtimes" in note for note in report.notes)
