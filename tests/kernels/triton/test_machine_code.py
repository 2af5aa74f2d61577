"""What ships is bound by its products: the machine code of every large tile, and the model that reads it."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia")
sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "kernels"))

import ahead_of_time
import columns
import machine_code
import quantizers
import rows
import static
import torch
import triton
from triton.backends import backends

TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(TRITON < (3, 9), reason="the tables are made for Triton 3.9")

LISTING = """
	.headerflags	@"EF_CUDA_SM80"
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IMMA.16832.S8.S8.SAT R4, R8, R10, R4 ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0060*/                   IMMA.16832.S8.S8.SAT R4, R8, R10, R4 ;
        /*0070*/                   IMMA.16832.S8.S8.SAT R6, R8, R12, R6 ;
        /*0080*/                   LDGSTS.E.BYPASS.128 [R3], [R12.64] ;
        /*0090*/               @P1 BRA `(.L_x_1) ;
        /*00a0*/                   STG.E.U16 [R2.64], R4 ;
        /*00b0*/                   STG.E.64 [R2.64], R4 ;
        /*00c0*/                   EXIT ;
"""


def test_the_main_loop_is_the_one_with_most_products():
    code = machine_code.parse(LISTING)
    assert machine_code.main_loop(code) == machine_code.Loop(6, 2, "IMMA.16832.S8.S8.SAT", 1, 1, None)
    assert machine_code.accesses(code) == {("LDGSTS", 16): 1, ("STG", 2): 1, ("STG", 8): 1}
    assert machine_code.main_loop(code[:1]) is None


# registers, products per load, barriers in a step, shared memory's share of the default's products
LIMITS = {"sm_80": (224, 2.6, 2, 0.70), "sm_89": (224, 2.6, 2, 0.51), "sm_90": (224, 0, 4, 1.13)}


@pytest.fixture(scope="module")
def bounds():
    """The bounds of every tile for 4096 rows, the default first, by target."""
    return {target: [static.bound(target, t) for t in static.tiles(target, 4096)] for target in LIMITS}


@pytest.mark.parametrize("target", LIMITS)
def test_every_large_tile(target, bounds):
    registers, ratio, barriers, _ = LIMITS[target]
    for b in bounds[target]:
        assert b.spill == 0, b.tile
        assert b.registers <= registers, b.tile
        assert b.loop.barriers <= barriers, b.tile
        assert b.loop.products >= ratio * b.loop.loads, b.tile
        assert b.issue < 0.5, b.tile
        assert b.narrow == 0, b.tile
        # sm_90 multiplies asynchronously. Triton waits for each product (bench/NOTES.md), Gluon does not.
        waits = None if target != "sm_90" else int(isinstance(b.tile, static.GluonConfig))
        assert b.loop.in_flight == waits, b.tile


@pytest.mark.parametrize("target", LIMITS)
def test_the_default_is_the_models_choice(target, bounds):
    default, *others = bounds[target]
    assert default.of_product <= min(b.of_product for b in others) + 0.01
    assert default.shared <= LIMITS[target][3]
    if target == "sm_89":  # bound by its products with every tile: more programs hide its waits
        assert default.programs == max(b.programs for b in others) == 2


def test_a_cluster_reads_activations_once_for_both_ctas(bounds):
    """L2 bytes per cycle, 1024 of which make a step: 16 KiB of weights, 32 of activations or half of that."""
    gluon = {b.tile.ctas: b.l2 for b in bounds["sm_90"] if isinstance(b.tile, static.GluonConfig)}
    assert gluon == {1: 48, 2: 32}


PACKED = [("sm_80", "w4a8", 0.50, 0.90), ("sm_90", "int4", 0.60, 1.26)]


@pytest.mark.parametrize(("target", "kind", "issue", "shared"), PACKED)
def test_decoding_hides_behind_the_products(target, kind, issue, shared):
    """The default tile of packed weights for 4096 rows, where it is one that decodes as it goes."""
    b = static.bound(target, static.tiles(target, 4096, kind)[0], kind=kind)
    assert b.spill == 0
    assert b.registers <= 248
    assert b.issue <= issue
    assert b.shared <= shared


@pytest.mark.parametrize(("name", "most", "narrow"), [("mxfp8", 52, 0), ("nvfp4", 98, 1)])
def test_quantizers_of_blocks_stay_in_registers(name, most, narrow):
    """A block per thread: 16-byte loads, but for the scale in all; counted are instructions a weight."""
    needs, code, weights = quantizers.compiled("sm_80", name)
    assert (needs.stack, needs.local) == (0, 0)
    assert needs.registers <= 64
    assert needs.shared <= 512
    assert len(quantizers.straight(code)) <= most * weights
    reached = machine_code.accesses(code)
    assert sum(c for (kind, size), c in reached.items() if kind == "LDG" and size < 16) == narrow


BF16, F32 = torch.bfloat16, torch.float32
# columns, rotation, activation, type of x; most instructions per element
QUANTIZER = [
    ("sm_80", 12288, 256, None, BF16, 13.6),
    ("sm_80", 3072, 256, "gelu", BF16, 26.8),
    ("sm_90", 3072, 0, None, BF16, 9.9),
    ("sm_90", 3072, 256, None, BF16, 13.8),
    ("sm_90", 12288, 256, None, BF16, 13.5),
    ("sm_90", 12288, 256, "gelu_tanh", BF16, 23.8),
    ("sm_90", 12288, 256, "swiglu", BF16, 24.4),
    ("sm_90", 12288, 64, None, BF16, 14.5),
    ("sm_90", 3072, 256, None, F32, 23.6),
]


@pytest.mark.parametrize(("target", "k", "rotation", "activation", "dtype", "most"), QUANTIZER)
def test_a_row_of_the_quantizer(target, k, rotation, activation, dtype, most):
    """From load to store nothing moves between threads, but for the peak that all of them share."""
    c = rows.count(target, k, rotation, activation, dtype)
    assert c.each <= most
    assert c.spill == 0
    assert c.barriers == 1
    assert c.moves == 2
    assert (c.load, c.store) == (16, 8 if rotation else 16)


@pytest.mark.parametrize(("target", "most"), [("gfx942", 18.0), ("gfx1100", 24.0)])
def test_a_row_of_the_quantizer_on_amd(target, most):
    """Conversions to bfloat16 are the compiler's, of six instructions, only where NaN may be met."""
    if "amd" not in backends or not ahead_of_time.links_amd():
        pytest.skip("no AMD back end here")
    assert rows.each_on_amd(target, 3072, 256, None, BF16) <= most


# most instructions and barriers a column, of each of four warps
COLUMN = [
    ("sm_80", "ldlq", 64, 0.95),
    ("sm_90", "ldlq", 67, 1.07),
    ("sm_90", "descent", 72, 1.70),
]


@pytest.mark.parametrize(("target", "op", "most", "barriers"), COLUMN)
def test_a_column_waits_for_few(target, op, most, barriers):
    """Errors reach later columns of a panel within a thread, later panels in one product for 16 columns."""
    c = columns.count(target, op)[0]
    assert c.warps == 4
    assert c.each <= most
    assert c.barriers <= barriers
    assert c.registers <= 128
    assert c.spill == 0
    assert c.wide <= 2, "indices are compared in 64 bits"


def test_the_table_shows_every_tile(capsys, monkeypatch):
    monkeypatch.setattr(static, "ROWS", (4096,))
    monkeypatch.setattr(static, "STORED", {"int8": 1.0})
    static.show(("sm_90",))
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[3] for line in lines[2:]] == [
        t.label.removesuffix(" split1") for t in static.tiles("sm_90", 4096)
    ]
