"""What every format promises, checked for each row of `format_cases.CASES`."""

import json
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from calibrated import tokens
from format_cases import CASES, DTYPES, WRITTEN, decoded, described, infos, made, rounding, same, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import heavy

from convert_to_quant.converter.stored.judge import examine
from convert_to_quant.converter.stored.layers import StoredLayer
from convert_to_quant.files.header import TensorInfo
from convert_to_quant.formats import FORMATS, CheckpointError, Format, StoredTensor, read_format
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer
from convert_to_quant.quant.layouts import weight_layout
from convert_to_quant.quant.layouts.weight import loaded

every = pytest.mark.parametrize("case", CASES, ids=str)
written = pytest.mark.parametrize("case", WRITTEN, ids=str)

few = settings(max_examples=15)
SIZES = st.integers(1, 70)


def shapes(case):
    """Odd shapes [N, K] that the format can hold."""
    groups = st.integers(1, 3) if case.columns > 1 else SIZES
    return st.tuples(SIZES, groups.map(lambda g: g * case.columns))


def extras(form: Format):
    """Any of the optional tensors."""
    return st.lists(st.sampled_from(form.extras), unique=True).map(tuple)


def load(form: Format, tensors):
    """(layout, qdata, params) of a layer."""
    layout = weight_layout(form.layout)
    return layout, *loaded(form, tensors, torch.float32)


def dense(form: Format, tensors) -> torch.Tensor:
    """The float weight."""
    layout, qdata, params = load(form, tensors)
    return layout.dequantize(qdata, **params)


def test_the_list_has_every_format():
    assert {type(c.form) for c in CASES} == set(FORMATS.values())


@every
@few
@given(st.data())
def test_describes_its_tensors_and_its_json(case, data):
    n, k = data.draw(shapes(case))
    assert {t.suffix: (t.dtype, t.shape) for t in case.form.stored((n, k))} == case.tensors(n, k)
    assert json.dumps(case.form.config()) == json.dumps(case.config)
    assert case.form.shape(case.tensors(n, k)["weight"][1]) == (n, k)


@every
@given(st.data())
def test_reads_what_it_writes(case, data):
    """A weight of one row has one scale, whether it is said to be the row's or the whole tensor's."""
    own = {name: data.draw(values, name) for name, values in case.fields.items()}
    form = replace(case.form, **own).having(data.draw(extras(case.form)))
    form = replace(form, full_precision_matrix_mult=data.draw(st.booleans()))
    n, k = data.draw(SIZES), data.draw(st.integers(1, 3)) * max(case.columns, form.rotation)
    tensors = {t.suffix: t for t in form.stored((n, k))}
    found = read_format(json.loads(json.dumps(form.config())), tensors, "a.layer")
    assert found.stored((n, k)) == form.stored((n, k))
    assert found.config() == form.config()
    assert found == form or (n == 1 and found == replace(form, granularity="tensor"))


@every
@few
@given(st.data())
def test_loads_the_weight_that_the_oracle_decodes(case, data):
    shape, extra = data.draw(shapes(case)), data.draw(extras(case.form))
    tensors = stored(case, shape, data.draw(st.integers(0, 99)), extra)
    form = read_format(case.config, described(tensors), "a.layer")
    want = decoded(case, tensors)
    smooth = tensors["pre_quant_scale"].double().numpy() if "pre_quant_scale" in extra else 1.0
    got = dense(form, tensors)
    assert got.dtype == torch.float32
    assert (np.abs(got.double().numpy() - want) <= rounding(case, want, smooth)).all()


@written
@few
@given(st.data())
def test_storing_what_was_loaded_changes_no_bit(case, data):
    shape, extra = data.draw(shapes(case)), data.draw(extras(case.form))
    tensors = stored(case, shape, extra=extra)
    config = {**case.config, **({"full_precision_matrix_mult": True} if data.draw(st.booleans()) else {})}
    form = read_format(config, described(tensors), "a.layer")
    layout, qdata, params = load(form, tensors)
    again, out = layout.store(qdata, params)
    assert again == form
    assert again.config() == {**config, "format": form.name}
    assert {(t.suffix, t.dtype, t.shape) for t in form.stored(shape)} == {
        (s, t.dtype, t.shape) for s, t in described(out).items()
    }
    assert all(same(out[s], t) for s, t in tensors.items())


@every
@few
@given(st.data())
def test_rows_can_be_loaded_alone(case, data):
    shape, extra = data.draw(shapes(case)), data.draw(extras(case.form))
    tensors, step = stored(case, shape, extra=extra), case.form.row_step
    form = read_format(case.config, described(tensors), "a.layer")
    first = step * data.draw(st.integers(0, (shape[0] - 1) // step))
    stops = [*range(first + step, shape[0], step), shape[0]]
    stop = data.draw(st.sampled_from(stops))
    parts = form.rows(first, stop - first, described(tensors))
    assert parts.keys() == tensors.keys()
    mine = {s: t if (p := parts[s]) is None else t[p[0] : p[1]] for s, t in tensors.items()}
    assert torch.equal(dense(form, mine), dense(form, tensors)[first:stop])


@written
@few
@given(st.data())
def test_rows_are_taken_apart_and_joined_exactly(case, data):
    shape, extra = data.draw(shapes(case)), data.draw(extras(case.form))
    tensors, step = stored(case, shape, extra=extra), case.form.row_step
    form = read_format(case.config, described(tensors), "a.layer")
    layout, qdata, params = load(form, tensors)
    cuts = data.draw(st.sets(st.sampled_from(range(step, shape[0], step)))) if shape[0] > step else []
    edges = [0, *sorted(cuts), shape[0]]
    parts = [layout.take_rows(qdata, params, a, b) for a, b in pairwise(edges)]
    whole, own = layout.join_rows(parts)
    assert torch.equal(layout.dequantize(whole, **own), dense(form, tensors))


@written
def test_a_part_of_one_row_is_joined(case):
    """The scale of one row looks like that of a whole tensor."""
    step, k = case.form.row_step, 2 * case.columns
    tensors = stored(case, (step + 1, k))
    layout, qdata, params = load(case.form, tensors)
    parts = [layout.take_rows(qdata, params, a, b) for a, b in ((0, step), (step, step + 1))]
    whole, own = layout.join_rows(parts)
    assert torch.equal(layout.dequantize(whole, **own), dense(case.form, tensors))


@written
@few
@given(st.data())
def test_the_grid_agrees_with_the_layout(case, data):
    n, k = data.draw(shapes(case))
    layout = weight_layout(case.form.layout)
    grid, step = layout.grid(case.form), case.form.row_step
    work = heavy(n, k, seed=data.draw(st.integers(0, 99)))
    scale = grid.scale_from(grid.peaks(work))
    assert scale.shape == grid.scale_shape((n, k))
    view = grid.view(scale, slice(0, n), k).expand(n, k)
    codes = grid.round(work, view)
    assert torch.equal(grid.clamp_(codes.clone()), codes)
    assert torch.equal(codes, codes.round())
    error = (grid.values(codes, view) - work).abs()
    for move in (-1, 1):
        other = (grid.values(grid.clamp_(codes + move), view) - work).abs()
        assert (error <= other * 1.0001 + 1e-6 * work.abs()).all()
    values = grid.values(codes, view)
    assert torch.equal(grid.values(grid.round(values, view), view), values)
    start = step * data.draw(st.integers(0, (n - 1) // step))
    assert torch.equal(grid.view(scale, slice(start, n), k).expand(n - start, k), view[start:])
    qdata, params = layout.pack(codes.to(torch.int8), scale, case.form, torch.float32)
    assert torch.equal(layout.values(qdata, params), grid.values(codes, view))


@written
def test_ldlq_stays_on_the_grid_and_beats_rounding(case):
    w, x = torch.randn(48, 128), tokens(400, 128, rank=16)
    errors = {}
    for algorithm in ("rtn", "quip" if case.rotation else "ldlq"):
        options = QuantizeOptions(algorithm, case.form, row_chunk=32)
        made = quantize_layer(w, LayerStats(samples=x), options).weight
        form, tensors = weight_layout(made._layout_type).store(made._qdata, made._layout_params)
        assert form == case.form
        values = torch.from_numpy(decoded(case, tensors))
        errors[algorithm] = ((values - w.double()) @ x.double().T).square().sum()
    rounded, better = errors.values()
    assert better < 0.7 * rounded


@written
def test_rounding_some_rows_at_a_time_changes_no_bit(case):
    """Scales of blocks lie in tiles of 128 rows, and one scale serves all rows: parts must agree on both."""
    w = heavy(288, 256)
    w[280, 3] = 9 * w.abs().max()
    made = [
        quantize_layer(w, None, QuantizeOptions("rtn", case.form, row_chunk=c)).weight for c in (None, 100)
    ]
    whole, parts = (weight_layout(q._layout_type).store(q._qdata, q._layout_params)[1] for q in made)
    assert whole.keys() == parts.keys()
    assert all(same(whole[s], parts[s]) for s in whole)


def refused(config, tensors) -> str:
    """The message with which a layer is refused."""
    with pytest.raises(CheckpointError) as e:
        read_format(config, tensors, "blocks.3.odd")
    assert "blocks.3.odd" in str(e.value)
    return str(e.value)


@every
def test_a_missing_tensor_is_refused(case):
    whole = case.tensors(6, 3 * case.columns)
    for suffix in whole:
        rest = infos({s: t for s, t in whole.items() if s != suffix})
        if suffix in case.optional:
            assert isinstance(read_format(case.config, rest, "blocks.3.odd"), type(case.form))
        else:
            assert suffix in refused(case.config, rest)


@every
@given(st.data())
def test_a_tensor_of_another_dtype_is_refused(case, data):
    """Floats beside the weight may be of any float dtype, which loading converts; nothing else may differ."""
    extra = infos({"input_scale": ("F32", ()), "pre_quant_scale": ("F32", (3 * case.columns,))})
    whole = {**infos(case.tensors(6, 3 * case.columns)), **{s: extra[s] for s in case.form.extras}}
    suffix = data.draw(st.sampled_from(sorted(whole)))
    dtype = data.draw(st.sampled_from(sorted({*DTYPES, "F8_E8M0", "U64", "F4"} - {whole[suffix].dtype})))
    spoiled = {**whole, suffix: replace(whole[suffix], dtype=dtype)}
    floats = ("F16", "BF16", "F32", "F64")
    alike = floats if whole[suffix].dtype in floats else case.readable.get(suffix, ())
    if suffix != "weight" and dtype in alike:
        assert read_format(case.config, spoiled, "blocks.3.odd") == read_format(case.config, whole, "x")
    else:
        assert dtype in refused(case.config, spoiled)


@every
@given(st.data())
def test_a_tensor_with_rows_missing_or_added_is_refused(case, data):
    whole = infos(case.tensors(70, 3 * case.columns))
    suffix = data.draw(st.sampled_from([s for s, t in whole.items() if t.numel > 1]))
    n, *rest = whole[suffix].shape
    other = data.draw(st.integers(1, 200).filter(lambda m: m != n))
    spoiled = {**whole, suffix: replace(whole[suffix], shape=(other, *rest))}
    one = any(t.numel == 1 for s, t in spoiled.items() if s != "weight")
    again = attempt(case.config, spoiled)
    if isinstance(again, str):
        assert "blocks.3.odd" in again
    else:  # one scale serves any weight, and blocks of as many rows are as good
        fitting = again.stored(again.shape(spoiled["weight"].shape))
        assert one or len(whole) == 1 or all(spoiled[t.suffix].shape == t.shape for t in fitting)


def attempt(config, tensors) -> Format | str:
    """The format of a layer, or why it has none."""
    try:
        return read_format(config, tensors, "blocks.3.odd")
    except CheckpointError as e:
        return str(e)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["256", "16", 16, 128, 256, -128, 0, 2**40, 256.0, "true", "int8_blockwise", 10**400]),
)
JSON = st.recursive(
    VALUES,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["convrot", "convrot_groupsize", "group_size", "block_size", "full_precision_matrix_mult", "params", "x"]
)
NAMES = st.sampled_from(list(FORMATS)) | JSON
CONFIGS = st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=4)
AXES = st.lists(st.integers(0, 5) | st.sampled_from([1, 16]), max_size=3).map(tuple)


@settings(max_examples=300)
@given(NAMES, CONFIGS, st.booleans(), st.data())
def test_any_json_beside_any_tensors_is_a_format_or_refused(name, rest, named, data):
    """Nothing else comes of it, what is accepted can be loaded, and verification sees what is refused."""
    config = {"format": name, **rest} if named else rest
    form = FORMATS.get(name) if isinstance(name, str) else None
    weight = form.weight_dtype if form else data.draw(st.sampled_from(["I8", "F8_E4M3", "U8"]))
    shape = data.draw(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 4, 5, 16])) | AXES)
    tensors = {"weight": StoredTensor("weight", weight, shape)}
    likely = [(), (1, 1), (*shape[:1], 1), shape[:1], (1, *shape[:1]), shape]
    for suffix in ("weight_scale", "input_scale", "pre_quant_scale"):
        if data.draw(st.booleans() if suffix != "weight_scale" else st.sampled_from([True, True, False])):
            own = data.draw(st.sampled_from([*likely, shape[1:]]) | AXES)
            dtype = data.draw(st.sampled_from(["F32", "F32", "F64", "I32"]))
            tensors[suffix] = StoredTensor(suffix, dtype, own)
    found, judged = attempt(config, tensors), judge(config, tensors)
    if isinstance(found, str):
        assert "blocks.3.odd" in found
        assert len(found) < 1000
        assert any(p.fatal for p in judged.problems) or weight not in ("I8", "F8_E4M3", "F8_E5M2")
        return
    weight = dense(found, {s: made(t.dtype, t.shape) for s, t in tensors.items()})
    assert weight.shape == found.shape(shape)
    assert judged.problems if judged.format is None else judged.format.describe() == found.describe()


def judge(config, tensors):
    """What verification makes of a layer."""
    info = {s: TensorInfo(f"a.{s}", t.dtype, t.shape, Path("f"), 0, 0) for s, t in tensors.items()}
    raw = json.dumps(config).encode()
    comfy = TensorInfo("a.comfy_quant", "U8", (len(raw),), Path("f"), 0, len(raw))
    beside = {s: t for s, t in info.items() if s != "weight"}
    return examine(StoredLayer("a", info["weight"], beside, comfy, raw))


def test_the_document_has_a_row_for_every_format():
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for case in CASES:
        row = rows[case.form.name]
        assert all(f"`{suffix}`" in row for suffix in case.tensors(1, 64))
        assert all(f"`{key}`" in row for key in case.config if key != "format")
        assert (f"from {case.form.stock_since}" in row) == bool(case.form.stock_since)
        told = case.form.option in ("int8", "") or f"`--format {case.form.option}`" in row
        assert told == ("read only" not in row)


def test_fields_are_what_the_cases_vary():
    """A field that no case varies would be read back by chance only."""
    common = {f.name for f in fields(Format)}
    own = {f.name for c in CASES for f in fields(c.form)} - common
    assert own <= {name for c in CASES for name in c.fields}


def test_extra_tensors_are_equal_in_any_order():
    form = CASES[0].form
    assert replace(form, extra=form.extras[::-1]) == replace(form, extra=form.extras)
    with pytest.raises(ValueError, match="has no weight_zero"):
        replace(form, extra=("weight_zero",))
