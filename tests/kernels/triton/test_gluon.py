"""The Gluon product without a card: its barriers on the host, its machine code, and when it may be used."""

import random
import subprocess
import sys
import threading
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton.backends.nvidia")
pytest.importorskip("convert_to_quant.kernels.triton._gluon_gemm")
sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "kernels"))

import ahead_of_time as aot
import machine_code
import triton

from convert_to_quant.kernels.triton import _arch, _gluon, _proof, _stored
from convert_to_quant.kernels.triton import _gluon_gemm as gluon_gemm
from convert_to_quant.kernels.triton import int8_mm as mm
from convert_to_quant.kernels.triton._gemm import _tile_order
from convert_to_quant.kernels.triton._operands import empty

META = torch.device("meta")
TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])
ENGINE = _gluon.TILES[0]
PATIENCE = 20.0
"""Seconds after which a wait on the host counts as one without end."""


# The kernel's own functions, run by two threads on NumPy arrays.


class Barrier:
    """An mbarrier: a phase ends when all arrivals and all announced bytes have come."""

    def __init__(self, changed: threading.Condition):
        self._changed, self.phase, self._count, self._arrived, self._bytes = changed, 0, 0, 0, 0

    def init(self, count):
        self._count = count

    def arrive(self, count=1, more=0, fewer=0):
        with self._changed:
            self._arrived += count
            self._bytes += more - fewer
            assert self._arrived <= self._count, "more arrivals than a phase takes"
            if self._arrived == self._count and self._bytes == 0:
                self.phase, self._arrived = self.phase + 1, 0
                self._changed.notify_all()

    def wait(self, parity):
        with self._changed:
            assert self._changed.wait_for(lambda: self.phase % 2 != parity, timeout=PATIENCE), "deadlock"


class Memory:
    """Shared memory of several stages."""

    def __init__(self, items):
        self._items = items

    def index(self, i):
        return self._items[i]


class Box:
    """A stage of an operand; `transposed` looks at the same one."""

    def __init__(self, shape):
        self.values, self.reader = np.full(shape, 99, np.int64), None

    def permute(self, axes):
        assert axes == (1, 0)
        return SimpleNamespace(box=self)


class Sm:
    """An SM as far as the kernel sees it. Loads take their time; products read when they are waited for."""

    def __init__(self, program, programs, seed):
        self.program, self.programs, self.random = program, programs, random.Random(seed)
        self.changed = threading.Condition()
        self.late, self.products, self.errors = [], [], []

    def language(self):
        return SimpleNamespace(
            int8="i8", int32=np.int64, int64="i64", float32=np.float32, constexpr=int,
            program_id=lambda axis: self.program, num_programs=lambda axis: self.programs,
            num_warps=lambda: 8, cdiv=lambda a, b: -(-a // b), minimum=min,
            where=lambda condition, a, b: a if condition else b, static_range=range,
            static_assert=lambda condition: None, zeros=lambda shape, kind, layout: np.zeros(shape, kind),
            arange=lambda start, stop, layout: np.arange(start, stop), NVMMADistributedLayout=dict,
            DistributedLinearLayout=dict, SliceLayout=lambda axis, layout: None,
            convert_layout=lambda values, layout: self._settled(values),
            allocate_shared_memory=self._allocate, warp_specialize=self._run,
        )  # fmt: skip

    def _settled(self, values):
        assert self.products == [], "sums are read with a product in flight"
        return SimpleNamespace(to=lambda kind: values.astype(kind))

    def _allocate(self, kind, shape, layout):
        made = [Barrier(self.changed) if kind == "i64" else Box(shape[1:]) for _ in range(shape[0])]
        return Memory(made)

    def _run(self, partitions, warps, registers):
        def guarded(function, arguments):
            try:
                copied(function, self)(*arguments)
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=guarded, args=p, daemon=True) for p in partitions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        for load in self.late:
            load.join(2 * PATIENCE)

    # mbarrier, tma, wgmma

    def barriers(self):
        return SimpleNamespace(
            init=lambda barrier, count: barrier.init(count), MBarrierLayout=lambda: None,
            wait=lambda barrier, phase: barrier.wait(phase),
            expect=lambda barrier, size: barrier.arrive(1, more=size),
            arrive=lambda barrier, count, pred=True: barrier.arrive(count) if pred else None,
        )  # fmt: skip

    def load(self, source, start, barrier, box):
        def later():
            rows, columns = box.values.shape
            part = source.values[start[0] : start[0] + rows, start[1] : start[1] + columns]
            box.values[:] = 0
            box.values[: part.shape[0], : part.shape[1]] = part
            barrier.arrive(0, fewer=rows * columns)

        box.values[:] = 99  # what was there is gone once a load is issued
        if self.random.random() < 0.3:
            self.late.append(threading.Timer(self.random.random() * 2e-3, later))
            self.late[-1].start()
        else:
            later()

    def multiply(self, left, right, sums, is_async):
        assert is_async
        self.products.append((left, right.box, sums))
        return sums

    def wait_for_products(self, outstanding, deps):
        while len(self.products) > outstanding:
            left, right, sums = self.products.pop(0)
            sums += left.values @ right.values.T
        return deps[0]


def copied(function, sm):
    """A function of the kernel with the SM in place of Gluon."""
    plain = function.fn
    gl = sm.language()

    def finish(y, offs_m, offs_n, m, n, out, *rest):
        for i, row in enumerate(offs_m):
            for j, column in enumerate(offs_n):
                if row < m and column < n:
                    assert np.isnan(out[row, column]), "a result is written twice"
                    out[row, column] = y[i, j]

    names = {
        "gl": gl, "tl": gl, "mbarrier": sm.barriers(), "_load_box": sm.load, "warpgroup_mma": sm.multiply,
        "warpgroup_mma_wait": sm.wait_for_products, "fence_async_shared": lambda: None, "finish": finish,
        "range": range,
    }  # fmt: skip
    for name in ("_next", "_tile_order"):
        if function not in (gluon_gemm._next, _tile_order):
            names[name] = copied(getattr(gluon_gemm, name), sm)
    names.update({n: getattr(gluon_gemm, n) for n in ("_load", "_multiply")})
    return FunctionType(plain.__code__, names)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize(
    ("m", "n", "k", "programs"),
    [(8, 8, 16, 1), (5, 3, 7, 2), (40, 24, 16, 4), (33, 17, 100, 3), (17, 9, 65, 9), (24, 40, 129, 2)],
    ids=["one tile", "more programs than tiles", "one step", "ragged", "a tile each", "many steps"],
)
def test_barriers_hold_on_the_host(m, n, k, programs, stages):
    """The kernel's own code: exact sums, each written once, no wait without end, no box overwritten early."""
    generator = np.random.default_rng(m * n * k + stages)
    a, b = (generator.integers(-127, 128, (rows, k)) for rows in (m, n))
    out = np.full((m, n), np.nan)
    for program in range(programs):
        sm = Sm(program, programs, seed=program + stages)
        descriptors = [SimpleNamespace(values=v, layout=None) for v in (a, b)]
        scales = None, None, None
        copied(gluon_gemm._int8_mm_gluon_kernel, sm)(
            *descriptors, out, *scales, m, n, k, n, 0, 0, None, 8, 8, 16, 2, stages
        )
        if sm.errors:
            raise sm.errors[0]
        assert sm.products == []
    np.testing.assert_array_equal(out, (a @ b.T).astype(np.float32))


def test_the_host_notices_a_product_that_is_not_waited_for(monkeypatch):
    """A wait that leaves two products in flight lets a load overwrite what the older one reads."""
    real = Sm.wait_for_products
    monkeypatch.setattr(Sm, "wait_for_products", lambda self, n, deps: real(self, 2 * n, deps))
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        test_barriers_hold_on_the_host(24, 40, 129, 2, 2)


def test_the_host_notices_a_deadlock(monkeypatch):
    """One stage, given back a step late, is never given back; the kernel refuses it."""
    monkeypatch.setattr(sys.modules[__name__], "PATIENCE", 0.2)
    with pytest.raises(AssertionError, match="deadlock"):
        test_barriers_hold_on_the_host(24, 40, 129, 2, 1)


# Machine code.


def launch(m, n, k, dtype=torch.bfloat16, bias=True):
    a, b = empty((m, k), torch.int8, META), empty((n, k), torch.int8, META)
    scales = empty((m, 1), torch.float32, META), empty((n, 1), torch.float32, META)
    given = empty((n,), torch.bfloat16, META) if bias else None
    out = empty((m, n), dtype, META)
    (made,) = mm.product(ENGINE, a, b, out, mm.operands(*scales, given, None, m, False))
    return made


@pytest.mark.parametrize(
    ("shape", "dtype", "bias"),
    [
        ((4096, 12288, 3072), torch.bfloat16, True),
        ((4097, 3360, 3344), torch.float16, True),
        ((300, 640, 640), torch.float32, False),
    ],
    ids=["whole", "ragged", "float32"],
)
def test_one_product_stays_in_flight(shape, dtype, bias):
    gpu = aot.TARGETS["sm_90"][1]
    kernel = aot.build(launch(*shape, dtype, bias), gpu)
    needs = aot.needs(kernel, gpu)
    assert max(needs.stack, needs.local) == 0
    assert needs.registers <= ENGINE.registers
    assert needs.shared <= 227 * 1024
    code = machine_code.disassemble(kernel.asm["cubin"])
    loop = machine_code.main_loop(code)
    assert (loop.product, loop.products, loop.loads) == ("IGMMA.64x128x32.S8.S8", 8, 0)
    assert loop.in_flight == 1
    assert loop.barriers <= (1 if TRITON >= (3, 9) else 2)
    assert loop.instructions <= 60
    assert {size for (name, size) in machine_code.accesses(code) if name == "STG"} == {16}
    body = max(machine_code.loops(code), key=machine_code._products)
    order = [t.split()[0].split(".")[0] for t in body]
    # The stage is given back after all warps have waited, and no sum is touched but by products.
    waited = next(i for i, t in enumerate(body) if "gsb0, 0x1" in t)
    assert order.index("SYNCS", waited) > order.index("BAR", waited) > waited
    sums = {t.split()[1].rstrip(",") for t in body if t.startswith("IGMMA")}
    assert len(sums) == 2
    lowest, highest = min(int(s[1:]) for s in sums), max(int(s[1:]) for s in sums) + 63
    others = [t for t in body if not t.startswith("IGMMA")]
    named = {int(r) for t in others for r in machine_code.REGISTER.findall(t)}
    assert not {r for r in named if lowest <= r <= highest}


# When it may be used.


def engines(m, n, k, family="sm90", activation=None, edges=None, aligned=True):
    return mm.candidates(_arch.Arch(family, family), (m, n, k), aligned, edges, activation is None)


def test_it_is_one_candidate_and_never_the_first():
    found = engines(4096, 3072, 3072)
    assert found.count(ENGINE) == 1
    assert found.index(ENGINE) > 0


@pytest.mark.parametrize(
    "given",
    [
        {"m": 256},
        {"n": 3064},
        {"k": 112},
        {"family": "sm80"},
        {"family": "sm100"},
        {"activation": "gelu"},
        {"edges": (128, 128)},
        {"aligned": False},
    ],
    ids=str,
)
def test_it_is_left_out(given):
    assert ENGINE not in engines(**{"m": 4096, "n": 3072, "k": 3072, **given})


def test_it_is_left_out_without_gluon(monkeypatch):
    monkeypatch.setattr(_gluon, "available", lambda: False)
    assert ENGINE not in engines(4096, 3072, 3072)


@pytest.mark.parametrize("m", [1, 300, 4096, 75600])
def test_no_more_programs_than_tiles_or_processors(m):
    (grid,) = launch(m, 3072, 3072).grid
    assert grid == min(132, -(-m // 256) * 24)


# Proof in another process.

CUDA = torch.device("cuda", 0)
ARCH = _arch.Arch("sm90", "Some GPU")


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """What the processes that try the engine do, one after the other; and how many were started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_proof, "_found", {})
    box = SimpleNamespace(started=0, ends=[])

    def run(command, **options):
        box.started += 1
        assert options["timeout"] == _proof.LIMIT
        end = box.ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return SimpleNamespace(returncode=end, stderr=b"why")

    monkeypatch.setattr(_proof.subprocess, "run", run)
    return box


def forget(monkeypatch):
    monkeypatch.setattr(_proof, "_found", {})


ENDS = {
    "right": (0, True, True),
    "wrong": (_proof.WRONG_CODE, False, True),
    "hangs": (subprocess.TimeoutExpired("python", 1), False, True),
    "crashes": (-11, False, False),
    "is refused": (1, False, False),
    "cannot start": (OSError("no more processes"), False, False),
}


@pytest.mark.parametrize(("end", "allowed", "kept"), ENDS.values(), ids=ENDS)
def test_it_runs_only_where_it_was_proved(processes, monkeypatch, end, allowed, kept):
    processes.ends = [end, end]
    for _ in range(3):
        assert _proof.may_run(ARCH, ENGINE, CUDA) == allowed
    assert processes.started == 1
    forget(monkeypatch)  # another process, later
    assert _proof.may_run(ARCH, ENGINE, CUDA) == allowed
    assert processes.started == (1 if kept else 2)
    assert bool(_stored.read(_stored.cache_path(ARCH))) == kept


def test_other_engines_need_no_proof(processes):
    assert _proof.may_run(ARCH, mm.IntMM(), CUDA)
    assert not processes.started


def test_a_program_that_is_no_python_is_not_started(processes, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not _proof.may_run(ARCH, ENGINE, CUDA)
    assert not processes.started


def test_the_other_process_finds_this_package(monkeypatch):
    """As started, but for a device that is not here: it ends by itself, and says nothing about the engine."""
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert _proof._try(ENGINE.label, CUDA) is None
    code = _proof._CODE.format(path=sys.path, label=ENGINE.label, index=0)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "_proof.py" in done.stderr, "it did not come as far as the comparison"
