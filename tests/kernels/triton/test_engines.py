"""Which engines may serve a product, and what they need: read from plans, without a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from convert_to_quant.kernels.triton import _arch, weight_only
from convert_to_quant.kernels.triton import int8_mm as mm
from convert_to_quant.kernels.triton._operands import Memory, empty
from convert_to_quant.kernels.triton._plan import Call, Choice

META = torch.device("meta")


def plan(m, n, k, family="sm90"):
    """The choice of `int8_mm` for bfloat16 [M, N]."""
    a, b = empty((m, k), torch.int8, META), empty((n, k), torch.int8, META)
    scales = empty((m, 1), torch.float32, META), empty((n, 1), torch.float32, META)
    with _arch.assume(_arch.Arch(family, family)):
        made = mm.int8_mm.plan(a, b, *scales)
    (choice,) = made.steps
    assert isinstance(choice, Choice)
    return choice, made.results.source


def taken(steps, result: Memory) -> int:
    """Bytes that the steps take besides the result."""
    sources = {o.source for s in steps for o in s.operands()}
    return sum(
        s.nbytes for s in sources if isinstance(s, Memory) and s is not result and s.dtype == torch.int32
    )


@pytest.mark.parametrize("family", ["sm80", "sm89", "sm90", "sm100", "cdna"])
@pytest.mark.parametrize("m", [17, 4160, 75600, 131072])
def test_no_engine_takes_more_than_the_workspace(m, family):
    """At Wan's 75,600 tokens an int32 result would take 3.9 GiB."""
    choice, result = plan(m, 13824, 5120, family)
    for engine in choice.candidates:
        assert taken(choice.steps(engine), result) <= mm.MAX_WORKSPACE, engine


@pytest.mark.parametrize(("m", "n"), [(17, 24), (4160, 3072), (1214, 13824), (75600, 13824), (131072, 13824)])
def test_the_library_product_covers_every_row_once(m, n):
    choice, _ = plan(m, n, 256)
    steps = choice.steps(mm.IntMM())
    products, finishes = steps[::2], steps[1::2]
    assert all(isinstance(s, Call) for s in products)
    edges = [s.args[-2:] for s in products]
    assert [first for first, _ in edges] == [0, *(last for _, last in edges[:-1])]
    assert edges[-1][1] == m
    assert min(last - first for first, last in edges) > 16  # `torch._int_mm` refuses fewer
    assert [(s.args["FIRST"], s.args["M"]) for s in finishes] == edges


@pytest.mark.parametrize(("m", "n"), [(16, 3072), (64, 3070)])
def test_the_library_product_is_left_out_where_it_refuses(m, n):
    assert mm.IntMM() not in plan(m, n, 256)[0].candidates


@pytest.mark.parametrize(
    ("family", "tiles"), [("sm80", 2), ("sm89", 2), ("sm90", 2), ("sm100", 1), ("cdna", 0)]
)
@pytest.mark.parametrize("rotation", [16, 256])
def test_few_rotated_rows_are_one_launch(family, tiles, rotation):
    """The product rotates its 16 rows itself; candidates that do not come after those."""
    assert alone(family, 16, torch.bfloat16, rotation)[: tiles + 1] == [1] * tiles + [2]


@pytest.mark.parametrize(
    ("m", "dtype", "rotation", "k"),
    [
        (17, torch.bfloat16, 256, 3072),
        (16, torch.float32, 256, 3072),
        (16, torch.bfloat16, 1024, 3072),
        (16, torch.bfloat16, 4, 3084),  # rows of 6168 bytes are not on 16-byte boundaries
    ],
)
def test_other_rotated_rows_are_two_launches(m, dtype, rotation, k):
    assert 1 not in alone("sm80", m, dtype, rotation, k)


def alone(family, m, dtype, rotation, k=3072):
    """The launches of each candidate of the weight-only product."""
    x, w = empty((m, k), dtype, META), empty((3072, k), torch.int8, META)
    with _arch.assume(_arch.Arch(family, family)):
        (choice,) = weight_only.int8_weight_only_linear.plan(
            x, w, empty((3072, 1), torch.float32, META), None, rotation
        ).steps
        return [len(choice.steps(candidate)) for candidate in choice.candidates]
