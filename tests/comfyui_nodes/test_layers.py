"""Embeddings and banks of experts in the added formats, beside a stand-in for ComfyUI."""

import json

import pytest
import torch
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.quant.runtime.stored import tensors_of

BLOCKS, ROWS = "BlockWiseINT8Layout", "TensorWiseINT8Layout"
EXPERTS = 3


def smooth(seed: int = 0) -> torch.Tensor:
    return torch.rand(128, generator=torch.Generator().manual_seed(seed)) + 0.5


KINDS = {
    "blocks": lambda w: QuantizedTensor.from_float(w, BLOCKS, block_size=32),
    "smooth blocks": lambda w: QuantizedTensor.from_float(w, BLOCKS, block_size=32, pre_quant_scale=smooth()),
    "smooth": lambda w: QuantizedTensor.from_float(w, ROWS, rotation=64, pre_quant_scale=smooth()),
    "smooth, not rotated": lambda w: QuantizedTensor.from_float(w, ROWS, pre_quant_scale=smooth()),
    "stock, rotated": lambda w: QuantizedTensor.from_float(w, ROWS, rotation=64),
}


@pytest.fixture(params=KINDS, ids=str)
def quantized(request):
    return KINDS[request.param]


def floats(seed: int, rows: int = 70) -> torch.Tensor:
    return torch.randn(rows, 128, generator=torch.Generator().manual_seed(seed))


def test_rows_of_an_embedding(pack, comfy, quantized):
    weight = quantized(floats(1))
    state = tensors_of(weight)
    host = comfy.ops.pick_operations(None, torch.float32).Embedding(70, 128)
    host.load_state_dict(dict(state))
    index = torch.tensor([[0, 69, 3], [31, 32, 3]])
    want = nn.functional.embedding(index, weight.dequantize())
    torch.testing.assert_close(host(index), want, rtol=1e-4, atol=1e-5)
    written = host.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[n].reshape(t.shape), t) for n, t in state.items())


@pytest.fixture
def bank(quantized):
    """(float weights of each expert, the bank's tensors), a pre_quant_scale for all or for each."""
    experts = [quantized(floats(i)) for i in range(EXPERTS)]
    stored = [tensors_of(e) for e in experts]
    state = {n: torch.stack([s[n] for s in stored]) for n in stored[0] if n != "comfy_quant"}
    conf = {**json.loads(bytes(stored[0]["comfy_quant"].tolist())), "num_experts": EXPERTS}
    state["comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    return [e.dequantize() for e in experts], state


@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
def test_a_bank_of_experts(pack, comfy, bank, shared):
    """Every expert multiplies its own weight; a LoRA makes the whole bank float and quantizes it again."""
    dense, state = bank
    if "pre_quant_scale" in state and shared:
        state["pre_quant_scale"] = state["pre_quant_scale"][0]
    host = comfy.ops.pick_operations(None, torch.float32).MoEExperts(EXPERTS, 128, 70)
    state["bias"] = torch.randn(EXPERTS, 70)
    host.load_state_dict(dict(state))
    x = torch.randn(5, 128)
    for i, weight in enumerate(dense):
        want = nn.functional.linear(x, weight, state["bias"][i])
        assert (host.expert_linear(x, i) - want).norm() / want.norm() < 0.02
    written = host.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[n].reshape(t.shape), t) for n, t in state.items())
    if host.layout_type != ROWS:  # comfy-kitchen makes no rotated bank of its own float
        torch.testing.assert_close(host.weight.dequantize(), torch.stack(dense), rtol=1e-4, atol=1e-5)
        again = host.weight.requantize_from_float(torch.stack(dense), scale="recalculate")
        error = again.dequantize() - torch.stack(dense)
        assert error.norm() / torch.stack(dense).norm() < 0.01
