"""quantize_model: which layers of a model in memory, by what the presets know."""

import pytest
import torch
from running_models import MODELS, output, randomized
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.quant import runtime
from convert_to_quant.runtime import quantize_model

flux, flux_inputs = MODELS["flux"][:2]


def error(model: nn.Module, want: torch.Tensor, inputs: dict) -> float:
    return float((output(model, inputs).double() - want.double()).norm() / want.double().norm())


def test_a_recognised_model_follows_its_preset():
    """A diffusers Flux keeps embedders and output layers, with the preset's reason; the error shrinks."""
    inputs = flux_inputs(torch.Generator().manual_seed(1))
    want = output(randomized(flux), inputs)
    model = randomized(flux)
    report = quantize_model(model)
    assert report.quantized
    assert all("transformer_blocks." in name for name in report.quantized)
    assert report.skipped["norm_out.linear"] == "kept by preset flux1: norm_out"
    everything = randomized(flux)
    assert runtime.quantize_model(everything).quantized.keys() > report.quantized.keys()
    assert error(model, want, inputs) < error(everything, want, inputs)
    modulated = quantize_model(randomized(flux), preset_strict=True)
    assert {n for n in report.quantized if ".norm1" in n} <= modulated.skipped.keys()


class Plain(nn.Module):
    """Unknown to the presets: an embedder, two blocks with attention of torch's own, an output."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(128, 128), nn.Linear(128, 128)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.MultiheadAttention(128, 4), "up": nn.Linear(128, 256)})
            for _ in range(2)
        )


def test_an_unknown_model_follows_the_general_rule():
    report = quantize_model(Plain())
    layers = [f"blocks.{i}.{leaf}" for i in (0, 1) for leaf in ("attn.out_proj", "up")]
    assert list(report.quantized) == layers
    assert report.skipped["inp"] == "outside the repeated blocks"
    assert (
        report.skipped["blocks.1.attn.in_proj_weight"]
        == "belongs to MultiheadAttention, which is no nn.Linear"
    )


def test_what_is_asked_for_wins_over_the_rule():
    report = quantize_model(Plain(), include=["inp"], skip=["blocks.0"])
    assert list(report.quantized) == ["inp", "blocks.1.attn.out_proj", "blocks.1.up"]
    assert report.skipped["blocks.0.up"] == "asked to skip"
    assert "out" in quantize_model(Plain(), include="*").quantized


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"skip": ["blocks.0", "blokcs.1.*"]},
            r"skip: the pattern 'blokcs.1.\*' matches no linear layer.*blocks.1",
        ),
        (
            {"include": "x_embedder"},
            "include: the pattern 'x_embedder' matches no linear layer.*its linear layers are",
        ),
        ({"preset": "fluks"}, "there is no preset 'fluks'"),
        ({"scaling": "column"}, "not by column"),
    ],
)
def test_what_matches_nothing_is_refused(arguments, message):
    model = Plain()
    with pytest.raises(ValueError, match=message):
        quantize_model(model, **arguments)
    assert not any(isinstance(p, QuantizedTensor) for p in model.parameters())
