"""The layout-op registry: a layout and its handlers as a user writes them."""

import io
import logging

import pytest
import torch
import torch.nn.functional as F

from convert_to_quant.comfy.quant_ops import (
    LAYOUTS,
    QUANT_ALGOS,
    QuantizedLayout,
    QuantizedTensor,
    TensorWiseINT8Layout,
    register_generic_util,
    register_layout_op,
)
from convert_to_quant.quant import dispatch

aten = torch.ops.aten
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """What a test registers, and what it logs, is its own."""
    for table in ("_LAYOUT_OPS", "_GENERIC_OPS"):
        monkeypatch.setattr(dispatch, table, dict(getattr(dispatch, table)))
    monkeypatch.setattr(dispatch, "_REPORTED", set())
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


def answer(value: int):
    """A handler that gives itself away."""
    return lambda func, args, kwargs: torch.tensor(value)


def define_custom() -> list[str]:
    """The documented user code; returns the list in which its handler notes its calls."""
    calls = []

    class MyCustomLayout(QuantizedLayout):
        @classmethod
        def quantize(cls, tensor, scale=None, dtype=torch.int8, **kwargs):
            orig_dtype = tensor.dtype
            if scale is None:
                scale = tensor.abs().max() / 127
            qdata = (tensor / scale).round().clamp(-127, 127).to(dtype)
            return qdata, {"scale": scale, "orig_dtype": orig_dtype}

        @staticmethod
        def dequantize(qdata, scale, orig_dtype, **kwargs):
            return qdata.to(orig_dtype) * scale

    @register_layout_op(torch.ops.aten.linear.default, "MyCustomLayout")
    def my_custom_linear(func, args, kwargs):
        calls.append(func)
        input_tensor, weight = args[0], args[1]
        bias = args[2] if len(args) > 2 else None
        if isinstance(weight, QuantizedTensor):
            weight = weight.dequantize()
        return torch.nn.functional.linear(input_tensor, weight, bias)

    return calls


@pytest.mark.parametrize("mode", MODES)
def test_user_example(mode):
    calls = define_custom()
    w, x, bias = torch.randn(8, 16), torch.randn(3, 16), torch.randn(8)
    with mode():
        q = QuantizedTensor.from_float(w, "MyCustomLayout")
        got = torch.nn.functional.linear(x, q, bias)
    assert calls == [aten.linear.default]
    assert torch.equal(got, F.linear(x, q.dequantize(), bias))
    assert (q.dequantize() - w).abs().max() <= q._layout_params["scale"] * 0.5001


@pytest.mark.parametrize("mode", MODES)
def test_user_example_in_a_module(mode):
    calls = define_custom()
    module = torch.nn.Linear(16, 8)
    module.weight = torch.nn.Parameter(
        QuantizedTensor.from_float(module.weight, "MyCustomLayout"), requires_grad=False
    )
    with mode():
        module(torch.randn(3, 16))
    assert len(calls) == 1


def test_user_example_is_differentiable():
    define_custom()
    q = QuantizedTensor.from_float(torch.randn(8, 16), "MyCustomLayout")
    x = torch.randn(3, 16, requires_grad=True)
    F.linear(x, q).sum().backward()
    torch.testing.assert_close(x.grad, q.dequantize().sum(0).expand(3, 16))


def test_user_layout_has_the_generic_ops():
    define_custom()
    q = QuantizedTensor.from_float(torch.randn(8, 16), "MyCustomLayout")
    assert torch.equal(q.clone(), q)
    assert q.to(torch.bfloat16).dequantize().dtype == torch.bfloat16
    assert torch.equal(torch.empty_like(q).copy_(q), q)
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), q)
    assert torch.equal(q.t(), q.dequantize().t()), "it never said it can be transposed: dequantized"
    want = QuantizedTensor.from_float(q.dequantize() + 1, "MyCustomLayout")
    assert torch.equal(q.add_(1), want)


def test_options_reach_the_layout():
    define_custom()
    q = QuantizedTensor.from_float(
        torch.randn(8, 16), "MyCustomLayout", scale=torch.tensor(0.5), dtype=torch.int16
    )
    assert q._qdata.dtype == torch.int16
    assert q._layout_params["scale"] == 0.5


def test_layout_whose_integers_have_another_shape():
    class PackedLayout(QuantizedLayout):
        @classmethod
        def quantize(cls, tensor):
            signs = (tensor > 0).to(torch.uint8).view(-1, 8)
            bits = (signs << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
            return bits, {"scale": tensor.abs().mean(), "orig_dtype": tensor.dtype}

        @staticmethod
        def dequantize(qdata, scale, orig_dtype, orig_shape):
            bits = (qdata[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
            return ((bits.float() * 2 - 1) * scale).to(orig_dtype).view(orig_shape)

    w = torch.randn(4, 16)
    q = QuantizedTensor.from_float(w, PackedLayout)
    assert (q.shape, q._qdata.shape) == ((4, 16), (8,))
    assert torch.equal(q.dequantize().sign(), w.sign())
    assert torch.equal(F.linear(torch.eye(16), q), q.dequantize().t())
    assert q.clone().shape == (4, 16)


def test_defining_a_layout_registers_it():
    class Another(QuantizedLayout):
        pass

    assert LAYOUTS["Another"] is Another
    with pytest.raises(
        TypeError, match=r"Another must define the classmethod quantize\(tensor, \*\*options\)"
    ):
        QuantizedTensor.from_float(torch.zeros(2, 2), "Another")
    with pytest.raises(TypeError, match="must define the static method dequantize"):
        QuantizedTensor(torch.zeros(2, 2), "Another", {}).dequantize()


def test_handler_by_class_name_or_packet_and_the_last_one_wins():
    define_custom()
    q = QuantizedTensor.from_float(torch.randn(8, 16), "MyCustomLayout")
    register_layout_op(aten.neg.default, LAYOUTS["MyCustomLayout"])(answer(1))
    assert torch.neg(q) == 1
    register_layout_op(aten.neg, "MyCustomLayout")(answer(2))
    assert torch.neg(q) == 2
    register_layout_op(aten.linear, "MyCustomLayout")(answer(3))
    assert F.linear(torch.randn(2, 16), q) == 3


def test_handler_returns_the_function_it_was_given():
    def handler(func, args, kwargs):
        return "x"

    assert register_layout_op(aten.neg.default, "Later")(handler) is handler
    assert register_generic_util(aten.neg.default)(handler) is handler


def test_handler_may_come_before_its_layout():
    register_layout_op(aten.neg.default, "LateLayout")(answer(4))

    class LateLayout(TensorWiseINT8Layout):
        pass

    assert torch.neg(QuantizedTensor.from_float(torch.randn(2, 4), LateLayout)) == 4


def test_generic_handler_serves_layouts_without_their_own():
    define_custom()
    register_generic_util(aten.neg.default)(answer(5))
    register_layout_op(aten.neg.default, "MyCustomLayout")(answer(6))
    w = torch.randn(8, 16)
    assert torch.neg(QuantizedTensor.from_float(w, "TensorWiseINT8Layout")) == 5
    assert torch.neg(QuantizedTensor.from_float(w, "MyCustomLayout")) == 6


def test_handler_sees_keywords():
    seen = {}

    @register_layout_op(aten.sum.dim_IntList, TensorWiseINT8Layout)
    def handler(func, args, kwargs):
        seen.update(kwargs, args=args[1:])
        return func(args[0].dequantize(), *args[1:], **kwargs)

    q = QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout")
    assert torch.equal(q.sum(0, dtype=torch.float64), q.dequantize().sum(0, dtype=torch.float64))
    assert seen["dtype"] == torch.float64
    assert seen["args"][0] == [0]


def test_handler_of_a_custom_op():
    """Any dispatcher op, not only aten's, reaches the handler."""
    register_layout_op(torch.ops.convert_to_quant.rotate.default, TensorWiseINT8Layout)(answer(7))
    q = QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout")
    assert torch.ops.convert_to_quant.rotate(q, 16) == 7


def test_error_in_a_handler_is_not_hidden():
    @register_layout_op(aten.neg.default, TensorWiseINT8Layout)
    def broken(func, args, kwargs):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        torch.neg(QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout"))


def test_fallback_is_said_once_for_each_op_and_layout(caplog):
    w = torch.randn(8, 16)
    row, block = (
        QuantizedTensor.from_float(w, "TensorWiseINT8Layout"),
        QuantizedTensor.from_float(w, "BlockWiseINT8Layout"),
    )
    with caplog.at_level(logging.WARNING):
        for q in (row, row, block, row.clone(), block):
            assert torch.equal(torch.sigmoid(q), torch.sigmoid(q.dequantize()))
        torch.tanh(row)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 3
    assert said[0].startswith("aten.sigmoid.default has no handler for TensorWiseINT8Layout: dequantizing")
    assert "BlockWiseINT8Layout" in said[1]
    assert "aten.tanh.default" in said[2]


def test_handled_ops_say_nothing(caplog):
    q = QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout", rotation=16)
    x = torch.randn(3, 16)
    with caplog.at_level(logging.DEBUG):
        F.linear(x, q)
        torch.addmm(torch.zeros(8), x, q.t())
        x @ q.T
        F.gelu(q.view(2, 4, 16))
        q.clone().add_(torch.ones(8, 16)).detach().to(torch.bfloat16).copy_(q)
    assert not caplog.records


def test_fallback_of_several_outputs_and_lists():
    q = QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout")
    values, _ = q.max(dim=1)
    assert torch.equal(values, q.dequantize().max(dim=1).values)
    assert torch.equal(torch.cat([q, q]), torch.cat([q.dequantize()] * 2))
    assert [type(t) for t in torch.chunk(q, 2, dim=1)] == [torch.Tensor] * 2


def test_fallback_writes_back_only_what_was_changed():
    a = QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout")
    b = QuantizedTensor.from_float(torch.randn(8, 16), "TensorWiseINT8Layout")
    kept, want = b.clone(), a.requantize(a.dequantize() * b.dequantize())
    assert a.mul_(b) is a
    assert torch.equal(a, want)
    assert torch.equal(b, kept)


def test_table_of_formats():
    for name, entry in QUANT_ALGOS.items():
        assert entry["storage_t"].itemsize == 1, name
        assert entry["comfy_tensor_layout"] in LAYOUTS, name
    integers = {n for n, e in QUANT_ALGOS.items() if e["storage_t"] == torch.int8}
    assert integers >= {"int8_tensorwise", "int8_blockwise", "asym_w4a8_int8", "convrot_w4a4"}
