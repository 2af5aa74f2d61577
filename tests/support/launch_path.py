"""Run by tests/kernels/triton/test_replay.py in a process whose CUDA driver is the stub of bench/launch.

    python tests/support/launch_path.py sm90             the calls of bench/launch at a few sizes
    python tests/support/launch_path.py sm90 cases       every case of triton_cases; twins give the answers
    python tests/support/launch_path.py sm90 cases 1 4   every fourth case, from the second on

Prints one line a call: its title, how many kernels it launched, and whether its replay made the
same launches: same kernels, grids and arguments, addresses of results and scratch memory apart.
"""

import contextlib
import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "launch"))

import stub
import torch
import triton
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime.driver import driver
from triton_cases import CASES, EAGER

from convert_to_quant.kernels.triton import (
    _gluon,
    _kept,
    _launch,
    _planned,
    _replay,
    _run,
    _timing,
    int8_mm,
    rotation,
)
from convert_to_quant.kernels.triton._gemm import TileConfig
from convert_to_quant.kernels.triton._operands import argument, empty
from convert_to_quant.kernels.triton._plan import Call
from convert_to_quant.kernels.triton._replay import _Addressed
from convert_to_quant.kernels.triton._run import Run

LOG: list[tuple] = []
STREAMS: set[tuple[int, int]] = set()
"""(current device, stream) of each launch."""


class Logged(CudaLauncher):
    """Triton's launcher, with a note of every launch."""

    def __init__(self, source, metadata):
        super().__init__(source, metadata)
        self.kernel = source.fn.__name__
        self.types = list(source.signature.values())

    def __call__(self, x, y, z, stream, function, metadata, note, enter, leave, *args):
        super().__call__(x, y, z, stream, function, metadata, note, enter, leave, *args)
        STREAMS.add((driver.active.get_current_device(), stream))
        values = [shown(t, a) for t, a in zip(self.types, args, strict=True) if t != "constexpr"]
        LOG.append((self.kernel, (x, y, z), metadata, values))


def shown(kind: str, value):
    """A kernel's argument as a plain value; addresses are marked."""
    if kind.startswith("*"):
        return "address", value if isinstance(value, int) else value.data_ptr()
    if kind.startswith("tensordesc"):
        lists = {k: list(v) for k, v in vars(value).items() if isinstance(v, (list, tuple))}
        return "address", value.base.data_ptr(), lists
    return value


def launches(call, inputs) -> list[tuple]:
    """The launches of a call, with addresses replaced by what they point to."""
    LOG.clear()
    call()
    names = {t.data_ptr(): f"argument {i}" for i, t in enumerate(inputs)}

    def named(value):
        if isinstance(value, tuple) and value[0] == "address":
            if value[1] not in names:
                assert value[1] % 16 == 0
                names[value[1]] = f"memory {len(names)}"
            return (names[value[1]], *value[2:])
        return value

    return [(kernel, grid, metadata, [named(v) for v in values]) for kernel, grid, metadata, values in LOG]


def limits_are_enforced() -> None:
    """The stub refuses a grid and a tensor map that a device would refuse: it is able to fail."""
    x = torch.zeros(4, 256)
    launch = rotation.launch_rotate(argument(0, x), argument(0, x), 16)
    launch.grid = (1, 65536)
    wrongs = [lambda: Run((x,)).do([launch])]
    if hasattr(driver.active.utils, "fill_tma_descriptor_tiled"):  # from Triton 3.7 on
        tensor_map()
        wrongs += [lambda: tensor_map(address=8), lambda: tensor_map(box=512)]
    for wrong in wrongs:
        try:
            wrong()
        except (RuntimeError, ValueError):
            continue
        raise AssertionError("the stub driver let a wrong launch pass")


def tensor_map(address: int = 16, box: int = 128) -> None:
    driver.active.utils.fill_tma_descriptor_tiled(address, 3, 1, 0, [64, box], [64, 512], [512, 1], 0)


def surprises_fall_back() -> None:
    """A Triton whose launcher takes other arguments than expected costs speed, and no result."""
    op, args = stub.calls(70, 384, 512)["int8_linear, rotation 256"]
    launcher, inputs = stub.launcher(op), [a for a in args if torch.is_tensor(a)]
    first = launches(lambda: launcher(*args), inputs)
    again = _kept.PLANS[launcher.key(args)]
    again.replay._steps[-1]._run = lambda function: None
    kernels_twice = [kernel for kernel, *_ in launches(lambda: launcher(*args), inputs)]
    assert kernels_twice == [first[0][0], *(kernel for kernel, *_ in first)]
    assert again.replay is None
    assert launches(lambda: launcher(*args), inputs) == first
    _kept.forget()


@contextlib.contextmanager
def on_device(index: int):
    """Have the launchers take CPU tensors for tensors on a device of the stub's."""
    device = torch.device("cuda", index)
    real = {module: module.torch for module in (_run, _replay, _launch, _timing)}
    argument_before = _planned.argument

    def taken(number, tensor):
        operand = argument_before(number, tensor)
        operand.device = device
        return operand

    def empty(*args, device=None, **kwargs):
        return torch.empty(*args, **kwargs)

    @contextlib.contextmanager
    def current(wanted):
        before = driver.active.current
        driver.active.current = wanted.index
        try:
            yield
        finally:
            driver.active.current = before

    events = SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 1.0)
    module = SimpleNamespace(
        device=current, Event=lambda enable_timing: events, synchronize=lambda device: None
    )
    stand_in = SimpleNamespace(**{**vars(torch), "empty": empty, "get_device_module": lambda d: module})
    for changed in real:
        changed.torch = stand_in
    _planned.argument = taken
    try:
        yield device
    finally:
        for changed, before in real.items():
            changed.torch = before
        _planned.argument = argument_before
        _kept.forget()


def a_second_device_is_made_current() -> None:
    """Launches, first and replayed, are on the operands' device and stream, and the caller's comes back."""
    os.environ["CONVERT_TO_QUANT_AUTOTUNE"] = "0"
    for title, (op, args) in stub.calls(70, 384, 512).items():
        if op == "quantize_tensorwise":  # calls PyTorch's operations in between
            continue
        with on_device(1):
            STREAMS.clear()
            for _ in range(2):
                stub.launcher(op)(*args)
                assert driver.active.current == 0, title
            assert {(1, 1 << 8)} == STREAMS, (title, STREAMS)
    del os.environ["CONVERT_TO_QUANT_AUTOTUNE"]


def candidates_that_fail_are_left_out() -> None:
    """What the compiler, the driver and the planner refuse is no candidate; a tile of the tables is."""
    a, b = torch.ones(300, 512, dtype=torch.int8), torch.ones(384, 512, dtype=torch.int8)
    tensors = a, b, torch.ones(300, 1), torch.ones(384, 1)
    kinds = {
        "a tile of the tables": (TileConfig(64, 64, 128, 4, 4, descriptors=True), True),
        "more shared memory than there is": (TileConfig(256, 256, 256, 8, 4, descriptors=True), False),
        "a depth that no product has": (TileConfig(64, 64, 16, 4, 3), False),
        "warps that are no power of two": (TileConfig(64, 64, 128, 3, 3), False),
    }
    with on_device(1) as device:
        for kind, (tile, works) in kinds.items():
            operands = [_planned.argument(i, t) for i, t in enumerate(tensors)]
            out = empty((300, 384), torch.bfloat16, device)
            epilogue = int8_mm.operands(*operands[2:], None, None, 300, False)
            steps = int8_mm.product(tile, *operands[:2], out, epilogue)
            _timing.FLUSH = 16
            time = _timing.microseconds(kind, lambda steps=steps: Run(tensors).do(steps), device)
            assert (time is not None) == works, (kind, time)


def a_gluon_product_is_launched(config: _gluon.GluonConfig, m: int, dtype: torch.dtype) -> None:
    """A Gluon engine through Triton's launcher: tensor maps, shared memory, a grid of an H100, a replay."""
    before, int8_mm.candidates = int8_mm.candidates, lambda *given: [config]
    op, args = stub.calls(m, 1536, 144)["int8_mm"]
    boxes = COUNTER.stub_boxes()
    report(f"{config.label} | {m}", op, (*args, dtype))
    boxes = COUNTER.stub_boxes() - boxes
    steps = _kept.PLANS[stub.launcher(op).key((*args, dtype))].replay._steps
    int8_mm.candidates = before
    _kept.forget()
    assert [type(s) for s in steps] == [_Addressed], steps
    (kernel, grid, *_), *_ = LOG
    assert kernel == "_int8_mm_gluon_kernel"
    ctas = config.ctas
    assert grid == (min(132 // ctas, -(-m // 256) * (12 // ctas)), 1, 1), grid
    assert (COUNTER.stub_blocks(), COUNTER.stub_cluster()) == (grid[0] * ctas, ctas)
    # What a CTA's barrier waits for is what TMA writes into it: whole boxes, in both launches.
    assert boxes == 2 * (256 + 128) * 128, boxes


def profilers_are_told() -> None:
    """A hook hears of the launches of a replay as of those of a first call."""
    op, args = stub.calls(70, 384, 512)["int8_linear, rotation 256"]
    hooks = triton.knobs.runtime if hasattr(triton, "knobs") else triton.compiler.CompiledKernel
    heard, before = [], hooks.launch_enter_hook
    hook = lambda metadata: heard.append(metadata.get()["name"])
    if hasattr(before, "add"):  # a chain, from Triton 3.5 on
        before.add(hook)
    else:
        hooks.launch_enter_hook = hook
    for _ in range(2):
        stub.launcher(op)(*args)
    if hasattr(before, "add"):
        before.remove(hook)
    else:
        hooks.launch_enter_hook = before
    assert heard == ["_quantize_rowwise_kernel", "_int8_mm_kernel"] * 2, heard
    _kept.forget()


def report(title: str, op: str, args: tuple) -> None:
    """Call a launcher twice and print its line."""
    launcher = stub.launcher(op)
    inputs = [a for a in args if torch.is_tensor(a)]
    before = COUNTER.stub_launches()
    first = launches(lambda: launcher(*args), inputs)
    again = launches(lambda: launcher(*args), inputs)
    assert COUNTER.stub_launches() - before == len(first) + len(again)
    same = "the same" if first == again else f"{first}\n{again}"
    print(f"{title} | {len(first)} launches | {same}")


def standard() -> None:
    """The calls of bench/launch: each of them is replayed by addresses."""
    dtypes = (torch.bfloat16, torch.float32) if sys.argv[1] == "sm90" else (torch.bfloat16,)
    for m in (1, 300):
        for dtype in dtypes:
            for title, (op, args) in stub.calls(m, 384, 512, dtype).items():
                report(f"{title} | {m} {dtype}", op, args)
                steps = _kept.PLANS[stub.launcher(op).key(args)].replay._steps
                assert all(isinstance(s, _Addressed) or isinstance(s._step, Call) for s in steps)


def cases(first: int = 0, step: int = 1) -> None:
    """Odd shapes, strides and dtypes that the interpreter checks, each `step`-th, compiled and launched."""

    def counted(op: str):
        signature = inspect.signature(stub.launcher(op))

        def call(*args, **kwargs):
            copies = [a.clone() if torch.is_tensor(a) and a.is_contiguous() else a for a in args]
            bound = signature.bind(*copies, **kwargs)
            bound.apply_defaults()
            with contextlib.suppress(ValueError, TypeError):  # the twin raises them again
                report(f"{op} | {case.name}", op, bound.args)
            return getattr(EAGER, op)(*args, **kwargs)

        return call

    ops = SimpleNamespace(**{op: counted(op) for op in stub.LAUNCHERS})
    for case in CASES[first::step]:
        case.check(ops, lambda x: x)


if __name__ == "__main__":
    COUNTER = stub.install(sys.argv[1])
    driver.active.launcher_cls = Logged
    limits_are_enforced()
    surprises_fall_back()
    if sys.argv[1:] == ["sm90"]:  # once will do
        a_second_device_is_made_current()
        candidates_that_fail_are_left_out()
        for tile in _gluon.tiles("sm90", (9000, 1536, 144)):
            a_gluon_product_is_launched(tile, 300, torch.bfloat16)
            a_gluon_product_is_launched(tile, 9000, torch.float32)
    profilers_are_told()
    cases(*map(int, sys.argv[3:])) if "cases" in sys.argv else standard()
