"""LDLQ of whole layers: the optimum it promises, real samples at work, and chunks that change no bit."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from calibrated import damped, integers, layer, loss, spread_scale, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import heavy, short
from options import options as options_of

from convert_to_quant import kernels
from convert_to_quant.kernels.rotation import largest_group
from convert_to_quant.quant import chunks
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, hessian, quantize_layer
from convert_to_quant.quant.algorithms.tiles import tile_rows
from convert_to_quant.quant.grid import Grid

SCALINGS = ("row", "tensor", "block")


def output_error(weight, result, x) -> float:
    wanted = oracle.array(x) @ oracle.array(weight).T
    got = oracle.array(x) @ oracle.array(result.weight.dequantize()).T
    return float(((got - wanted) ** 2).sum() / (wanted**2).sum())


def excess(targets, q) -> float:
    """How far, beyond one half of a step, the worst integer is from its target; saturated ones aside.

    Allow 5e-3: float32 Hessian, factor and feedback over up to 400 columns.
    """
    clipped = (np.abs(q) == 127) & (np.sign(targets - q) == np.sign(q))
    return float(np.where(clipped, 0, np.abs(targets - q) - 0.5).max())


LAYERS = ((5, 123), (300, 256), (1, 64), (130, 400))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", LAYERS, ids=short)
def test_every_integer_is_nearest_to_its_target(shape, scaling):
    """The definition of LDLQ in float64: Chee et al. (2023), equation 4, over the whole layer."""
    weight, stats = layer(*shape)
    result = quantize_layer(weight, stats, options_of("ldlq", scaling, block_size=32))
    q, s = integers(result), spread_scale(result)
    factor = oracle.ldlq_factor(damped(stats))
    targets = oracle.ldlq_targets(oracle.array(weight), q, s, factor) / s
    assert excess(targets, q) < 5e-3
    assert (oracle.integers(oracle.array(weight) / s) != q).mean() > 0.05, "the test must see feedback"


@pytest.mark.parametrize("group", [16, 64, 256])
def test_rotated_targets_live_in_the_stored_space(group):
    """The integers that LDLQ chose in the rotated space are the ones stored: nothing is rounded again."""
    weight, stats = layer(40, 256)
    result = quantize_layer(weight, stats, options_of("quip", rotation=group))
    q, s = integers(result), spread_scale(result)
    factor = oracle.ldlq_factor(damped(stats, group))
    targets = oracle.ldlq_targets(oracle.rotate(oracle.array(weight), group), q, s, factor) / s
    assert excess(targets, q) < 5e-3
    assert result.weight._layout_params["rotation"] == group


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("actorder", [False, True], ids=["natural order", "actorder"])
def test_loss_is_far_below_rounding(scaling, actorder):
    weight, stats = layer(150, 200)
    options = options_of("ldlq", scaling, block_size=64, actorder=actorder, damping=0.01)
    ldlq, rtn = (quantize_layer(weight, stats, replace(options, algorithm=a)) for a in ("ldlq", "rtn"))
    h = damped(stats, damping=0.01)
    assert loss(weight, ldlq, h) < 0.75 * loss(weight, rtn, h)


@pytest.mark.parametrize("rotation", [0, 64])
@pytest.mark.parametrize("fed", ["samples", "shuffled", "channel_max only"])
def test_only_a_true_hessian_exploits_a_planted_correlation(fed, rotation):
    """Inputs of rank 8: rounding errors that the samples show to cancel, on tokens never seen.

    The same samples with each channel shuffled have the same size a channel and no correlation: what gains
    from them is not the Hessian. With the true ones the error falls at least tenfold.
    """
    weight, x = heavy(64, 128), tokens(2048, 128, rank=8)
    g = torch.Generator().manual_seed(5)
    if fed == "shuffled":
        x = torch.stack([c[torch.randperm(len(c), generator=g)] for c in x.T], 1)
    stats = LayerStats(None if fed == "channel_max only" else x.bfloat16(), x.abs().amax(0), x.mean(0))
    unseen = tokens(512, 128, seed=1, rank=8)
    options = options_of("ldlq", rotation=rotation)
    gain = output_error(weight, quantize_layer(weight, stats, replace(options, algorithm="rtn")), unseen)
    gain /= output_error(weight, quantize_layer(weight, stats, options), unseen)
    assert gain > 10 if fed == "samples" else gain < 1.5


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("rotation", [0, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_identity_hessian_equals_rounding(scaling, rotation, dtype):
    """Scaled unit vectors as tokens: H is exactly a multiple of the identity, and nothing is fed back."""
    if scaling == "block" and rotation:
        pytest.skip("block scales do not rotate")
    weight = heavy(70, 128, dtype=dtype)
    # A rotated unit basis has the identity as its Hessian up to rounding, so feed it already rotated.
    basis = kernels.rotate(torch.eye(128), rotation) if rotation else torch.eye(128)
    options = options_of("ldlq", scaling, rotation=rotation)
    ldlq = quantize_layer(weight, LayerStats(samples=basis * 8), options)
    rtn = quantize_layer(weight, None, replace(options, algorithm="rtn"))
    assert torch.equal(ldlq.weight._qdata, rtn.weight._qdata)
    assert torch.equal(ldlq.weight._layout_params["scale"], rtn.weight._layout_params["scale"])


@pytest.mark.parametrize("stats", [None, LayerStats(channel_max=torch.ones(64))], ids=["none", "no samples"])
def test_without_samples_it_says_that_it_rounds(stats):
    weight = heavy(20, 64)
    result = quantize_layer(weight, stats, options_of("quip", rotation=64))
    assert "equals rounding" in result.note
    rounded = quantize_layer(weight, None, options_of("rtn", rotation=64))
    assert torch.equal(result.weight._qdata, rounded.weight._qdata)


def test_synthetic_samples_steer_nothing():
    weight = heavy(20, 64)
    made_up = LayerStats(samples=tokens(100, 64), synthetic=True)
    result = quantize_layer(weight, made_up, QuantizeOptions("ldlq"))
    assert torch.equal(result.weight._qdata, quantize_layer(weight, None, QuantizeOptions()).weight._qdata)
    assert "synthetic" in result.note


@settings(max_examples=12)
@given(
    n=st.integers(1, 700),
    k=st.sampled_from([17, 64, 200]),
    chunk=st.integers(1, 700),
    scaling=st.sampled_from(SCALINGS),
    rotate=st.booleans(),
    actorder=st.booleans(),
    in_place=st.booleans(),
)
def test_chunks_change_no_bit(n, k, chunk, scaling, rotate, actorder, in_place):
    weight, stats = layer(n, k)
    rotation = largest_group(k) if rotate and scaling != "block" else 0
    plain = options_of("ldlq", scaling, rotation, block_size=32, actorder=actorder)
    whole = quantize_layer(weight, stats, plain)
    parts = quantize_layer(weight, stats, replace(plain, row_chunk=chunk, in_place=in_place))
    assert torch.equal(whole.weight._qdata, parts.weight._qdata)
    assert torch.equal(whole.weight._layout_params["scale"], parts.weight._layout_params["scale"])


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 2100])
def test_several_tiles_change_no_bit(rows):
    weight, stats = layer(rows, 40)
    assert tile_rows(40, weight.device, Grid()) == 1024
    options = QuantizeOptions("ldlq")
    whole = quantize_layer(weight, stats, options)
    parts = quantize_layer(weight, stats, replace(options, row_chunk=1, in_place=True))
    assert torch.equal(whole.weight._qdata, parts.weight._qdata)


@pytest.mark.parametrize("k", [5, 128, 129, 301])
def test_factor_in_place_is_the_same_factor(k):
    stats = LayerStats(samples=tokens(2 * k, k))
    options = QuantizeOptions("ldlq")
    make = lambda: hessian.layer_hessian(stats, options, torch.device("cpu"))
    kept, inside = (hessian.factorize(make, replace(options, in_place=p)) for p in (False, True))
    assert torch.equal(kept.matrix.triu(), inside.matrix.triu())


@pytest.mark.parametrize("in_place", [False, True], ids=["kept", "in place"])
def test_damping_rises_until_the_cholesky_succeeds(in_place):
    """One loud direction in few tokens: float32 loses the rest of the spectrum below tiny damping."""
    weight = heavy(20, 96)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)) * 1e4
    options = QuantizeOptions("ldlq", damping=1e-8, in_place=in_place)
    result = quantize_layer(weight, LayerStats(samples=x), options)
    assert "damping raised to 1e-" in result.note


@pytest.mark.parametrize("in_place", [False, True], ids=["kept", "in place"])
def test_a_hopeless_hessian_names_the_layer(monkeypatch, in_place):
    indefinite = torch.eye(64) - torch.ones(64, 64)
    indefinite.diagonal().fill_(1e-3)
    monkeypatch.setattr(hessian, "layer_hessian", lambda *_: indefinite.clone())
    options = QuantizeOptions("ldlq", in_place=in_place)
    with pytest.raises(ValueError, match=r"blocks\.3\.mlp: .* not positive definite even with damping 100"):
        quantize_layer(heavy(4, 64), LayerStats(samples=tokens(8, 64)), options, name="blocks.3.mlp")


@pytest.mark.parametrize(
    ("value", "match"), [(0.0, "zero or not finite"), (float("nan"), "zero or not finite")], ids=short
)
def test_useless_samples_name_the_layer(value, match):
    with pytest.raises(ValueError, match=f"mlp: .*{match}"):
        quantize_layer(
            heavy(4, 16), LayerStats(samples=torch.full((9, 16), value)), QuantizeOptions("ldlq"), name="mlp"
        )


def test_actorder_visits_loud_columns_first():
    stats = LayerStats(samples=tokens(200, 96))
    order = hessian.column_order(stats, QuantizeOptions("ldlq", actorder=True), torch.device("cpu"))
    sizes = stats.samples.double().square().sum(0)[order]
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    blocks = options_of("ldlq", "block", block_size=32, actorder=True)
    grouped = hessian.column_order(stats, blocks, torch.device("cpu")) // 32
    assert [g.unique().numel() for g in grouped.split(32)] == [1, 1, 1]


def test_seed_draws_the_tokens():
    weight, stats = layer(20, 64)
    draw = lambda seed: integers(
        quantize_layer(weight, stats, QuantizeOptions("ldlq", max_tokens=70, seed=seed))
    )
    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_lora_directions_weigh_the_hessian():
    """Errors along the adapter's directions fall, with samples and without."""
    g = torch.Generator().manual_seed(3)
    weight, directions = heavy(64, 128), torch.randn(4, 128, generator=g)
    for samples in (None, tokens(500, 128)):
        plain = quantize_layer(weight, LayerStats(samples=samples), QuantizeOptions("ldlq"))
        stats = LayerStats(samples=samples, extra_directions=directions)
        weighed = quantize_layer(weight, stats, QuantizeOptions("ldlq", lora_weight=0.5))
        assert output_error(weight, weighed, directions) < 0.5 * output_error(weight, plain, directions)


def test_bf16_changes_little_and_never_the_factorization(monkeypatch):
    weight, stats = layer(64, 256)
    seen = []
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a, **kw: seen.append(a.dtype) or real(a, **kw))
    h = damped(stats, 64)
    options = options_of("quip", rotation=64)
    losses = [
        loss(weight, quantize_layer(weight, stats, replace(options, bf16_compute=mode)), h, 64)
        for mode in ("off", "on")
    ]
    assert set(seen) == {torch.float32}
    assert losses[1] < 1.02 * losses[0]


@pytest.fixture
def fake_memory(monkeypatch):
    """An allocator with a limit: chunks beyond it raise what torch raises."""
    asked = []

    def limit(most_bytes):
        def allocate(rows, columns, device):
            asked.append(rows)
            if rows * columns * 4 > most_bytes:
                raise torch.OutOfMemoryError("fake device is full")
            return torch.empty(rows, columns, device=device)

        monkeypatch.setattr(chunks, "allocate", allocate)
        return asked

    return limit


def test_out_of_memory_halves_the_chunk_and_goes_on(fake_memory, caplog):
    weight, stats = layer(4096, 32)
    options = QuantizeOptions("ldlq")
    whole = quantize_layer(weight, stats, options)
    asked = fake_memory(1024 * 32 * 4)
    halved = quantize_layer(weight, stats, options, name="big")
    assert asked == [4096, 4096, 2048, 1024, 1024, 1024, 1024]
    assert torch.equal(whole.weight._qdata, halved.weight._qdata)
    assert "big: out of memory, going on with 1024 rows" in caplog.text


def test_out_of_memory_below_the_smallest_chunk_is_raised(fake_memory):
    weight, stats = layer(4096, 32)
    fake_memory(1000)
    with pytest.raises(torch.OutOfMemoryError):
        quantize_layer(weight, stats, QuantizeOptions("ldlq"))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("rotation", [0, 64])
def test_rounding_in_chunks_changes_no_bit(scaling, rotation):
    if scaling == "block" and rotation:
        pytest.skip("block scales do not rotate")
    weight = heavy(700, 4096, dtype=torch.bfloat16)
    options = options_of("rtn", scaling, rotation)
    whole, parts = (quantize_layer(weight, None, replace(options, row_chunk=c)) for c in (None, 100))
    assert torch.equal(whole.weight._qdata, parts.weight._qdata)
    assert torch.equal(whole.weight._layout_params["scale"], parts.weight._layout_params["scale"])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_searched_scale_has_less_squared_error(scaling):
    """Nearly all weights lie half-way between two integers of the absmax scale."""
    weight = torch.full((64, 256), 0.505)
    weight[::32, ::32] = 1.27
    weight[:, 0] = 1.27
    options = options_of("rtn", scaling, block_size=64)
    plain, searched = (quantize_layer(weight, None, replace(options, scale_search=s)) for s in (False, True))
    errors = [float((r.weight.dequantize() - weight).square().sum()) for r in (plain, searched)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("algorithm", ["rtn", "ldlq", "adamw"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=short)
def test_non_finite_weights_name_the_layer(algorithm, scaling, bad):
    weight, stats = layer(40, 64)
    weight[33, 5] = bad
    with pytest.raises(ValueError, match="attn: the weight holds NaN or Inf"):
        quantize_layer(weight, stats, options_of(algorithm, scaling), name="attn")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"algorithm": "awq"}, "algorithm must be one of rtn, ldlq"),
        ({"scaling": "column"}, "int8 has scales by row or tensor or block"),
        ({"scaling": "block", "rotation": 64}, "int8_blockwise has no rotation"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"row_chunk": 0}, "row_chunk must be positive"),
        ({"smoothquant": 1.5}, "between 0 and 1"),
        ({"bf16_compute": "maybe"}, "bf16_compute must be"),
        ({"steps": -1}, "steps must not be negative"),
    ],
    ids=str,
)
def test_refused_options(changes, match):
    with pytest.raises(ValueError, match=match):
        options_of(**changes)


@pytest.mark.parametrize("algorithm", ["rtn", "ldlq", "original"])
def test_nothing_given_is_changed(algorithm):
    weight, stats = layer(40, 64)
    before = weight.clone(), stats.samples.clone()
    quantize_layer(weight, stats, options_of(algorithm, rotation=64, actorder=True, smoothquant=0.5))
    assert torch.equal(weight, before[0])
    assert torch.equal(stats.samples, before[1])


def test_refused_shapes():
    with pytest.raises(ValueError, match=r"norm: a linear weight is 2-D, not of shape \(8,\)"):
        quantize_layer(torch.ones(8), None, QuantizeOptions(), name="norm")
    with pytest.raises(ValueError, match="q: calibration samples has 9 channels, the weight 8"):
        quantize_layer(torch.ones(4, 8), LayerStats(torch.ones(2, 9)), QuantizeOptions("ldlq"), name="q")


def test_a_kept_factor_changes_nothing():
    """What one call factored serves the next with the same statistics, and only for what it was made for."""
    weight, stats = layer(24, 64)
    kept = replace(stats, kept={})
    for options in (QuantizeOptions("ldlq"), QuantizeOptions("ldlq"), QuantizeOptions("ldlq", damping=0.5)):
        fresh, again = (quantize_layer(weight, s, options).weight for s in (stats, kept))
        assert torch.equal(fresh._qdata, again._qdata)
    assert len(kept.kept) == 2
