"""The compiled kernels on a GPU: the interpreter's cases, graph capture and torch.compile.

Skipped where there is no GPU. For a memory check: ``compute-sanitizer --tool memcheck python -m
pytest tests/kernels/triton/test_gpu.py -k first``.
"""

import importlib

import pytest
import torch
from poison import Poison
from triton_cases import CASES

from convert_to_quant import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "xpu" if torch.xpu.is_available() else None
if DEVICE is None:
    pytest.skip("needs a GPU that Triton compiles for", allow_module_level=True)


@pytest.fixture(params=range(7), ids=["first", "second", "third", "fourth", "fifth", "sixth", "last"])
def place(request, monkeypatch):
    """Every candidate of every table in turn, with poisoned and guarded buffers."""
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "0")
    may_run = importlib.import_module("convert_to_quant.kernels.triton._proof").may_run

    def pick(arch, key, candidates, run, device):
        same_bits = [c for c in candidates if c.handicap == 1.0 and may_run(arch, c, device)]
        return same_bits[min(request.param, len(same_bits) - 1)]

    monkeypatch.setattr(importlib.import_module("convert_to_quant.kernels.triton._run"), "choose", pick)
    tuning = importlib.import_module("convert_to_quant.kernels.triton._tuning")
    tuning.forget()  # plans made with another candidate
    poison = Poison(DEVICE)
    poison.into_launchers(monkeypatch)
    yield poison.place
    poison.check()
    tuning.forget()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_eager_twin(case, place):
    case.check(kernels, place)
    case.check(kernels, place)  # replayed


def _linear():
    q, scale = kernels.quantize_rowwise(torch.randn(384, 512, device=DEVICE, dtype=torch.bfloat16), 256)
    bias = torch.randn(384, device=DEVICE, dtype=torch.bfloat16)
    return lambda x: kernels.int8_linear(x, q, scale, bias, 256, input_activation="gelu_tanh")


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs")
@pytest.mark.parametrize("m", [1, 70, 600])
@pytest.mark.parametrize("warm", [True, False], ids=["tuned", "untuned"])
def test_graph_capture(m, warm, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    importlib.import_module("convert_to_quant.kernels.triton._tuning").forget()
    model = _linear()
    x = torch.randn(m, 512, device=DEVICE, dtype=torch.bfloat16)
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "1" if warm else "0")
    model(x)  # compiles; captured kernels must exist
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "1")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    fresh = torch.randn_like(x)
    x.copy_(fresh)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, model(fresh))


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs and streams")
def test_shared_inputs_of_graphs_and_streams():
    """A captured graph quantizes for itself, and integers made on one stream are not read on another."""
    from convert_to_quant.quant import sharing

    weights = [torch.zeros(8, 512, dtype=torch.int8, device=DEVICE) for _ in range(2)]
    x = torch.randn(64, 512, device=DEVICE)

    def read():
        return [sharing.quantized(x, w, 0) for w in weights]

    with torch.no_grad():
        assert read() == [None, None]
        first, second = read()
        assert first[0] is second[0]
        sharing.quantized(x, weights[0], 0)
        with torch.cuda.stream(torch.cuda.Stream()):
            assert sharing.quantized(x, weights[1], 0) is None
        sharing.quantized(x, weights[0], 0)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            assert sharing.quantized(x, weights[1], 0) is None


def test_compiles_to_one_graph():
    model = _linear()
    x = torch.randn(64, 512, device=DEVICE, dtype=torch.bfloat16)
    want = model(x)
    assert torch.equal(torch.compile(model, fullgraph=True)(x), want)


def test_scales_equal_the_cpu_bit_for_bit():
    x = torch.randn(4096, 256)
    here, there = kernels.quantize_rowwise(x), kernels.quantize_rowwise(x.to(DEVICE))
    with kernels.force_eager():
        twin = kernels.quantize_rowwise(x.to(DEVICE))
    for a, b, c in zip(here, there, twin, strict=True):
        assert torch.equal(a, b.cpu())
        assert torch.equal(a, c.cpu())
