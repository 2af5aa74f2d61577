"""The Gluon product's barriers on the host, for one CTA and a cluster of two, in many orders of events."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("triton.backends.nvidia")
if not pytest.importorskip("convert_to_quant.kernels.triton._gluon").available():
    pytest.skip("this Triton's Gluon has no such kernel", allow_module_level=True)

from gluon_on_host import Barrier, Cluster, Cta, names
from turns import at_random, by_priority

ROWS, COLUMNS, DEPTH = 8, 8, 16
"""The tile of one CTA."""


def product(m, n, k, programs, stages, ctas, choose):
    """Run the kernel on the host and compare its result with the exact one."""
    generator = np.random.default_rng(m * n * k + stages)
    a, b = (generator.integers(-127, 128, (rows, k)) for rows in (m, n))
    out = np.full((m, n), np.nan)
    layouts = ([], []) if ctas == 1 else ([[0, 0]], [[1, 0]])
    boxes = [SimpleNamespace(values=v, layout=parts) for v, parts in zip((a, b), layouts, strict=True)]
    scales = None, None, None
    for program in range(programs):
        Cluster(program, programs, ctas, choose).run(
            *boxes, out, *scales, m, n, k, n, 0, 0, None, ROWS, COLUMNS * ctas, DEPTH, 2, stages, ctas
        )
    np.testing.assert_array_equal(out, (a @ b.T).astype(np.float32))


def in_every_order(m, n, k, stages, ctas):
    """One program, once for each way in which threads and boxes can go before each other."""
    for order in itertools.permutations(names(ctas)):
        product(m, n, k, 1, stages, ctas, by_priority(order))


@pytest.mark.parametrize("ctas", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize(
    ("m", "n", "k", "programs"),
    [(8, 8, 16, 1), (5, 3, 7, 2), (40, 24, 16, 4), (33, 17, 100, 3), (17, 9, 65, 9), (24, 40, 129, 2)],
    ids=["one tile", "more programs than tiles", "one step", "ragged", "a tile each", "many steps"],
)
def test_barriers_hold_on_the_host(m, n, k, programs, stages, ctas):
    """The kernel's own code: exact sums, each written once, and all that `gluon_on_host` looks for."""
    for seed in range(6):
        product(m, n, k, programs, stages, ctas, at_random(seed))


@pytest.mark.parametrize("ctas", [1, 2])
@pytest.mark.parametrize("k", [16, 48], ids=["one step", "three steps"])
def test_whoever_goes_first(k, ctas):
    """Each thread and each box as early and as late as the others let it be: two tiles, one ragged."""
    in_every_order(8, 8 * ctas + 4, k, 2, ctas)


# Protocols that are wrong in one place.


def sabotaged(match, ctas=2, stages=2, k=80):
    """There is an order in which the host finds what is wrong."""
    with pytest.raises(AssertionError, match=match):
        in_every_order(8, 8 * ctas + 4, k, stages, ctas)


@pytest.mark.parametrize("ctas", [1, 2])
def test_the_host_notices_a_product_that_is_not_waited_for(monkeypatch, ctas):
    """A wait that leaves two products in flight lets a load overwrite what the older one reads."""
    real = Cta.wait_for_products
    monkeypatch.setattr(Cta, "wait_for_products", lambda self, n, deps: real(self, 2 * n, deps))
    sabotaged("overwritten before it was read: full", ctas)


@pytest.mark.parametrize("ctas", [1, 2])
def test_the_host_notices_a_deadlock(ctas):
    """One stage, given back a step late, is never given back; the kernel refuses it."""
    sabotaged("deadlock", ctas, stages=1)


def changed(monkeypatch, name, change):
    """Change what a CTA does at a barrier: `change(cta, barrier, real, *arguments)`."""
    real = getattr(Cta, name)
    monkeypatch.setattr(Cta, name, lambda cta, b, *args, **kw: change(cta, b, real, *args, **kw))


def test_a_box_for_both_needs_both(monkeypatch):
    """The first CTA does not wait for `ready`: it overwrites what the other still reads."""

    def wait(cta, barrier, real, phase):
        if not barrier.shared:
            real(cta, barrier, phase)

    changed(monkeypatch, "wait", wait)
    sabotaged("overwritten before it was read")


def test_ready_comes_after_emptied(monkeypatch):
    """The second CTA does not wait before it says that it is ready."""

    def wait(cta, barrier, real, phase):
        if not (cta.rank == 1 and barrier in cta.memory[3]):  # emptied
            real(cta, barrier, phase)

    changed(monkeypatch, "wait", wait)
    sabotaged("overwritten before it was read|more arrivals than a phase takes")


def test_a_box_from_the_other_is_waited_for(monkeypatch):
    """The second CTA announces only the bytes that it loads itself."""

    def expect(cta, barrier, real, size):
        real(cta, barrier, size - cta.rank * ROWS * DEPTH)

    changed(monkeypatch, "expect", expect)
    sabotaged("a box that is not there|more bytes than were announced")


def test_ready_counts_both(monkeypatch):
    """The barrier of both takes one arrival for the end of its phase."""
    real = Barrier.init
    monkeypatch.setattr(Barrier, "init", lambda self, n: (real(self, n), setattr(self, "_count", n)))
    sabotaged("overwritten before it was read|deadlock|more arrivals")


def test_both_make_the_same_tiles(monkeypatch):
    """The second CTA leaves out a tile that lies beyond the edge for it."""
    real = Cta.language

    def language(cta):
        made = real(cta)
        if cta.rank == 1:
            made.cdiv = lambda a, b: a // b
        return made

    monkeypatch.setattr(Cta, "language", language)
    sabotaged("deadlock|a CTA that has ended")


def test_none_ends_before_the_other_has_arrived(monkeypatch):
    """With one step the first CTA, without its wait, is done before the second says that it is ready."""

    def wait(cta, barrier, real, phase):
        if not barrier.shared:
            real(cta, barrier, phase)

    changed(monkeypatch, "wait", wait)
    with pytest.raises(AssertionError, match="a barrier of a CTA that has ended"):
        in_every_order(8, 16, 16, 2, 2)
