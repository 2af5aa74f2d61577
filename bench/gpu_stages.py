"""The stages of `gpu_session`. Each is given the session and measures as long as it has time."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from gpu_record import Session
from quantizers import KINDS, wrong
from report import environment
from rivals import RIVALS, Missing
from timing import Timer, copy_bandwidth, int8_tops

from convert_to_quant import kernels
from convert_to_quant.kernels.triton import _gluon, _proof, _stored, int8_linear
from convert_to_quant.kernels.triton import int8_mm as mm
from convert_to_quant.kernels.triton._arch import arch_of
from convert_to_quant.kernels.triton._gemm import TileConfig
from convert_to_quant.kernels.triton._operands import argument, empty
from convert_to_quant.kernels.triton._plan import Choice, Plan
from convert_to_quant.kernels.triton._run import Run

# (N, K, ConvRot group): where the FLOPs of the models are (bench/kernels/shapes.py).
SHAPES = (
    (3072, 3072, 256),
    (12288, 3072, 256),
    (3072, 12288, 256),
    (5120, 5120, 256),
    (13824, 5120, 256),
    (5120, 13824, 256),
    (36864, 4096, 256),
    (4096, 16384, 256),
    (10240, 3840, 256),
    (640, 640, 64),
)
ROWS = (1, 16, 77, 256, 1024, 4096, 4608, 32760)
RAGGED = (1, 16, 77, 255, 4096, 4097)
BEYOND = ((160001, 14336, 256), (160001, 256, 14336))
"""More than 2**31 elements of the result, and of the activations."""
TINY, FEW = ((48, 64, 16),), (1, 20)
PROCESSES = 12


def _shapes(session: Session):
    return (TINY, FEW) if session.tiny else (SHAPES, ROWS)


def _weight(session: Session, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return an int8 weight, its scale and a bias, from a seed: the same in every process."""
    g = torch.Generator(session.device).manual_seed(n + k)
    q = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=session.device, generator=g)
    scale = torch.rand(n, 1, device=session.device, generator=g) * 1e-3
    return q, scale, torch.randn(n, device=session.device, generator=g)


def smoke(session: Session) -> None:
    """Versions, and the launcher of the fused linear against the twin."""

    def one() -> dict:
        q, scale, bias = _weight(session, 384, 512)
        x = torch.randn(33 if session.tiny else 300, 512, device=session.device, dtype=torch.float32)
        got = int8_linear.int8_linear(x, q, scale, bias, 256)
        with kernels.force_eager():
            want = kernels.int8_linear(x, q, scale, bias, 256)
        apart = float((got - want).norm() / want.norm())
        return {**environment(session.device), "apart": apart, "wrong": int(not apart < 0.01)}

    session.measure("smoke", "int8_linear", one)


def warm(session: Session) -> None:
    """Compile every candidate in processes side by side: the tuner would compile them one by one."""
    count = 1 if session.tiny else min(PROCESSES, os.cpu_count() or 1)
    code = f"import sys; sys.path[:0] = {sys.path[:2]!r}; import gpu_session, gpu_stages; "
    code += "gpu_session.repair_interpreter(); gpu_stages.compile_part()"
    common = [str(session.out), session.device, str(session.left()), str(int(session.tiny)), str(count)]
    running = [subprocess.Popen([sys.executable, "-c", code, *common, str(i)]) for i in range(count)]
    session.measure("warm", "exit codes", lambda: {"codes": [p.wait() for p in running]}, 0)
    for process in running:
        process.wait()


def compile_part() -> None:
    """Run every candidate of this process's share of the shapes once."""
    out, device, budget, tiny, count, part = sys.argv[1:]
    session = Session(Path(out), device, float(budget), bool(int(tiny)))
    shapes, rows = _shapes(session)
    jobs = [(n, k, r, m) for n, k, r in shapes for m in rows[:4] + rows[5:6]]
    for n, k, r, m in jobs[int(part) :: int(count)]:
        q, scale, bias = _weight(session, n, k)
        x = torch.zeros(m, k, device=session.device, dtype=torch.bfloat16)
        args = x, q, scale, bias, r
        plan = int8_linear.int8_linear._plan(args)
        for step in plan.steps:
            for candidate in step.candidates if isinstance(step, Choice) else ():
                if not _proof.may_run(step.arch, candidate, step.device):
                    continue
                job = partial(_run_once, args, step, candidate, session.device)
                if not session.measure("warm", f"{m} {n} {k} {candidate.label}", job, 20):
                    return


def _run_once(args: tuple, choice: Choice, candidate, device: str) -> dict:
    Run(args).do(choice.steps(candidate))
    if device != "cpu":
        torch.cuda.synchronize()
    return {}


def prove(session: Session) -> None:
    """Engines with barriers of their own, in a process that may hang: `exact` runs those that did not."""
    device = torch.empty(0, device=session.device).device
    arch = arch_of(device)
    found = mm.candidates(arch, (4096, 12288, 3072), True, None)
    doubtful = [e for e in found if getattr(e, "needs_proof", False)]
    session.say({"stage": "prove", "engines": [e.label for e in doubtful]})
    for engine in doubtful:
        session.measure("prove", engine.label, partial(_proved, arch, engine, device), _proof.LIMIT)


def _proved(arch, engine, device) -> dict:
    right = _proof.may_run(arch, engine, device)
    return {"right": right, "wrong": int(not right)}


def exact(session: Session) -> None:
    """Every candidate bit for bit against ``torch._int_mm`` (float64 where it refuses) and its epilogue.

    Then the quantizers of weights against their twins.
    """
    sizes = [(33, 70, 64), (20, 24, 128)] if session.tiny else None
    sizes = sizes or [(m, n, k) for n, k, _ in SHAPES[:6] for m in RAGGED] + list(BEYOND)
    for m, n, k in sizes:
        device = torch.empty(0, device=session.device).device
        arch = arch_of(device)
        found = mm.candidates(arch, (m, n, k), True, None)
        engines = [e for e in found if _proof.may_run(arch, e, device)]
        names = [f"{m} {n} {k} {e.label}" for e in engines]
        known = {row.get("what") for row in session.rows() if row.get("stage") == "exact" and "wrong" in row}
        if known.issuperset(names):
            continue
        a = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=session.device)
        q, scale, bias = _weight(session, n, k)
        row = torch.rand(m, 1, device=session.device)
        want = _expected(a, q, row, scale, bias)
        for engine, name in zip(engines, names, strict=True):
            if not session.measure("exact", name, partial(_wrong, engine, a, q, row, scale, bias, want), 20):
                return

    for n, k, r in _shapes(session)[0][:5]:
        for name, kind in KINDS.items():
            w = torch.randn(n, k, device=session.device, dtype=torch.bfloat16)
            job = partial(_wrong_quantizer, name, w, r)
            if k % kind.columns == 0 and not session.measure("exact", f"{n} {k} quantize {name}", job, 20):
                return


def _wrong_quantizer(name: str, weight: torch.Tensor, rotation: int) -> dict:
    return {"wrong": wrong(name, weight, rotation)}


def _expected(a, q, row, scale, bias) -> torch.Tensor:
    want = torch.empty(a.shape[0], q.shape[0], dtype=torch.bfloat16, device=a.device)
    for i in range(0, a.shape[0], 8192):
        part = a[i : i + 8192]
        if a.device.type == "cpu" or q.shape[0] % 8:
            sums = (part.double() @ q.double().t()).float()
        else:
            padded = torch.nn.functional.pad(part, (0, 0, 0, max(0, 17 - part.shape[0])))
            sums = torch._int_mm(padded, q.t())[: part.shape[0]].float()
        want[i : i + 8192] = (sums * row[i : i + 8192] * scale.view(1, -1) + bias).bfloat16()
    return want


def _wrong(engine, a, q, row, scale, bias, want) -> dict:
    """Run one engine on a result full of NaN; how many of its numbers are not the expected ones."""
    tensors = a, q, row, scale, bias
    operands = [argument(i, t) for i, t in enumerate(tensors)]
    out = empty(tuple(want.shape), torch.bfloat16, want.device)
    epilogue = mm.operands(*operands[2:], None, want.shape[0], False)
    call = Run(tensors)
    call.source(out).fill_(float("nan"))
    call.do(mm.product(engine, operands[0], operands[1], out, epilogue))
    return {"wrong": int((call.result(out) != want).sum())}


def tune(session: Session) -> None:
    """The tuner's choices for every shape; its file is copied after each weight."""
    shapes, rows = _shapes(session)
    for n, k, r in shapes:
        q, scale, bias = _weight(session, n, k)
        for m in rows:
            x = torch.randn(m, k, device=session.device, dtype=torch.bfloat16)
            call = partial(kernels.int8_linear, x, q, scale, bias, r)
            if not session.measure("tune", f"{m} {n} {k}", partial(_called, call), 30):
                return
        path = _stored.cache_path(arch_of(q.device))
        if path.exists():
            (session.out / "choices.json").write_bytes(path.read_bytes())


def _called(call) -> dict:
    call()
    return {}


def table(session: Session) -> None:
    """Microseconds of ours and of the rivals, and the floor that nothing can beat; quantizers of weights."""
    shapes, rows = _shapes(session)
    timer = Timer(session.device, 2 if session.tiny else 15)
    bandwidth = copy_bandwidth(timer, 1 << 20 if session.tiny else 1 << 30)
    tops = int8_tops(str(environment(session.device).get("gpu", "")))
    for n, k, r in shapes:
        weight = torch.randn(n, k, device=session.device, dtype=torch.bfloat16) * 0.02
        bias = torch.randn(n, device=session.device, dtype=torch.bfloat16)
        q, scale = kernels.quantize_rowwise(weight, r)
        linear = partial(kernels.int8_linear, qweight=q, weight_scale=scale, bias=bias, rotation=r)
        calls = {"ours": linear, "ours, quantization alone": partial(kernels.quantize_rowwise, rotation=r)}
        for name, build in RIVALS.items():
            try:
                calls[name] = build(weight, bias, r)
            except Missing as why:
                session.say({"stage": "table", "missing": name, "why": str(why)})
        for m in rows:
            x = torch.randn(m, k, device=session.device, dtype=torch.bfloat16)
            floor = 3 * m * k / bandwidth / 1e3 + (2 * m * n * k / tops / 1e6 if tops else 0)
            for name, call in calls.items():
                job = partial(_timed, timer, partial(call, x), floor if name == "ours" else None)
                if not session.measure("table", f"{m} {n} {k} {name}", job, 15):
                    return
        for name, kind in KINDS.items():
            floor = (2 + kind.stored) * n * k / bandwidth / 1e3
            job = partial(_timed, timer, partial(kind.call, weight, r), floor)
            if k % kind.columns == 0 and not session.measure("table", f"{n} {k} quantize {name}", job, 15):
                return


def _timed(timer: Timer, call, floor: float | None = None) -> dict:
    time = timer(call)
    found = {"us": round(time.median, 2), "low": round(time.low, 2), "high": round(time.high, 2)}
    return (
        found
        if floor is None
        else {**found, "floor": round(floor, 2), "of_floor": round(floor / time.median, 3)}
    )


def sweep(session: Session) -> None:
    """TOP/s of tiles beyond the tables: what to put into them."""
    boxed = [(128, 128, 128), (128, 256, 128), (256, 128, 128), (128, 256, 64), (128, 128, 256)]
    tiles = [TileConfig(*t, 8, s, descriptors=True) for t in boxed for s in (3, 4)]
    tiles += [
        TileConfig(64, 256, 128, 4, 4, descriptors=True),
        TileConfig(128, 128, 64, 4, 4, descriptors=True),
    ]
    tiles += [
        TileConfig(*t, w, 4) for t, w in (((128, 256, 64), 8), ((256, 128, 64), 8), ((128, 128, 64), 4))
    ]
    sizes = [(m, n, k) for n, k, _ in SHAPES[:8] for m in (1024, 4096, 32760)]
    if session.tiny:
        tiles, sizes = [TileConfig(32, 64, 64, 4, 1)], [(20, 48, 64)]
    timer = Timer(session.device, 2 if session.tiny else 15)
    arch = arch_of(torch.empty(0, device=session.device).device)
    for m, n, k in sizes:
        a = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=session.device)
        q, scale, bias = _weight(session, n, k)
        tensors = a, q, torch.rand(m, 1, device=session.device), scale, bias
        gluon = [t for t in _gluon.tiles(arch.family, (m, n, k)) if _proof.may_run(arch, t, a.device)]
        for engine in (*tiles, *gluon, mm.IntMM()):
            job = partial(_tops, timer, engine, tensors)
            if not session.measure("sweep", f"{m} {n} {k} {engine.label}", job, 15):
                return


def _tops(timer: Timer, engine, tensors: tuple) -> dict:
    a, q, *rest = (argument(i, t) for i, t in enumerate(tensors))
    (m, k), n = a.shape, q.shape[0]
    out = empty((m, n), torch.bfloat16, a.device)
    plan = Plan(mm.product(engine, a, q, out, mm.operands(*rest, None, m, False)), out)
    call = Run(tensors)
    time = timer(lambda: call.do(plan.steps)).median
    return {"us": round(time, 2), "tops": round(2 * m * n * k / time / 1e6, 1)}


STAGES = {f.__name__: f for f in (smoke, prove, warm, exact, tune, table, sweep)}
"""In the order in which they make sense."""
