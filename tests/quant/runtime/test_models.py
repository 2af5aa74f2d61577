"""Quantized models in torch programs: quantizing in place, compiling, copying, moving, adapters."""

import copy
import io
import warnings
from types import SimpleNamespace

import pytest
import torch
from operations import calls
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.formats.choose import written
from convert_to_quant.runtime import Int8Linear, quantize_model

LAYOUTS = ["int8_tensorwise", "int8_blockwise"]


class Block(nn.Module):
    """A transformer-like block: fused projection, reshape, GELU, residual."""

    def __init__(self, d: int = 128):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.tiny = nn.Linear(d, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return torch.cat((x, self.tiny(x)), -1)


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval().requires_grad_(False)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(2))


def sqnr(got: torch.Tensor, want: torch.Tensor) -> float:
    noise = (got.double() - want.double()).square().sum()
    return float(10 * torch.log10(want.double().square().sum() / noise))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantizing_keeps_modules_and_nearly_the_output(block, x, layout):
    """Classes, hooks and names stay; what is left float is said with its reason."""
    want, seen = block(x), []
    block.up.register_forward_hook(lambda *a: seen.append(1))
    report = quantize_model(block, layout, skip=["out"])
    assert type(block.up) is nn.Linear
    assert isinstance(block.up.weight, QuantizedTensor)
    assert isinstance(block.up.weight, nn.Parameter)
    assert report.skipped == {"out": "asked to skip", "tiny": "smaller than 32"}
    assert sqnr(block(x), want) > 30
    assert seen == [1]
    assert quantize_model(block).quantized.keys() == {"out"}, "quantizing twice touches nothing twice"


def test_skip_takes_a_function_and_shared_weights_are_left(block):
    block.again = nn.Linear(128, 128, bias=False)
    block.again.weight = block.out.weight
    report = quantize_model(block, skip=lambda name, module: module.out_features > 300)
    assert report.quantized.keys() == {"out", "down"}
    assert report.skipped["again"] == "shares its weight with out.weight"


def test_nan_is_refused_by_name(block):
    block.up.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="up: the weight holds NaN"):
        quantize_model(block)
    with pytest.raises(ValueError, match="qkv: rotation group 256 does not divide 128"):
        quantize_model(Block(), rotation=256)


@pytest.mark.parametrize("form", written(), ids=lambda f: f.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_every_format_refuses_nan_and_inf(form, bad):
    linear = nn.Linear(256, 128)
    linear.weight.data[3, 5] = bad
    with pytest.raises(ValueError, match="the weight holds NaN or Inf"):
        quantize_model(linear, form.name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_breaks(block, x, layout, dynamic):
    """fullgraph=True: one graph, and compiled equals eager to the bit; other lengths work too."""
    quantize_model(block, layout)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with torch.no_grad():
        for shape in ((2, 9, 128), (1, 5, 128), (1, 1, 128)):
            y = torch.randn(shape)
            assert torch.equal(compiled(y), block(y))
    with torch.no_grad():
        assert torch._dynamo.explain(block)(x).graph_break_count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_in_a_cuda_graph(block, x):
    """Captured once, replayed with new inputs: the same as eager."""
    quantize_model(block)
    block.cuda()
    static = x.cuda()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                block(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = block(static)
        static.copy_(torch.randn_like(static))
        graph.replay()
        assert torch.equal(out, block(static))


def bits(model: nn.Module) -> list[torch.Tensor]:
    q = [m.weight for m in model.modules() if isinstance(getattr(m, "weight", None), QuantizedTensor)]
    return [t for w in q for t in (w._qdata, w._layout_params["scale"])]


def through_state_dict(model: nn.Module, assign: bool) -> nn.Module:
    other = Block().eval()
    if not assign:
        quantize_model(other)
    other.load_state_dict(model.state_dict(), assign=assign)
    return other


def through_file(model: nn.Module, whole: bool) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model if whole else model.state_dict(), buffer)
    buffer.seek(0)
    if whole:
        return torch.load(buffer, weights_only=False)
    other = Block().eval()
    other.load_state_dict(torch.load(buffer, weights_only=True), assign=True)
    return other


WAYS = {
    "deepcopy": copy.deepcopy,
    "state_dict": lambda m: through_state_dict(m, assign=False),
    "state_dict assigned": lambda m: through_state_dict(m, assign=True),
    "torch.save of the state dict": lambda m: through_file(m, whole=False),
    "torch.save of the model": lambda m: through_file(m, whole=True),
    "to(dtype) and back": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "half and float": lambda m: m.half().float(),
    "to(device)": lambda m: m.to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_layout_and_bits_survive(block, x, way):
    """Copying, saving and casting change the logical dtype at most, never an integer or a scale."""
    quantize_model(block)
    block.requires_grad_(False)
    before = [t.clone() for t in bits(block)]
    other = WAYS[way](block)
    assert [type(m) for m in other.modules()] == [type(m) for m in block.modules()]
    after = bits(other)
    assert len(after) == len(before) == 8
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    with torch.no_grad():
        assert sqnr(other(x), block(x)) > 40
    if way == "deepcopy":
        assert other.up.weight._qdata.data_ptr() != block.up.weight._qdata.data_ptr()


def test_casting_works_after_compiling(block, x):
    """torch.compile holds weak references to parameters; .to() must still get through."""
    quantize_model(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
        try:
            block.to(torch.bfloat16)
        except RuntimeError as error:
            if "Couldn't swap" in str(error) and torch.__version__ < "2.13":
                pytest.skip("this PyTorch cannot change the parameters of a compiled module")
            raise
        assert torch.equal(compiled(x.bfloat16()), block(x.bfloat16()))
    assert isinstance(block.up.weight, QuantizedTensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_offload_and_back(block, x):
    """To the GPU, to pinned memory, and back: the same bits."""
    quantize_model(block)
    before = [t.clone() for t in bits(block)]
    weight = block.up.weight
    pinned = weight.pin_memory()
    assert pinned.is_pinned()
    back = pinned.to("cuda", non_blocking=True).cpu()
    assert torch.equal(back, weight)
    block.cuda().cpu()
    assert all(torch.equal(a, b) for a, b in zip(bits(block), before, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(1, 128),
        lambda: torch.randn(128),
        lambda: torch.randn(1, 3000, 128),
        lambda: torch.randn(3, 2, 5, 128),
        lambda: torch.randn(128, 12).t(),
        lambda: torch.randn(4, 24, 128)[:, ::3],
        lambda: torch.randn(7, 128, dtype=torch.float16),
        lambda: torch.randn(7, 128, dtype=torch.bfloat16),
        lambda: torch.zeros(2, 128),
        lambda: torch.randn(0, 128),
    ],
    ids=["M=1", "1-D", "long", "batches", "transposed", "strided", "fp16", "bf16", "zeros", "empty"],
)
def test_edge_cases_of_the_input(layout, make):
    """The linear of a quantized weight against the dequantized one, whatever comes in."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(128, 96)).requires_grad_(False)
    quantize_model(linear, layout, include="*")
    x = make()
    dense = linear[0].weight.dequantize()
    want = nn.functional.linear(x.float(), dense, linear[0].bias)
    got = linear(x)
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    if x.numel() and x.abs().sum():
        assert sqnr(got, want) > 30
    else:
        assert torch.allclose(got.float(), want, atol=1e-3)


def test_no_warning_in_a_forward_pass(block, x, caplog):
    """No op of a transformer block falls back to a dequantized weight."""
    quantize_model(block)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        block(x)
    assert "dequantizing" not in caplog.text


def test_smooth_and_static_scales_ride_on_the_weight():
    """y = W (x s) / s with a static activation scale, through F.linear, Int8Linear and requantization."""
    torch.manual_seed(0)
    w, s = torch.randn(96, 64), torch.rand(64) + 0.5
    options = {"rotation": 16, "pre_quant_scale": s, "input_scale": torch.tensor(0.05)}
    q = QuantizedTensor.from_float(w, "TensorWiseINT8Layout", **options)
    x = torch.randn(5, 64)
    assert sqnr(q.dequantize(), w) > 38
    assert sqnr(nn.functional.linear(x, q), x @ w.t()) > 30
    assert torch.equal(Int8Linear.from_quantized(q)(x), nn.functional.linear(x, q))
    delta = torch.randn(96, 64) * 0.1
    q.add_(delta)
    assert sqnr(q.dequantize(), w + delta) > 38
    assert q._layout_params.keys() >= {"pre_quant_scale", "input_scale"}


@pytest.mark.parametrize("rotation", [0, 64])
def test_embedding_dequantizes_only_the_rows_it_reads(rotation, caplog):
    table = nn.Embedding(40, 64)
    want = table.weight.detach().clone()
    q = QuantizedTensor.from_float(want, "TensorWiseINT8Layout", rotation=rotation)
    table.weight = nn.Parameter(q, requires_grad=False)
    index = torch.tensor([[3, 0], [39, 3]])
    assert torch.equal(table(index), q.dequantize()[index])
    assert "dequantizing" not in caplog.text


def test_the_python_path_costs_little(monkeypatch):
    """F.linear(x, q, bias) calls few functions besides the op; bench/runtime.py measures their time."""
    from convert_to_quant.quant.layouts import int8

    constant = torch.zeros(1, 64)
    monkeypatch.setattr(int8, "ops", SimpleNamespace(int8_linear=lambda *args: constant))
    q = QuantizedTensor.from_float(torch.randn(64, 64), "TensorWiseINT8Layout", rotation=16)
    x, bias = torch.randn(1, 64), torch.zeros(64)
    with torch.inference_mode():
        counts = [calls(lambda: nn.functional.linear(x, q, bias)) for _ in range(2)]
    assert counts[-1] <= 40
