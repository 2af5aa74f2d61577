"""Folds of families whose names are no diffusers class's, in ComfyUI's own classes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from folding import folded

FAMILIES = {
    "boogu_image": ("boogu-image", 25, 0),
    "cogvideox": ("cogvideox", 6, 6),
    "cosmos_predict2": ("cosmos-predict2", 4, 0),
    "ernie_image": ("ernie-image", 4, 0),
    "hidream_i1": ("hidream-i1", 19, 5),
    "hunyuan3d": ("hunyuan3d-2", 7, 7),
    "ideogram4": ("ideogram4", 8, 0),
    "joyimage": ("joyimage", 2, 2),
    "kandinsky5": ("kandinsky5", 13, 10),
    "krea2": ("krea2", 6, 0),
    "lens": ("lens", 14, 6),
    "ltx2": ("ltx-2", 40, 32),
    "ltx23": ("ltx-2", 52, 24),
    "minimax_h3": ("minimax-h3", 8, 0),
    "mochi": ("mochi-preview", 12, 0),
    "omnigen2": ("omnigen2", 20, 0),
}
"""By the function in `tiny_models`: the preset, the inputs that are folded, and those less their mean."""


def made(path, target):
    """A calibration of made inputs, off zero and uneven, for every two-dimensional weight of a file."""
    g = torch.Generator().manual_seed(3)
    records = {}
    for name, weight in load_file(path).items():
        if name.endswith(".weight") and weight.dim() == 2:
            uneven, mean = torch.randn(2, weight.shape[1], generator=g)
            x = torch.randn(64, weight.shape[1], generator=g) * uneven.exp() + mean
            records[name.removesuffix(".weight")] = LayerStats(x.bfloat16(), x.abs().amax(0), x.mean(0), 0.1)
    return save_calibration(target, records)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_computes_what_it_did(stock, family, tmp_path):
    preset, inputs, means = FAMILIES[family]
    path = tmp_path / "model.safetensors"
    assert stock.call("tiny_models", "build", name=family, path=path)
    tensors, plan = folded(path, made(path, tmp_path / "inputs.safetensors"), preset=preset, force=True)
    assert (len(plan.inputs), sum(one.mean for one in plan.inputs)) == (inputs, means)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "folded.safetensors")
    files = {"original": path, "folded": tmp_path / "folded.safetensors"}
    assert stock.call("tiny_models", "difference", name=family, **files) < 1e-5
