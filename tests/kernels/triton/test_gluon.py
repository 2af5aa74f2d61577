"""The Gluon product without a card: its machine code, and when it may be used.

Its use of barriers is run on the host by test_gluon_barriers.py.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")
if not pytest.importorskip("convert_to_quant.kernels.triton._gluon").available():
    pytest.skip("this Triton's Gluon has no such kernel", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "kernels"))

import ahead_of_time as aot
import machine_code
import triton

from convert_to_quant.kernels.triton import _arch, _gluon, _proof, _stored
from convert_to_quant.kernels.triton import int8_mm as mm
from convert_to_quant.kernels.triton._operands import empty

META = torch.device("meta")
TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])
ENGINE, CLUSTER = _gluon.TILES
BOTH = pytest.mark.parametrize("engine", [ENGINE, CLUSTER], ids=["one CTA", "cluster"])
needs_clusters = pytest.mark.skipif(not _gluon.multicasts(), reason="this Triton compiles no clusters")


# Machine code.


def launch(m, n, k, dtype=torch.bfloat16, bias=True, engine=ENGINE):
    a, b = empty((m, k), torch.int8, META), empty((n, k), torch.int8, META)
    scales = empty((m, 1), torch.float32, META), empty((n, 1), torch.float32, META)
    given = empty((n,), torch.bfloat16, META) if bias else None
    out = empty((m, n), dtype, META)
    (made,) = mm.product(engine, a, b, out, mm.operands(*scales, given, None, m, False))
    return made


GPU = aot.TARGETS["sm_90"][1]


@pytest.mark.parametrize(
    ("shape", "dtype", "bias", "engine"),
    [
        ((4096, 12288, 3072), torch.bfloat16, True, ENGINE),
        ((4097, 3360, 3344), torch.float16, True, ENGINE),
        ((300, 640, 640), torch.float32, False, ENGINE),
        pytest.param((4096, 12288, 3072), torch.bfloat16, True, CLUSTER, marks=needs_clusters),
        pytest.param((4097, 3360, 3344), torch.float32, False, CLUSTER, marks=needs_clusters),
    ],
    ids=["whole", "ragged", "float32", "cluster, whole", "cluster, ragged float32"],
)
def test_one_product_stays_in_flight(shape, dtype, bias, engine):
    kernel = aot.build(launch(*shape, dtype, bias, engine), GPU)
    needs = aot.needs(kernel, GPU)
    assert max(needs.stack, needs.local) == 0
    assert needs.registers <= engine.registers
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


def compiled(engine):
    """The PTX and the machine code of an engine at the shape that other tests compile too."""
    kernel = aot.build(launch(4096, 12288, 3072, engine=engine), GPU)
    code = machine_code.disassemble(kernel.asm["cubin"])
    return kernel.asm["ptx"], [machine_code._GUARD.sub("", t) for t, _ in code], code


CLUSTERS = ("MULTICAST", "UCGABAR", "ARRIVE.TRANS64.RED")
"""What only clusters need: boxes for both, barriers of both, arrivals in the other CTA."""


def test_one_cta_has_nothing_of_clusters():
    ptx, texts, _ = compiled(ENGINE)
    assert "reqnctapercluster" not in ptx
    assert not [t for t in texts if any(c in t for c in CLUSTERS)]


@needs_clusters
def test_a_cluster_reads_a_box_once_for_both():
    """In a step of the loading warp: own bytes announced, ready, b for itself; after a wait a for both."""
    ptx, texts, code = compiled(CLUSTER)
    assert ".reqnctapercluster 2" in ptx
    loads = [t for t in texts if t.startswith("UTMALDG")]
    assert sorted(t.split()[0] for t in loads) == ["UTMALDG.2D", "UTMALDG.2D.MULTICAST"]
    step = next(body for body in machine_code.loops(code) if any("MULTICAST" in t for t in body))
    done = [t.split()[0] for t in step if t.startswith(("SYNCS", "UTMALDG"))]
    assert [name.split(".TRANS64", 1)[-1] for name in done] == [
        ".TRYWAIT", "", ".RED.A1T0", "UTMALDG.2D", ".TRYWAIT", "UTMALDG.2D.MULTICAST",
    ]  # fmt: skip
    assert ptx.count("mbarrier.arrive.expect_tx.shared::cta.b64 _") == 1
    assert re.search(rf"expect_tx\S* _, \[%r\d+\], {(256 + 128) * 128};", ptx)


@needs_clusters
def test_a_cluster_starts_and_ends_together():
    """Barriers are seen by both CTAs before either uses one, and neither leaves before the other is done."""
    ptx, texts, _ = compiled(CLUSTER)
    counts = re.findall(r"mbarrier\.init\.shared::cta\.b64 \[%r\d+\], (\d)", ptx)
    assert sorted(counts) == ["1"] * 2 * CLUSTER.num_stages + ["2"] * CLUSTER.num_stages
    assert ptx.count("fence.mbarrier_init.release.cluster") == 1

    def last(name):
        return max(i for i, t in enumerate(texts) if t.startswith(name))

    def after(name, place):
        return next(i for i, t in enumerate(texts) if i > place and t.startswith(name))

    made, first_product = last("SYNCS.EXCH"), after("IGMMA", 0)
    assert made < after("UCGABAR_ARV", made) < after("UCGABAR_WAIT", made) < first_product
    end = after("EXIT", first_product)
    assert first_product < after("UCGABAR_ARV", first_product) < after("UCGABAR_WAIT", first_product) < end
    # Eight warps multiply and four more wait or load: both kinds come to both meetings.
    assert ptx.count("barrier.cluster.wait.aligned") == 4


# When it may be used.


def engines(m, n, k, family="sm90", activation=None, edges=None, aligned=True):
    return mm.candidates(_arch.Arch(family, family), (m, n, k), aligned, edges, activation is None)


@pytest.mark.parametrize(
    "engine", [ENGINE, pytest.param(CLUSTER, marks=needs_clusters)], ids=["one CTA", "cluster"]
)
def test_it_is_one_candidate_and_never_the_first(engine):
    found = engines(4096, 3072, 3072)
    assert found.count(engine) == 1
    assert found.index(engine) > 0


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
    found = engines(**{"m": 4096, "n": 3072, "k": 3072, **given})
    assert ENGINE not in found
    assert CLUSTER not in found


def test_it_is_left_out_without_gluon(monkeypatch):
    monkeypatch.setattr(_gluon, "available", lambda: False)
    found = engines(4096, 3072, 3072)
    assert ENGINE not in found
    assert CLUSTER not in found


def test_a_cluster_has_a_tile_for_each_cta(monkeypatch):
    monkeypatch.setattr(_gluon, "multicasts", lambda: True)
    assert CLUSTER not in engines(4096, 128, 3072)
    assert ENGINE in engines(4096, 128, 3072)
    assert CLUSTER in engines(4096, 144, 3072)


@pytest.mark.parametrize("version", [(3, 6), (3, 7), (3, 8)])
def test_clusters_are_left_out_before_triton_3_9(monkeypatch, version):
    """3.7 compiles them too, and wrong: arrivals stay in the CTA that makes them."""
    monkeypatch.setattr(_gluon, "TRITON", version)
    monkeypatch.setattr(_gluon, "multicasts", _gluon.multicasts.__wrapped__)
    found = engines(4096, 3072, 3072)
    assert ENGINE in found
    assert CLUSTER not in found


@pytest.mark.parametrize("m", [1, 300, 4096, 75600])
@BOTH
def test_no_more_programs_than_tiles_or_processors(m, engine):
    """A grid counts clusters; their CTAs are Triton's launcher's matter (test_replay.py)."""
    made = launch(m, 3008, 3072, engine=engine)
    tiles = {1: 24, 2: 12}[engine.ctas]  # the last ones are ragged
    assert made.grid == (min(132 // engine.ctas, -(-m // 256) * tiles),)
    assert made.keywords()["num_ctas"] == engine.ctas


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


def test_each_engine_has_a_proof_of_its_own(processes, monkeypatch):
    processes.ends = [0, _proof.WRONG_CODE]
    assert _proof.may_run(ARCH, ENGINE, CUDA)
    assert not _proof.may_run(ARCH, CLUSTER, CUDA)
    forget(monkeypatch)
    assert not _proof.may_run(ARCH, CLUSTER, CUDA)
    assert processes.started == 2


def test_a_proof_has_a_cta_without_columns_and_more_tiles_than_clusters():
    assert any(0 < n % 256 <= 128 for _, n, _ in _proof.SHAPES)
    assert any(-(-m // 256) * -(-n // 256) > 132 // 2 for m, n, _ in _proof.SHAPES)


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
