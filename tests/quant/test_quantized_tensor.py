"""QuantizedTensor: stands where a float weight stood, in every layout."""

import copy
import io
import pickle
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from inputs import FLOATS, heavy, short
from torch import nn

from convert_to_quant import kernels
from convert_to_quant.comfy.quant_ops import QuantizedTensor

N, K = 48, 64


class Case(NamedTuple):
    layout: str
    options: dict

    def make(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> QuantizedTensor:
        return QuantizedTensor.from_float(heavy(N, K, dtype=dtype, seed=seed), self.layout, **self.options)


CASES = {
    "row": Case("TensorWiseINT8Layout", {}),
    "rotated": Case("TensorWiseINT8Layout", {"rotation": 16}),
    "tensor": Case("TensorWiseINT8Layout", {"scaling": "tensor"}),
    "tensor rotated": Case("TensorWiseINT8Layout", {"scaling": "tensor", "rotation": 64}),
    "block": Case("BlockWiseINT8Layout", {"block_size": 16}),
    "axis": Case("AxisWiseINT8Layout", {}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


@pytest.fixture
def q(case) -> QuantizedTensor:
    return case.make()


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Equal in every stored bit and plain parameter, dtype included."""
    params, others = a._layout_params, b._layout_params
    return (
        type(a) is type(b) is QuantizedTensor
        and (a._layout_type, a.dtype, a.shape) == (b._layout_type, b.dtype, b.shape)
        and torch.equal(a._qdata, b._qdata)
        and params.keys() == others.keys()
        and all(
            torch.equal(v, others[k]) if isinstance(v, torch.Tensor) else v == others[k]
            for k, v in params.items()
        )
    )


def int8_linear(x: torch.Tensor, q: QuantizedTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What the fused op gives for this weight."""
    scale = q._layout_params["scale"]
    scale = scale.unsqueeze(-1) if q._layout_type == "AxisWiseINT8Layout" else scale
    return kernels.int8_linear(x, q._qdata, scale, bias, q._layout_params.get("rotation", 0))


# What it is


def test_looks_like_the_float_tensor(case, dtype):
    q = case.make(dtype)
    assert (q.shape, q.dtype, q.device.type, q.dim(), q.numel()) == ((N, K), dtype, "cpu", 2, N * K)
    assert q.is_contiguous()
    assert not q.requires_grad
    back = q.dequantize()
    assert type(back) is torch.Tensor
    assert (back.shape, back.dtype) == (q.shape, q.dtype)


@pytest.mark.parametrize(("name", "floor"), list(zip(CASES, (31, 34, 21, 28, 23, 31), strict=True)))
def test_dequantize_is_close(name, floor):
    """SQNR floors one dB below what is measured for this weight."""
    w = heavy(N, K)
    error = CASES[name].make().dequantize() - w
    assert 10 * torch.log10(w.square().sum() / error.square().sum()) > floor


def test_wraps_existing_integers():
    integers, scale = torch.ones(3, 4, dtype=torch.int8), torch.full((3, 1), 0.5)
    q = QuantizedTensor(integers, "TensorWiseINT8Layout", {"scale": scale, "orig_dtype": torch.bfloat16})
    assert q._qdata is integers
    assert torch.equal(q.dequantize(), torch.full((3, 4), 0.5, dtype=torch.bfloat16))


@pytest.mark.parametrize("scaling", ["row", "tensor"])
@pytest.mark.parametrize("rotation", [0, 16])
def test_from_float_is_the_op(scaling, rotation, dtype):
    w = heavy(N, K, dtype=dtype)
    q = QuantizedTensor.from_float(w, "TensorWiseINT8Layout", scaling=scaling, rotation=rotation)
    op = kernels.quantize_rowwise if scaling == "row" else kernels.quantize_tensorwise
    integers, scale = op(w, rotation=rotation)
    assert torch.equal(q._qdata, integers)
    assert torch.equal(q._layout_params["scale"], scale)


def test_from_float_of_a_parameter_keeps_no_graph(case):
    q = QuantizedTensor.from_float(nn.Parameter(heavy(N, K)), case.layout, **case.options)
    assert not q.requires_grad
    assert not q._layout_params["scale"].requires_grad


def test_static_scale():
    q = QuantizedTensor.from_float(
        heavy(N, K), "TensorWiseINT8Layout", scaling="tensor", scale=torch.tensor(0.01)
    )
    assert q._layout_params["scale"] == 0.01
    assert q._qdata.abs().max() == 127


def test_repr_names_layout_and_options():
    assert repr(CASES["rotated"].make(torch.bfloat16)) == (
        "QuantizedTensor((48, 64), TensorWiseINT8Layout, rotation=16, dtype=torch.bfloat16, device=cpu)"
    )


@pytest.mark.parametrize(
    ("layout", "options", "error", "match"),
    [
        ("NoSuchLayout", {}, ValueError, "unknown layout 'NoSuchLayout'; known: .*TensorWiseINT8Layout"),
        (
            "TensorWiseINT8Layout",
            {"scaling": "column"},
            ValueError,
            "scaling must be 'row' or 'tensor', not 'column'",
        ),
        ("TensorWiseINT8Layout", {"rotation": 256}, ValueError, "256 does not divide 64 columns"),
        ("BlockWiseINT8Layout", {"block_size": 100}, ValueError, "power of two, not 100"),
        ("AxisWiseINT8Layout", {"rotation": 16}, TypeError, "rotation"),
    ],
)
def test_refusals(layout, options, error, match):
    with pytest.raises(error, match=match):
        QuantizedTensor.from_float(heavy(N, K), layout, **options)


# Linear algebra


@pytest.mark.parametrize("rows", [(5,), (2, 3), (), (0,), (2, 0)], ids=short)
def test_linear_runs_the_fused_op(q, rows, dtype):
    x, bias = torch.randn(*rows, K).to(dtype), torch.randn(N).to(dtype)
    assert torch.equal(F.linear(x, q), int8_linear(x, q))
    assert torch.equal(F.linear(x, q, bias), int8_linear(x, q, bias))
    assert torch.equal(F.linear(x, q, bias=bias), int8_linear(x, q, bias))
    assert torch.equal(F.linear(input=x, weight=q, bias=bias), int8_linear(x, q, bias))
    assert torch.equal(torch.ops.aten.linear(x, q, bias), int8_linear(x, q, bias))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_products_run_the_fused_op_in_every_grad_mode(q, mode):
    x, bias = torch.randn(5, K), torch.randn(N)
    with mode():
        assert torch.equal(F.linear(x, q, bias), int8_linear(x, q, bias))
        assert torch.equal(torch.mm(x, q.t()), int8_linear(x, q))
        assert torch.equal(torch.addmm(bias, x, q.t()), int8_linear(x, q, bias))
        assert torch.equal(x @ q.T, int8_linear(x, q))
        assert torch.equal(torch.matmul(x.view(1, 5, K), q.mT), int8_linear(x, q)[None])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_in", [torch.enable_grad, torch.inference_mode])
def test_views_and_copies_in_every_grad_mode(case, mode, made_in):
    with made_in():
        q = case.make()
    with mode():
        for got in (q.detach(), q.view(N, K), q.t().t(), q.clone(), q.to(torch.bfloat16).float()):
            assert isinstance(got, QuantizedTensor)
            assert torch.equal(got, q)
        assert torch.equal(q.view(6, 8, K).dequantize(), q.dequantize().view(6, 8, K))


@pytest.mark.parametrize(
    "transpose",
    [
        lambda q: q.t(),
        lambda q: q.T,
        lambda q: q.mT,
        lambda q: q.transpose(0, 1),
        lambda q: q.transpose(-1, -2),
        lambda q: q.permute(1, 0),
    ],
    ids=["t()", "T", "mT", "transpose(0, 1)", "transpose(-1, -2)", "permute(1, 0)"],
)
def test_every_way_to_transpose_keeps_the_integers(q, transpose):
    qt = transpose(q)
    assert isinstance(qt, QuantizedTensor)
    assert qt._qdata.data_ptr() == q._qdata.data_ptr()
    assert qt.shape == (K, N)
    assert torch.equal(qt.dequantize(), q.dequantize().t())
    x = torch.randn(5, K)
    assert torch.equal(x @ qt, int8_linear(x, q))
    assert same(
        transpose(qt), QuantizedTensor(q._qdata, q._layout_type, {**q._layout_params, "transposed": False})
    )


def test_matmul_of_more_axes(q):
    x = torch.randn(2, 3, K)
    assert torch.equal(x @ q.t(), int8_linear(x, q))


def test_addmm_with_factors_or_a_matrix_is_exact_torch(q):
    x, bias = torch.randn(5, K), torch.randn(5, N)
    assert torch.equal(torch.addmm(bias, x, q.t()), torch.addmm(bias, x, q.dequantize().t()))
    want = torch.addmm(bias[0], x, q.dequantize().t(), beta=0.5, alpha=2)
    assert torch.equal(torch.addmm(bias[0], x, q.t(), beta=0.5, alpha=2), want)


def test_weight_on_the_other_side_is_dequantized(q):
    y = torch.randn(K, 5)
    assert torch.equal(torch.mm(q, y), torch.mm(q.dequantize(), y))
    assert torch.equal(F.linear(q, torch.randn(7, K).fill_(1)), F.linear(q.dequantize(), torch.ones(7, K)))
    assert torch.equal(F.linear(y.t(), q, None), F.linear(y.t(), q))


def test_quantized_input_and_bias_are_dequantized(q):
    x = QuantizedTensor.from_float(torch.randn(5, K), "TensorWiseINT8Layout")
    bias = QuantizedTensor.from_float(torch.randn(N), "TensorWiseINT8Layout")
    assert torch.equal(F.linear(x, q, bias), F.linear(x.dequantize(), q, bias.dequantize()))


@pytest.mark.parametrize("bias_dtype", FLOATS, ids=short)
def test_gradient_for_the_input(q, bias_dtype, dtype):
    """As if through the dequantized weight; the bias may have another dtype, as without a gradient."""
    x = torch.randn(2, 3, K).to(dtype).requires_grad_()
    bias = torch.randn(N).to(bias_dtype).requires_grad_()
    y = F.linear(x, q, bias)
    assert y.dtype == dtype
    up = torch.randn_like(y)
    y.backward(up)
    dense = q.dequantize().to(dtype)
    torch.testing.assert_close(x.grad, up @ dense, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    torch.testing.assert_close(bias.grad, up.sum((0, 1)).to(bias_dtype), rtol=0.05, atol=0.05)
    assert (bias.grad.dtype, x.grad.dtype) == (bias_dtype, dtype)


def test_gradient_through_mm_and_addmm(q):
    x, bias = torch.randn(5, K, requires_grad=True), torch.randn(N, requires_grad=True)
    (torch.mm(x, q.t()).sum() + torch.addmm(bias, x, q.t()).sum()).backward()
    torch.testing.assert_close(x.grad, 2 * q.dequantize().sum(0).expand(5, K), rtol=1e-5, atol=1e-5)
    assert torch.equal(bias.grad, torch.full((N,), 5.0))


# Shapes


def test_view_keeps_what_it_can(q):
    shape = (6, 8, K)
    for view in (q.view(shape), q.reshape(shape), q.view(6, -1, K)):
        assert view.shape == shape
        assert torch.equal(view.dequantize(), q.dequantize().view(shape))
        assert isinstance(view, QuantizedTensor) == (q._layout_type == "TensorWiseINT8Layout")
    assert same(q.view(N, K), q)
    assert torch.equal(q.view(-1), q.dequantize().view(-1)), "flattened"


def test_view_of_one_scale_for_all():
    q = CASES["tensor"].make()
    for shape in ((K, N), (-1,), (2, 2, N * K // 4)):
        view = q.view(shape)
        assert isinstance(view, QuantizedTensor)
        assert torch.equal(view.dequantize(), q.dequantize().view(shape))


def test_view_that_would_tear_rotation_groups_is_dequantized():
    q = CASES["tensor rotated"].make()
    view = q.view(2 * N, K // 2)
    assert not isinstance(view, QuantizedTensor)
    assert torch.equal(view, q.dequantize().view(2 * N, K // 2))


def test_view_of_a_wrong_size_is_torchs_error(q):
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        q.view(7, 7)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_stays_in_the_layout(q, approximate):
    got = F.gelu(q, approximate=approximate)
    assert isinstance(got, QuantizedTensor)
    assert same(got, q.requantize(F.gelu(q.dequantize(), approximate=approximate)))


# In place


@pytest.mark.parametrize("alpha", [1, 0.5])
def test_add_merges_in_the_same_layout(q, alpha):
    delta = torch.randn(N, K) * 0.1
    want = q.requantize(q.dequantize() + alpha * delta)
    integers = q._qdata
    assert q.add_(delta, alpha=alpha) is q
    assert same(q, want)
    assert q._qdata is integers, "in place: tensors that share the storage see the change"
    q += delta
    assert isinstance(q, QuantizedTensor)


def test_add_merges_in_float32(case):
    """Half precision between the two roundings to int8 would lose half a step here and there."""
    q = case.make(torch.bfloat16)
    delta = torch.randn(N, K, dtype=torch.bfloat16) * 0.1
    exact = case.layout, q._qdata, {**q._layout_params, "orig_dtype": torch.float32}
    wide = QuantizedTensor(exact[1].clone(), exact[0], copy.deepcopy(exact[2]))
    wide.add_(delta.float())
    q.add_(delta)
    assert q.dtype == torch.bfloat16
    assert torch.equal(q._qdata, wide._qdata)
    assert torch.equal(q._layout_params["scale"], wide._layout_params["scale"])


def test_add_of_a_quantized_delta(q, case):
    delta = case.make(seed=3)
    want = q.requantize(q.dequantize() + delta.dequantize())
    assert same(q.add_(delta), want)


def test_add_to_a_float_tensor(q):
    x = torch.randn(N, K)
    want = x + q.dequantize()
    assert torch.equal(x.add_(q), want)
    assert type(x) is torch.Tensor


def test_add_to_the_transposed(q):
    delta = torch.randn(K, N) * 0.1
    want = q.requantize(q.dequantize() + delta.t())
    assert torch.equal(q.t().add_(delta).dequantize(), want.dequantize().t())
    assert torch.equal(q.dequantize(), want.dequantize()), "t() shares the storage"


def test_other_in_place_ops_are_written_back(q):
    want = q.requantize(q.dequantize().mul(1.5))
    other = q.detach()
    assert q.mul_(1.5) is q
    assert same(q, want)
    assert same(other, want)


def test_out_argument_is_written_back(q):
    a, b = torch.randn(N, K), torch.randn(N, K)
    torch.sub(a, b, out=q)
    assert same(q, q.requantize(a - b))


def test_scale_of_one_element_in_two_axes_survives_a_merge():
    """Files hold per-tensor scales as [1, 1]."""
    params = {"scale": torch.full((1, 1), 0.1), "orig_dtype": torch.float32, "rotation": 0}
    q = QuantizedTensor(torch.ones(N, K, dtype=torch.int8), "TensorWiseINT8Layout", params)
    delta = torch.randn(N, K)
    want = q.dequantize() + delta
    q.add_(delta)
    assert (q.dequantize() - want).abs().max() <= want.abs().max() / 127 / 2 * 1.01
    assert q._layout_params["scale"].shape == (1, 1)
    assert torch.equal(F.linear(torch.eye(K), q), int8_linear(torch.eye(K), q))


def test_requantize_keeps_layout_granularity_rotation_and_dtype(case, dtype):
    w = heavy(N, K, seed=5)
    want = QuantizedTensor.from_float(w, case.layout, **case.options)
    assert same(case.make(dtype).requantize(w), want.to(dtype))


def test_quantizing_what_was_dequantized_changes_no_integer(q):
    assert torch.equal(q.requantize(q.dequantize())._qdata, q._qdata)


# Copying, moving, storing


def test_copies_are_independent(q):
    before = q.dequantize()
    copies = [q.clone(), copy.deepcopy(q), copy.copy(q.clone()), pickle.loads(pickle.dumps(q))]
    for c in copies:
        assert same(c, q)
    copies[0].zero_()
    copies[1].zero_()
    copies[3].zero_()
    assert torch.equal(q.dequantize(), before)


@pytest.mark.parametrize(
    "alias",
    [
        lambda q: q.detach(),
        lambda q: q.data,
        lambda q: q.view(N, K),
        lambda q: q.cpu(),
        lambda q: q.contiguous(),
        lambda q: nn.Parameter(q, requires_grad=False),
    ],
    ids=["detach", "data", "view", "cpu", "contiguous", "Parameter"],
)
def test_aliases_share_the_storage(q, alias):
    other = alias(q)
    assert same(other, q)
    assert other._qdata.data_ptr() == q._qdata.data_ptr()


def test_deepcopy_keeps_parameters_apart_and_frozen(q):
    module = nn.Linear(K, N, bias=False)
    module.weight = nn.Parameter(q, requires_grad=False)
    twin = copy.deepcopy(module)
    assert isinstance(twin.weight, nn.Parameter)
    assert not twin.weight.requires_grad
    twin.weight.data.zero_()
    assert q._qdata.any()


@pytest.mark.parametrize("source", ["float", "same kind", "other layout", "row", "scalar"])
def test_copy_(q, case, source):
    integers = q._qdata
    value = {
        "float": heavy(N, K, seed=4),
        "same kind": case.make(seed=4),
        "other layout": QuantizedTensor.from_float(heavy(N, K, seed=4), "BlockWiseINT8Layout", block_size=4),
        "row": torch.randn(K),
        "scalar": torch.tensor(3.0),
    }[source]
    dense = value.dequantize() if isinstance(value, QuantizedTensor) else value
    want = q.requantize(dense.expand(N, K))
    assert q.copy_(value) is q
    assert q._qdata is integers
    if source == "same kind":
        assert same(q, value), "bytes are copied, nothing is rounded again"
    else:
        assert same(q, want)


def test_copy_into_a_float_tensor(q):
    x = torch.empty(N, K)
    assert torch.equal(x.copy_(q), q.dequantize())


def test_copy_between_dtypes_keeps_the_target_dtype(case):
    target, source = case.make(torch.bfloat16), case.make(torch.float32, seed=2)
    target.copy_(source)
    assert target.dtype == torch.bfloat16
    assert torch.equal(target._qdata, source._qdata)


@pytest.mark.parametrize("to", FLOATS, ids=short)
def test_to_another_float_dtype_keeps_the_integers(case, to, dtype):
    q = case.make(dtype)
    got = q.to(to)
    assert got.dtype == to == got.dequantize().dtype
    assert torch.equal(got._qdata, q._qdata)
    assert got._layout_params["scale"].dtype == torch.float32
    assert torch.equal(got.to(dtype).dequantize(), q.dequantize())


def test_to_float64_and_to_integers(q):
    assert torch.equal(q.double().dequantize(), q.dequantize().double())
    assert torch.equal(q.to(torch.int32), q.dequantize().to(torch.int32))


def test_to_is_no_copy_unless_asked(q):
    assert q.to(torch.float32) is q
    assert q.to("cpu") is q
    assert q.to("cpu", copy=True)._qdata.data_ptr() != q._qdata.data_ptr()


def test_to_meta(q):
    m = q.to("meta")
    assert (m.device.type, m._qdata.device.type, m._layout_params["scale"].device.type) == ("meta",) * 3
    assert m.dequantize().shape == (N, K)
    assert F.linear(torch.empty(2, K, device="meta"), m).shape == (2, N)


def test_empty_like(q):
    e = torch.empty_like(q)
    assert isinstance(e, QuantizedTensor)
    assert e._qdata.data_ptr() != q._qdata.data_ptr()
    assert same(e.copy_(q), q)
    assert torch.empty_like(q, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert torch.empty_like(q, device="meta").device.type == "meta"
    assert type(torch.empty_like(q, dtype=torch.int64)) is torch.Tensor


def test_share_memory(q):
    assert q.share_memory_() is q
    assert q._qdata.is_shared()
    assert q._layout_params["scale"].is_shared()
    assert q.is_shared()


def test_equal(q, case):
    assert torch.equal(q, q.clone())
    assert torch.equal(q, q.dequantize())
    assert not torch.equal(q, case.make(seed=1))
    changed = q.clone()
    changed._layout_params["scale"].mul_(2)
    assert not torch.equal(q, changed)


def test_save_and_load_weights_only(case, dtype):
    q = case.make(dtype)
    file = io.BytesIO()
    torch.save({"w": q, "t": q.t()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert same(loaded["w"], q)
    assert torch.equal(loaded["t"].dequantize(), q.dequantize().t())


def linear(weight: torch.Tensor) -> nn.Linear:
    module = nn.Linear(K, N)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def test_state_dict_round_trip(q, case):
    source, target, assigned, plain = linear(q), linear(case.make(seed=7)), nn.Linear(K, N), nn.Linear(K, N)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    target.load_state_dict(state)
    assert same(target.weight, q)
    assigned.load_state_dict(state, assign=True)
    assert same(assigned.weight, q)
    assert isinstance(assigned.weight, nn.Parameter)
    plain.load_state_dict(state)
    assert torch.equal(plain.weight, q.dequantize())
    target.load_state_dict({**state, "weight": torch.ones(N, K)})
    assert same(target.weight, q.requantize(torch.ones(N, K)))


def test_module_to(q):
    module = linear(q).to(torch.bfloat16)
    assert isinstance(module.weight, nn.Parameter)
    assert (module.weight.dtype, module.weight.requires_grad) == (torch.bfloat16, False)
    assert torch.equal(module.weight._qdata, q._qdata)
    assert module(torch.randn(3, K, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert linear(q).half().weight.dtype == torch.float16
    assert linear(q).to("meta").weight.device.type == "meta"


def test_module_forward_and_share_memory(q):
    module, x = linear(q), torch.randn(3, K)
    want = int8_linear(x, q, module.bias.detach())
    with torch.no_grad():
        assert torch.equal(module(x), want)
        assert torch.equal(module.share_memory()(x), want)


def test_flatten_and_unflatten(q):
    names, context = q.__tensor_flatten__()
    inner = {n: getattr(q, n) for n in names}
    assert set(inner) == {"_qdata", "_param_scale"}
    hash(context)
    assert same(QuantizedTensor.__tensor_unflatten__(inner, context, q.shape, q.stride()), q)


# torch.compile


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compile_a_module(q, mode):
    """With gradients: `test_compiled_gradient`."""
    module = linear(q)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with mode():
        for rows in (5, 3):
            x = torch.randn(rows, K)
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_a_function_of_the_weight(q):
    def f(x, q, bias):
        return F.linear(x, q, bias) + torch.addmm(bias, x, q.t()) + x @ q.t() + q.dequantize().sum()

    x, bias = torch.randn(5, K), torch.randn(N)
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, q, bias), f(x, q, bias), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_gradient(q):
    module = linear(q)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, K, requires_grad=True)
    (got,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (want,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_function_returns_a_quantized_tensor(q):
    got = torch.compile(lambda q: q.detach().to(torch.bfloat16), backend="aot_eager", fullgraph=True)(q)
    assert same(got, q.to(torch.bfloat16))
