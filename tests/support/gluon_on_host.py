"""The Gluon product's own functions on the host: its barriers, boxes and products, without a card.

Each CTA of a cluster has two threads, one for each partition of the kernel, which take turns (`turns`): a run
shows one order of all that happens at barriers, the arrival of boxes included, and can be repeated. What is
checked on the way: no wait without end, no more arrivals or bytes than a phase takes, no box overwritten
before it was read or read before it is there, nothing that comes to a CTA that has ended. Products read as
late as they may, when they are waited for.

As on the card, barriers are made before any CTA goes on: the kernel's machine code has a cluster's barrier
there (test_gluon.py). The one at its end is not assumed.
"""

from types import FunctionType, SimpleNamespace

import numpy as np
from turns import Turns

from convert_to_quant.kernels.triton import _gluon_gemm as gemm
from convert_to_quant.kernels.triton._gemm import _tile_order


class Barrier:
    """An mbarrier: a phase ends when all arrivals and all announced bytes have come.

    shared: the one of a cluster, in its first CTA; all arrive there, and that CTA alone waits for it.
    """

    def __init__(self, home: "Cta", shared: bool):
        self.home, self.shared = home, shared
        self.phase, self._count, self._arrived, self._bytes = 0, 0, 0, 0

    def init(self, count: int) -> None:
        self._count = count * (len(self.home.cluster.ctas) if self.shared else 1)

    def arrive(self, count: int, more: int = 0, fewer: int = 0) -> None:
        assert not self.home.ended, "something arrives at a barrier of a CTA that has ended"
        self._arrived += count
        self._bytes += more - fewer
        assert self._arrived <= self._count, "more arrivals than a phase takes"
        if self._arrived == self._count:
            assert self._bytes >= 0, "more bytes than were announced"
            if self._bytes == 0:
                self.phase, self._arrived = self.phase + 1, 0


class Box:
    """A stage of an operand in one CTA, and what has become of it. parts: how a cluster divides it."""

    def __init__(self, home: "Cta", place: tuple[int, int], shape: list[int], parts: list[list[int]]):
        self.home, self.place, self.parts = home, place, parts
        self.values, self.state = np.zeros(shape, np.int64), "read"

    def permute(self, axes):
        assert axes == (1, 0)
        return SimpleNamespace(box=self)

    def overwrite(self) -> None:
        assert self.state == "read", f"a box is overwritten before it was read: {self.state}"
        self.state = "coming"

    def fill(self, values: np.ndarray) -> None:
        assert not self.home.ended, "a box comes to a CTA that has ended"
        self.values[:] = 0
        self.values[: values.shape[0], : values.shape[1]] = values
        self.state = "full"

    def read(self) -> np.ndarray:
        assert self.state == "full", f"a product reads a box that is not there: {self.state}"
        return self.values


class Memory:
    """Shared memory of several stages."""

    def __init__(self, items):
        self._items = items

    def index(self, i):
        return self._items[i]


class Cluster:
    """The CTAs of one program of `programs`."""

    def __init__(self, program: int, programs: int, ctas: int, choose):
        self.program, self.programs, self.turns = program, programs, Turns(choose)
        self.ctas = [Cta(self, rank) for rank in range(ctas)]

    def run(self, *arguments) -> None:
        """Run the kernel to its end."""
        for cta in self.ctas:
            cta.copied(gemm._int8_mm_gluon_kernel)(*arguments)
        self.turns.run()
        for cta in self.ctas:
            assert cta.products == []


def names(ctas: int) -> list[str]:
    """What takes turns in a cluster: its threads, and the boxes that are on their way to each CTA."""
    return [f"{what} {cta}" for cta in range(ctas) for what in ("load", "multiply", "boxes")]


class Cta:
    """An SM as far as the kernel sees it."""

    def __init__(self, cluster: Cluster, rank: int):
        self.cluster, self.rank, self.turns = cluster, rank, cluster.turns
        self.memory: list[list] = []
        self.products: list[tuple] = []
        self.tasks: list = []

    @property
    def ended(self) -> bool:
        return bool(self.tasks) and all(t.done for t in self.tasks)

    def copied(self, function):
        """A function of the kernel with this CTA in place of Gluon."""
        if function in (gemm._next, _tile_order):
            inner = {}
        else:
            inner = {name: self.copied(getattr(gemm, name)) for name in ("_next", "_tile_order")}
        gl = self.language()
        known = {
            "gl": gl, "tl": gl, "mbarrier": self.barriers(), "_load_box": self.load,
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.wait_for_products,
            "fence_async_shared": lambda: None, "finish": finish, "range": range,
            "_load": gemm._load, "_multiply": gemm._multiply, **inner,
        }  # fmt: skip
        return FunctionType(function.fn.__code__, known)

    def language(self):
        cluster = self.cluster
        return SimpleNamespace(
            int8="i8", int32=np.int64, int64="i64", float32=np.float32, constexpr=int,
            program_id=lambda axis: cluster.program, num_programs=lambda axis: cluster.programs,
            num_warps=lambda: 8, cdiv=lambda a, b: -(-a // b), minimum=min,
            where=lambda condition, a, b: a if condition else b, static_range=range,
            static_assert=lambda condition: None, zeros=self._zeros, arange=self._arange,
            NVMMADistributedLayout=dict, DistributedLinearLayout=dict,
            SliceLayout=lambda axis, of: (1 - axis, of["block_bases"]),
            convert_layout=lambda values, layout: self._settled(values),
            allocate_shared_memory=self._allocate, warp_specialize=self._specialize,
        )  # fmt: skip

    def part(self, shape, parts: list[list[int]]) -> list[int]:
        """Return the shape of what each CTA has of a whole that `parts` divides."""
        return [n // 2 if any(p[i] for p in parts) else n for i, n in enumerate(shape)]

    def _zeros(self, shape, kind, layout):
        return np.zeros(self.part(shape, layout["cga_layout"]), kind)

    def _arange(self, start, stop, layout):
        axis, bases = layout
        if not bases or not bases[0][axis]:
            return np.arange(start, stop)
        first = start + self.rank * bases[0][axis]
        return np.arange(first, first + (stop - start) // 2)

    def _settled(self, values):
        assert self.products == [], "sums are read with a product in flight"
        return SimpleNamespace(to=lambda kind: values.astype(kind))

    def _allocate(self, kind, shape, layout):
        number, stages = len(self.memory), range(shape[0])
        if kind == "i64":
            one = bool(layout) and not any(any(basis) for basis in layout)
            assert shape[1] == (1 if one else len(self.cluster.ctas))
            home = self.cluster.ctas[0] if one else self
            made = home.memory[number] if home is not self else [Barrier(self, one) for _ in stages]
        else:
            part = self.part(shape[1:], layout)
            made = [Box(self, (number, i), part, layout) for i in stages]
        self.memory.append(made)
        return Memory(made)

    def _specialize(self, partitions, warps, registers):
        for function, arguments in partitions:
            name = f"{function.fn.__name__.removeprefix('_')} {self.rank}"
            work = self.copied(function)
            task = self.turns.task(name, lambda work=work, arguments=arguments: work(*arguments))
            self.tasks.append(task)

    # mbarrier, tma, wgmma

    def barriers(self):
        return SimpleNamespace(
            init=self.init, MBarrierLayout=list, wait=self.wait, expect=self.expect, arrive=self.arrive
        )

    def init(self, barrier, count):
        barrier.init(count)

    def wait(self, barrier, phase):
        if barrier.home is self:  # a shared one is waited for by the CTA that it lies in
            self.turns.pause(lambda: barrier.phase % 2 != phase)

    def expect(self, barrier, size):
        self.turns.pause()
        barrier.arrive(1, more=size)

    def arrive(self, barrier, count, pred=True):
        if pred:
            self.turns.pause()
            barrier.arrive(count)

    def load(self, source, start, barrier, box, multicast=False):
        shared = bool(box.parts) and not any(any(basis) for basis in box.parts)
        if multicast and shared and self.rank:
            return  # the first CTA loads for all
        self.turns.pause()
        rows, columns = box.values.shape
        first = start[0] + (0 if shared or not box.parts else self.rank * rows)
        values = source.values[first : first + rows, start[1] : start[1] + columns]
        number = next(i for i, made in enumerate(self.memory) if barrier in made)
        stage = self.memory[number].index(barrier)
        for cta in self.cluster.ctas if multicast and shared else [self]:
            to, told = cta.memory[box.place[0]][box.place[1]], cta.memory[number][stage]
            to.overwrite()

            def come(to=to, told=told):
                to.fill(values)
                told.arrive(0, fewer=rows * columns)

            self.turns.later(f"boxes {cta.rank}", come)

    def multiply(self, left, right, sums, is_async):
        assert is_async
        left.read(), right.box.read()
        self.products.append((left, right.box, sums))
        return sums

    def wait_for_products(self, outstanding, deps):
        self.turns.pause()
        while len(self.products) > outstanding:
            left, right, sums = self.products.pop(0)
            sums += left.read() @ right.read().T
            left.state = right.state = "read"
        return deps[0]


def finish(y, offs_m, offs_n, m, n, out, *rest) -> None:
    """In place of `_epilogue.finish`: each element is written once."""
    rows, columns = offs_m[offs_m < m], offs_n[offs_n < n]
    where = np.ix_(rows, columns)
    assert np.isnan(out[where]).all(), "a result is written twice"
    out[where] = y[: len(rows), : len(columns)]
