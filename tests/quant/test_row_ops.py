"""Rows of quantized weights taken apart and joined by torch's own ops: no code changes."""

import pytest
import torch
from format_cases import CASES, Case, stored

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.formats import Format
from convert_to_quant.quant.layouts import weight_layout
from convert_to_quant.quant.layouts.weight import loaded

N, K = 128, 192
SPLIT = [c for c in CASES if 32 % c.form.row_step == 0]
COARSE = [c for c in CASES if 32 % c.form.row_step]
"""Formats whose rows can be taken apart every 32 rows, and those where they cannot."""


def weight(case: Case, seed: int = 0) -> QuantizedTensor:
    form: Format = case.form
    columns = K if K % case.columns == 0 else case.columns
    return QuantizedTensor.of(
        loaded(form, stored(case, (N, columns), seed), torch.bfloat16), weight_layout(form.layout)
    )


@pytest.fixture(params=SPLIT, ids=str)
def q(request) -> QuantizedTensor:
    return weight(request.param)


MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_rows_keep_their_codes(q, mode):
    """split, chunk, narrow and slices of rows, as loaders of other programs call them."""
    dense = q.dequantize()
    with mode():
        for got, want in (
            (q.chunk(2), dense.chunk(2)),
            (q.split([32, 64, 32]), dense.split([32, 64, 32])),
            (q.split(96), dense.split(96)),
            ((q[32:], q[-64:], q.narrow(0, 64, 32)), (dense[32:], dense[-64:], dense.narrow(0, 64, 32))),
        ):
            assert all(isinstance(t, QuantizedTensor) and t.is_contiguous() for t in got)
            assert all(torch.equal(a.dequantize(), b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_halves_swapped_and_swapped_back_are_the_weight(q, mode):
    """What diffusers does with shift and scale."""
    with mode():
        once = torch.cat(q.chunk(2)[::-1], dim=0)
        assert isinstance(once, QuantizedTensor)
        assert torch.equal(once.dequantize(), torch.cat(q.dequantize().chunk(2)[::-1]))
        back = torch.cat(once.chunk(2)[::-1])
    assert torch.equal(back.dequantize(), q.dequantize())


def test_what_shares_a_scale_or_lies_across_becomes_floats(q):
    dense = q.dequantize()
    for got, want in (
        (q[::2], dense[::2]),
        (q.chunk(2, dim=1), dense.chunk(2, dim=1)),
        (q[3], dense[3]),
        (torch.cat([q, dense]), torch.cat([dense, dense])),
        (torch.cat([q, q], dim=1), torch.cat([dense, dense], dim=1)),
        (q[5:5], dense[5:5]),
    ):
        assert not isinstance(got, QuantizedTensor)
        assert all(map(torch.equal, got, want))
    blocks = QuantizedTensor.from_float(torch.randn(N, K), "BlockWiseINT8Layout", block_size=64)
    assert [isinstance(t, QuantizedTensor) for t in (blocks[:64], blocks[:32])] == [True, False]
    assert torch.equal(blocks[:32], blocks.dequantize()[:32])


def test_weights_stored_in_different_ways_are_joined_as_floats():
    w = torch.randn(N, K)
    parts = [QuantizedTensor.from_float(w, "TensorWiseINT8Layout", rotation=r) for r in (0, 64)]
    got = torch.cat(parts)
    assert not isinstance(got, QuantizedTensor)
    assert torch.equal(got, torch.cat([p.dequantize() for p in parts]))


def test_the_whole_is_an_alias(q):
    assert torch.equal(q[:], q)
    assert q[:]._qdata.data_ptr() == q._qdata.data_ptr()


@pytest.mark.parametrize("case", COARSE, ids=str)
def test_rows_that_cannot_be_taken_apart_become_floats(case):
    q = weight(case)
    parts, dense = q.split(32), q.dequantize()
    assert not any(isinstance(t, QuantizedTensor) for t in parts)
    assert all(map(torch.equal, parts, dense.split(32)))
