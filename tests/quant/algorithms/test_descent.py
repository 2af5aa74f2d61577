"""Coordinate descent after LDLQ: lower on its objective for every grid, down to where no code can move."""

import itertools

import numpy as np
import oracle
import pytest
import torch
from calibrated import damped, loss, tokens
from inputs import heavy
from options import options as options_of

from convert_to_quant.formats import Asked
from convert_to_quant.formats.choose import chosen, options
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer
from convert_to_quant.quant.algorithms.descent import _refit_, coordinate_descent_
from convert_to_quant.quant.grid import Grid
from convert_to_quant.quant.layouts import weight_layout


@pytest.mark.parametrize("name", options())
@pytest.mark.parametrize("actorder", [False, True])
def test_every_grid_ends_below_ldlq(name, actorder):
    weight, stats = heavy(48, 256), LayerStats(samples=tokens(600, 256))
    rotation = 64 if chosen(name, None).rotates else 0
    form = chosen(name, None).make(Asked(rotation=rotation, option=name))
    h = damped(stats, rotation)
    losses = []
    for passes in (0, 1, 4):
        asked = QuantizeOptions("ldlq", form, passes=passes, actorder=actorder)
        made = quantize_layer(weight, stats, asked).weight.dequantize().float()
        error = oracle.rotate(oracle.array(weight - made), rotation)
        losses.append(np.einsum("ni,ij,nj->", error, h, error))
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize(("name", "passes"), [("int4", 4), ("int8", 0)])
def test_a_format_says_what_it_is_worth(name, passes):
    weight, stats = heavy(16, 256), LayerStats(samples=tokens(200, 256))
    form = chosen(name, None).make(Asked(rotation=64, option=name))
    own, asked, other = (
        quantize_layer(weight, stats, QuantizeOptions("ldlq", form, passes=p)).weight._qdata
        for p in (None, passes, 4 - passes)
    )
    assert torch.equal(own, asked)
    assert not torch.equal(own, other)


@pytest.mark.parametrize("name", options())
def test_a_format_says_in_which_order(name):
    """The largest inputs first, but for INT8; what is asked for goes before."""
    form = chosen(name, None).make(Asked(rotation=64 if chosen(name, None).rotates else 0, option=name))
    loud = tokens(200, 256)
    weight, stats = heavy(16, 256), LayerStats(samples=loud * torch.linspace(0.1, 3, 256))
    own, first, stored = (
        quantize_layer(weight, stats, QuantizeOptions("ldlq", form, actorder=a)).weight.dequantize()
        for a in (None, True, False)
    )
    assert torch.equal(own, stored if name == "int8" else first)
    assert not torch.equal(first, stored)


def test_a_refitted_scale_is_the_best_for_its_codes():
    """Against float64; rows of zeros, and rows whose best scale would be negative, keep theirs."""
    g = torch.Generator().manual_seed(0)
    x, codes = torch.randn(50, 8, generator=g), torch.randint(-7, 8, (5, 8), generator=g, dtype=torch.int8)
    h, w, scale = x.T @ x, codes * 0.3 + torch.randn(5, 8, generator=g) * 0.1, torch.full((7, 1), 0.25)
    codes[3], w[4] = 0, -0.3 * codes[4]
    error = w - codes * 0.25
    _refit_(codes, error, h, scale, slice(1, 6))
    q, exact = codes.double(), h.double()
    best = torch.einsum("ni,ij,nj->n", w.double(), exact, q) / torch.einsum("ni,ij,nj->n", q, exact, q)
    torch.testing.assert_close(scale[1:4].double(), best[:3, None], rtol=1e-5, atol=0)
    assert scale[[0, 4, 5, 6]].flatten().tolist() == [0.25] * 4
    torch.testing.assert_close(error, w - codes * scale[1:6])


@pytest.mark.parametrize("name", ["int4", "w4a8", "nvfp4"])
@pytest.mark.parametrize("way", [{"row_chunk": 300, "in_place": True}, {"row_chunk": 1, "in_place": False}])
def test_chunks_and_factoring_in_place_change_no_bit_of_any_grid(name, way):
    """The Hessian that descent needs is kept, or made again, in the factor's order."""
    weight, stats = heavy(1100, 128), LayerStats(samples=tokens(300, 128))
    form = chosen(name, None).make(Asked(rotation=64 if chosen(name, None).rotates else 0, option=name))
    whole, parts = (
        quantize_layer(weight, stats, QuantizeOptions("ldlq", form, passes=3, **how)).weight
        for how in ({}, way)
    )
    assert torch.equal(whole._qdata, parts._qdata)
    assert torch.equal(whole.dequantize(), parts.dequantize())


@pytest.mark.parametrize("name", ["int8", "w4a8", "fp8"])
def test_at_rest_no_single_code_can_move(name):
    """Against every neighbour of every code, in float64."""
    weight, stats = heavy(6, 64), LayerStats(samples=tokens(200, 64))
    form = chosen(name, None).make(Asked(option=name))
    made = quantize_layer(weight, stats, QuantizeOptions("ldlq", form, passes=200)).weight
    layout = weight_layout(form.layout)
    grid, scales = layout.grid(form), layout.scales(made._qdata, made._layout_params)
    scale = grid.view(scales, slice(0, 6), 64)
    values = layout.values(made._qdata, made._layout_params)
    codes, h = grid.round(values, scale), torch.from_numpy(damped(stats))
    assert torch.equal(grid.values(codes, scale), values)

    def losses(values):
        error = (weight - values).double()
        return ((error @ h) * error).sum(1)

    best = losses(values)
    for column, step in itertools.product(range(64), (-1, 1)):
        other = codes.clone()
        other[:, column] += step
        # The last bits of float32 gradients decide between two codes that lose alike.
        assert (losses(grid.values(grid.clamp_(other), scale)) >= best * (1 - 1e-5)).all()


def test_the_error_follows_the_codes_and_a_small_row_is_near_its_optimum():
    """Against all 5^4 neighbours of the end."""
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(1, 4, generator=g), torch.randn(9, 4, generator=g)
    h, s = x.T @ x, torch.tensor([[0.3]])
    codes, error = torch.zeros(1, 4, dtype=torch.int8), w.clone()
    coordinate_descent_(codes, error, h, Grid(), s, slice(0, 1), 20)
    torch.testing.assert_close(error, w - codes * s)
    everywhere = torch.tensor(list(itertools.product(range(-2, 3), repeat=4))) + codes
    losses = [((w - q * s) @ h * (w - q * s)).sum(1) for q in (codes, everywhere)]
    assert losses[0] <= 1.5 * losses[1].min()


@pytest.mark.parametrize("scaling", ["row", "tensor", "block"])
def test_chunks_change_no_bit(scaling):
    weight, stats = heavy(1100, 96), LayerStats(samples=tokens(200, 96))
    kind = {"scaling": scaling, "block_size": 32, "passes": 2}
    whole = quantize_layer(weight, stats, options_of("ldlq", **kind))
    parts = quantize_layer(weight, stats, options_of("ldlq", **kind, row_chunk=1, in_place=True))
    assert torch.equal(whole.weight._qdata, parts.weight._qdata)


def test_learned_rounding_ends_below_its_own_start_from_descent():
    weight, stats = heavy(40, 96), LayerStats(samples=tokens(300, 96))
    settled, learned = (
        quantize_layer(weight, stats, options_of(n, passes=4, steps=20)) for n in ("ldlq", "adamw")
    )
    assert loss(weight, learned, damped(stats)) < 1.02 * loss(weight, settled, damped(stats))


def test_negative_passes_are_refused():
    with pytest.raises(ValueError, match="passes must not be negative, not -1"):
        QuantizeOptions(passes=-1)
