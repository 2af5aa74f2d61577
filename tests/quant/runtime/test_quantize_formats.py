"""quantize_model with every value of ``--format``: written, read back, and run."""

import pytest
import torch
from torch import nn

from convert_to_quant.formats.choose import options
from convert_to_quant.runtime import load_quantized, quantize_model, save_quantized


@pytest.mark.parametrize("name", options())
def test_a_model_is_quantized_saved_and_loaded(name, tmp_path):
    model, other = (nn.Sequential(nn.Linear(256, 128)) for _ in range(2))
    x = torch.randn(5, 256)
    with torch.no_grad():
        exact = model(x)
        quantize_model(model, name, include="*")
        got = model(x)
        load_quantized(other, save_quantized(model, tmp_path / "q.safetensors"))
        assert torch.equal(other(x), got)
    assert (got - exact).square().sum() < 0.05 * exact.square().sum()
    assert model[0].weight._layout_type == other[0].weight._layout_type


def test_bits_are_those_asked_for():
    for name, bits in (("w4a8", 4), ("w6a8", 6)):
        model = nn.Sequential(nn.Linear(256, 128))
        quantize_model(model, name, include="*")
        assert model[0].weight._layout_params["bits"] == bits


def test_a_format_that_is_always_rotated_says_so():
    model = nn.Sequential(nn.Linear(256, 128))
    report = quantize_model(model, "w4a8", rotation=0, include="*")
    assert "always rotated" in report.skipped["0"]
