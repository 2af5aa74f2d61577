"""Run by tests/kernels/triton/test_replay.py in a process whose CUDA driver is the stub of bench/launch.

    python tests/support/launch_path.py sm90           the calls of bench/launch at a few sizes
    python tests/support/launch_path.py sm90 cases     every case of triton_cases; the twins give the answers
    python tests/support/launch_path.py sm90 cases 2   every second case

Prints one line a call: its title, how many kernels it launched, and whether its replay made the
same launches: same kernels, grids and arguments, addresses of results and scratch memory apart.
"""

import contextlib
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "launch"))

import stub
import torch
import triton
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime.driver import driver
from triton_cases import CASES

from convert_to_quant import kernels
from convert_to_quant.kernels.triton import _kept, rotation
from convert_to_quant.kernels.triton._operands import argument
from convert_to_quant.kernels.triton._plan import Call
from convert_to_quant.kernels.triton._replay import _Addressed
from convert_to_quant.kernels.triton._run import Run

LOG: list[tuple] = []


class Logged(CudaLauncher):
    """Triton's launcher, with a note of every launch."""

    def __init__(self, source, metadata):
        super().__init__(source, metadata)
        self.kernel = source.fn.__name__
        self.types = list(source.signature.values())

    def __call__(self, x, y, z, stream, function, metadata, note, enter, leave, *args):
        super().__call__(x, y, z, stream, function, metadata, note, enter, leave, *args)
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
    for m in (1, 70, 300):
        for dtype in (torch.bfloat16, torch.float32):
            for title, (op, args) in stub.calls(m, 384, 512, dtype).items():
                report(f"{title} | {m} {dtype}", op, args)
                steps = _kept.PLANS[stub.launcher(op).key(args)].replay._steps
                assert all(isinstance(s, _Addressed) or isinstance(s._step, Call) for s in steps)


def cases(step: int) -> None:
    """Odd shapes, strides and dtypes that the interpreter checks, each `step`-th, compiled and launched."""

    def counted(op: str):
        signature = inspect.signature(stub.launcher(op))

        def call(*args, **kwargs):
            copies = [a.clone() if torch.is_tensor(a) and a.is_contiguous() else a for a in args]
            bound = signature.bind(*copies, **kwargs)
            bound.apply_defaults()
            with contextlib.suppress(ValueError, TypeError):  # the twin raises them again
                report(f"{op} | {case.name}", op, bound.args)
            return getattr(kernels, op)(*args, **kwargs)

        return call

    ops = SimpleNamespace(**{op: counted(op) for op in stub.LAUNCHERS})
    for case in CASES[::step]:
        case.check(ops, lambda x: x)


if __name__ == "__main__":
    COUNTER = stub.install(sys.argv[1])
    driver.active.launcher_cls = Logged
    limits_are_enforced()
    surprises_fall_back()
    profilers_are_told()
    cases(int((*sys.argv, 1)[3])) if "cases" in sys.argv else standard()
