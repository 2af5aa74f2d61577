"""One quantization for the Linears that read one input: the same bits as without, and never a stale one."""

import gc
import threading
import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from inputs import heavy
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.formats import AsymW4A8Int8, ConvRotW4A4
from convert_to_quant.quant import sharing
from convert_to_quant.runtime import Int8Linear, shared_inputs

K, ROWS = 256, 20
LAYOUTS = {
    "row": ("TensorWiseINT8Layout", {"rotation": 64}),
    "tensor": ("TensorWiseINT8Layout", {"scaling": "tensor"}),
    "axis": ("AxisWiseINT8Layout", {}),
    "block": ("BlockWiseINT8Layout", {"block_size": 32}),
    "w4a8": ("W4A8Int8Layout", {"form": AsymW4A8Int8(rotation=64)}),
    "int4": ("ConvRotW4A4Layout", {"form": ConvRotW4A4(rotation=64)}),
}


@pytest.fixture(autouse=True)
def fresh():
    """Nothing learned, nothing held, no gradients wanted."""
    sharing._READS.clear()
    sharing._THREAD.last = None
    with torch.no_grad():
        yield
    sharing._THREAD.last = None


def linears(layout: str = "row", count: int = 3) -> list[nn.Linear]:
    name, options = LAYOUTS[layout]
    made = []
    for i in range(count):
        linear = nn.Linear(K, 32 + i)
        weight = QuantizedTensor.from_float(heavy(32 + i, K, seed=i), name, **options)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        made.append(linear)
    return made


def run(modules, x: torch.Tensor, between=lambda x: None) -> list[torch.Tensor]:
    """The modules' results, with something done to x after each."""
    found = []
    for m in modules:
        found.append(m(x))
        between(x)
    return found


def apart(modules, x: torch.Tensor, between=lambda x: None) -> list[torch.Tensor]:
    """What nothing shared gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVERT_TO_QUANT_SHARE", "0")
        return run(modules, x, between)


def equal(got, want) -> bool:
    return len(got) == len(want) and all(map(torch.equal, got, want))


def counted(call) -> tuple[Counter, list[torch.Tensor]]:
    """How often each op of the library ran, and what the call returned."""
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        made = call()
    start = "convert_to_quant::"
    names = [e.name.removeprefix(start) for e in profile.function_events if e.name.startswith(start)]
    return Counter(names), made


def learned(modules, rows: int = ROWS) -> None:
    run(modules, heavy(rows, K, seed=9))
    assert max(sharing._READS.values(), default=1) == len(modules)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantized_once_with_the_same_bits(layout):
    dtype = torch.bfloat16
    modules, x = linears(layout), heavy(2, ROWS, K, dtype=dtype)
    want = apart(modules, x)
    ops, first = counted(lambda: run(modules, x))
    assert ops["quantize_activations"] == 0  # who reads what is not known yet
    assert equal(first, want)
    ops, again = counted(lambda: run(modules, heavy(2, ROWS, K, dtype=dtype)))
    op = "packed_linear" if layout in ("w4a8", "int4") else "int8_linear"
    assert ops == {"quantize_activations": 1, f"{op}_prequantized": 3}
    assert equal(again, want)
    assert [m.dtype for m in again] == [dtype] * 3


def test_nothing_is_held_after_the_last_reader():
    modules = linears()
    learned(modules)
    x = heavy(ROWS, K)
    q = sharing.quantized(x, modules[0].weight._qdata, 64)
    held = weakref.ref(q[0])
    del q
    assert held() is not None
    run(modules[1:], x)
    assert held() is None


@pytest.mark.parametrize("why", ["input dies", "another input"])
def test_fewer_readers_than_before(why):
    modules = linears()
    learned(modules)
    x = heavy(ROWS, K)
    held = weakref.ref(sharing.quantized(x, modules[0].weight._qdata, 64)[0])
    if why == "input dies":
        del x
        gc.collect()
        assert held() is None
    run(modules[:1], heavy(ROWS, K, seed=1))
    assert held() is None
    run(modules[:1], heavy(ROWS, K, seed=2))
    assert list(sharing._READS.values()) == [1]


def test_the_same_input_in_the_next_forward():
    """A reader that comes again begins anew, so that counts stay those of one forward."""
    modules, x = linears(), heavy(ROWS, K)
    want = apart(modules, x)
    for _ in range(4):
        assert equal(run(modules, x), want)
    assert list(sharing._READS.values()) == [3]
    ops, _ = counted(lambda: run(modules, x))
    assert ops["quantize_activations"] == 1


CHANGES = {
    "add_": lambda x: x.add_(1),
    "row": lambda x: x[3].mul_(2),
    "view": lambda x: x.view(-1).neg_(),
    "detached": lambda x: x.detach().mul_(3),
    "copy_": lambda x: x.copy_(heavy(ROWS, K, seed=5)),
    "set_": lambda x: x.set_(heavy(ROWS, K, seed=6)),
    "data": lambda x: setattr(x, "data", heavy(ROWS, K, seed=7)),
    "out=": lambda x: torch.add(x, 1, out=x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_is_another(change):
    modules = linears()
    learned(modules)
    got = run(modules, heavy(ROWS, K), CHANGES[change])
    assert equal(got, apart(modules, heavy(ROWS, K), CHANGES[change]))


def test_rotations_blocks_and_rows():
    """Only what would be quantized alike is shared; up to 16 rows nothing is."""
    mixed = [m for layout in ("row", "tensor", "block") for m in linears(layout, 1)]
    x = heavy(ROWS, K)
    want = apart(mixed, x)
    for _ in range(3):
        assert equal(run(mixed, x), want)
    assert not sharing._READS
    few = heavy(16, K)
    for _ in range(2):
        run(linears(), few)
    assert not sharing._READS


@pytest.mark.parametrize("parameter", ["input_scale", "pre_quant_scale"])
def test_own_scales_are_not_shared(parameter):
    value = torch.tensor(0.05) if parameter == "input_scale" else torch.rand(K) + 0.5
    modules = [Int8Linear.from_linear(m, **{parameter: value}) for m in (nn.Linear(K, 32), nn.Linear(K, 32))]
    x = heavy(ROWS, K)
    want = apart(modules, x)
    for _ in range(3):
        ops, got = counted(lambda: run(modules, x))
        assert equal(got, want)
        assert ops == {"int8_linear": 2}


def test_modules_of_plain_buffers_share_too():
    modules = [Int8Linear.from_quantized(m.weight, m.bias) for m in linears()]
    learned(modules)
    x = heavy(ROWS, K)
    ops, got = counted(lambda: run(modules, x))
    assert ops["quantize_activations"] == 1
    assert equal(got, apart(modules, x))


def test_inference_tensors_only_on_a_promise():
    modules = linears()
    learned(modules)
    with torch.inference_mode():
        x = heavy(ROWS, K) * 1
        want = apart(modules, x.clone(), lambda x: x.add_(1))
        assert equal(run(modules, x.clone(), lambda x: x.add_(1)), want)
        want = apart(modules, x)
        with shared_inputs():
            ops, got = counted(lambda: run(modules, x))
        assert ops["quantize_activations"] == 1
        assert equal(got, want)
        with shared_inputs():
            modules[0](x)
        x.add_(1)  # between two forwards
        with shared_inputs():
            assert equal(run(modules[1:], x), apart(modules[1:], x))


def test_ordinary_tensors_in_inference_mode_count_changes():
    modules, x = linears(), heavy(ROWS, K)
    learned(modules)
    with torch.inference_mode():
        ops, got = counted(lambda: run(modules, x))
        assert ops["quantize_activations"] == 1
        assert equal(got, apart(modules, x))
        got = run(modules, heavy(ROWS, K), lambda x: x.add_(1))
        assert equal(got, apart(modules, heavy(ROWS, K), lambda x: x.add_(1)))


def test_hooks():
    """One that gives a Linear another input, and one that changes the input in place."""
    modules = linears()
    learned(modules)
    x = heavy(ROWS, K)
    modules[1].register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    assert equal(run(modules, x), apart(modules, x))
    modules[0].register_forward_hook(lambda m, args, out: (args[0].mul_(2), None)[1])
    assert equal(run(modules, heavy(ROWS, K)), apart(modules, heavy(ROWS, K)))


def test_gradients_go_through_floats():
    modules = linears()
    learned(modules)
    with torch.enable_grad():
        x = heavy(ROWS, K).requires_grad_()
        ops, got = counted(lambda: run(modules, x))
        assert not any("linear" in op for op in ops)
        sum(y.sum() for y in got).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_holds_its_own_quantization(backend):
    modules, x = linears(), heavy(ROWS, K)
    learned(modules)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: run(modules, x), fullgraph=True, backend=backend)
    run(modules, x)
    for _ in range(2):
        assert equal(compiled(x), apart(modules, x))
        x.add_(1)
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["jit", "fx"])
def test_traced_code_holds_no_constant(how):
    from torch.fx.experimental.proxy_tensor import make_fx

    modules = [Int8Linear.from_quantized(m.weight, m.bias.detach()) for m in linears()]
    learned(modules)
    x = heavy(ROWS, K)
    modules[0](x)  # now its integers are there
    both = lambda x: tuple(run(modules[1:], x))
    if how == "jit":
        traced = torch.jit.trace(both, x, check_trace=False)
    else:
        traced = make_fx(both, tracing_mode="real")(x)
    other = heavy(ROWS, K, seed=8)
    assert equal(traced(other), apart(modules[1:], other))


def test_threads_share_nothing():
    modules, x = linears(), heavy(ROWS, K)
    learned(modules)
    want, wrong = apart(modules, x), []

    def work():
        with torch.no_grad():
            for _ in range(20):
                if not equal(run(modules, x), want):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert sharing._THREAD.last is not None  # this thread's own


def test_the_twins_make_their_own():
    """A result asked of the eager twins does not contain what a kernel has quantized."""
    from convert_to_quant import kernels

    modules, x = linears(), heavy(ROWS, K)
    learned(modules)
    modules[0](x)
    with kernels.force_eager():
        ops, _ = counted(lambda: F.linear(x, modules[1].weight))
    assert ops == {"int8_linear": 1}


def test_two_inputs_by_turns():
    """Cross attention: q reads one input, k and v another."""
    modules = linears(count=4)

    def read(x, context):
        return [modules[0](x), modules[1](context), modules[2](context), modules[3](x)]

    read(heavy(ROWS, K, seed=1), heavy(ROWS, K, seed=2))
    context = heavy(ROWS, K, seed=3)
    ops, got = counted(lambda: read(heavy(ROWS, K), context))
    assert ops == {"quantize_activations": 1, "int8_linear_prequantized": 2, "int8_linear": 2}
    assert equal(got[1:3], apart(modules[1:3], context))
