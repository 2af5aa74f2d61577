"""Every format through the toolkit's doors: convert, verify, inspect, edit, load, save, LoRA, rows."""

import json

import numpy as np
import pytest
import torch
from format_cases import CASES, WRITTEN, decoded, described, json_tensor, layer, same, stored
from models import save
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor, mixed_precision_ops
from convert_to_quant.converter.edit.run import edit
from convert_to_quant.converter.edit.settings import EditSettings
from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.formats import read_format
from convert_to_quant.formats.float8 import Float8
from convert_to_quant.quant.layouts import weight_layout
from convert_to_quant.quant.layouts.weight import loaded
from convert_to_quant.quantization import convert_to_int8, plan_int8
from convert_to_quant.runtime import LowRank, apply_lora, load_quantized, save_quantized

written = pytest.mark.parametrize("case", WRITTEN, ids=str)
fp8 = pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.form, Float8)], ids=str)


class Net(nn.Module):
    """One linear for every shape of a case."""

    def __init__(self, case):
        super().__init__()
        for name, (n, k) in zip(names(case), case.shapes, strict=True):
            self.add_module(name, nn.Linear(k, n, bias=False))


def names(case) -> list[str]:
    """The layers of a case's model."""
    return [f"fc{i}" for i in range(len(case.shapes))]


def weights(case) -> dict[str, torch.Tensor]:
    """The float model of a case."""
    g = torch.Generator().manual_seed(1)
    floats = {
        f"{name}.weight": torch.randn(*shape, generator=g) * 0.05
        for name, shape in zip(names(case), case.shapes, strict=True)
    }
    return {**floats, "norm": torch.ones(3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(original, converted, report) by case, each made once."""
    made = {}

    def of(case):
        if case.id not in made:
            folder = tmp_path_factory.mktemp("case")
            original = save(folder / "original.safetensors", weights(case))
            converted = folder / "converted.safetensors"
            report = convert_to_int8(original, converted, **case.options)
            made[case.id] = original, converted, report
        return made[case.id]

    return of


@pytest.fixture
def net(request, files):
    """A function that gives the loaded model of a case."""

    def of(case):
        model = Net(case)
        load_quantized(model, files(case)[1], strict=False)
        return model

    return of


@written
def test_a_conversion_writes_what_the_format_says(case, files):
    _, converted, report = files(case)
    assert [r.name for r in report.layers] == names(case)
    for name, shape, row in zip(names(case), case.shapes, report.layers, strict=True):
        tensors, config = layer(converted, name)
        found = {s: (t.dtype, t.shape) for s, t in described(tensors).items()}
        assert found == case.tensors(*shape)
        assert json.dumps(config) == json.dumps(case.config)
        want = weights(case)[f"{name}.weight"].double().numpy()
        error = decoded(case, tensors) - want
        db = 10 * np.log10((want**2).sum() / (error**2).sum())
        assert db > case.least_db
        assert row.sqnr_db == pytest.approx(db, abs=0.01)


@written
def test_verifies_and_inspects(case, files):
    original, converted, report = files(case)
    found = verify(original, converted)
    assert found.ok, found.problems
    assert [r.weight_db for r in found.layers] == pytest.approx([r.sqnr_db for r in report.layers], abs=1e-3)
    looked = inspect_file(converted)
    assert [s.name.split()[0] for s in looked.formats] == [case.form.name]
    assert case.form.describe() in looked.formats[0].name
    assert not [p for p in looked.problems if p.fatal]


def test_verifies_w4a8_by_the_codebook_of_the_file(tmp_path):
    """A layer of another tool may have its own table of levels, or none: codes are then the levels."""
    case = next(c for c in WRITTEN if c.id == "w4a8")
    for name, table in (("own", torch.linspace(-1, 1, 16)), ("none", None)):
        tensors = stored(case, (64, 64))
        tensors["weight_s_channel"] = torch.full((64,), 0.01)
        tensors["weight_s_rel"] = torch.full((64, 4), 100.0 if name == "own" else 12.0).to(
            torch.float8_e4m3fn
        )
        tensors.pop("weight_codebook")
        config, beside = case.config, {} if table is None else {"weight_codebook": table}
        own = read_format(config, described({**tensors, **beside}), "a")
        layout = weight_layout(own.layout)
        qdata, params = loaded(own, {**tensors, **beside}, torch.float32)
        weight = layout.values(qdata, params)
        assert torch.equal(layout.nearest(weight, qdata, params), weight)
        if name == "none":
            assert np.allclose(decoded_without_table(tensors), weight.numpy())


def decoded_without_table(tensors) -> np.ndarray:
    """Codes less 8, times both scales, as they are stored."""
    raw = tensors["weight"].numpy().view(np.uint8).astype(int)
    codes = np.stack([raw & 15, raw >> 4], 2).reshape(len(raw), -1) - 8
    return np.clip(np.round(codes * 12.0), -127, 127) * 0.01


@written
def test_edit_makes_floats_of_it(case, files, tmp_path):
    _, converted, _ = files(case)
    target = tmp_path / "e.safetensors"
    edit(EditSettings(input_file=str(converted), output_file=str(target), dequantize="fc0"))
    before, after = load_file(converted), load_file(target)
    want = decoded(case, layer(converted, "fc0")[0])
    got = after["fc0.weight"]
    step = torch.finfo(got.dtype).eps * np.abs(want) + 1e-7
    assert (np.abs(got.double().numpy() - want) <= step).all()
    assert {n for n in after if n.startswith("fc0.")} == {"fc0.weight"}
    rest = [n for n in before if not n.startswith("fc0.")]
    assert all(same(after[n], before[n]) for n in rest)


@written
def test_loading_and_saving_changes_no_bit(case, files, net, tmp_path):
    model = net(case)
    assert all(isinstance(model.get_submodule(n).weight, QuantizedTensor) for n in names(case))
    again = load_file(save_quantized(model, tmp_path / "again.safetensors"))
    before = {n: t for n, t in load_file(files(case)[1]).items() if n != "norm"}
    assert list(again) == list(before)
    assert all(same(again[n], t) for n, t in before.items())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float_products_stay_asked_for(case, tmp_path):
    """ComfyUI reads and writes ``full_precision_matrix_mult``: loading and saving must not lose it."""
    config = {**case.config, "full_precision_matrix_mult": True}
    n, k = case.shapes[0]
    tensors = {**stored(case, (n, k)), "comfy_quant": json_tensor(config)}
    linear = mixed_precision_ops({}, torch.float32).Linear(k, n, bias=False, device="meta")
    linear.load_state_dict(tensors)
    assert linear.full_precision
    if case in WRITTEN:
        written_again = linear.state_dict()["comfy_quant"]
        assert json.loads(bytes(written_again.tolist())) == config


@written
def test_a_lora_goes_on_and_comes_off_to_the_bit(case, files, net):
    model = net(case)
    weight, (n, k) = model.fc0.weight, case.shapes[0]
    before = {name: t.clone() for name, t in weight.inner_tensors().items()}
    want = torch.from_numpy(decoded(case, layer(files(case)[1], "fc0")[0]))
    delta = LowRank(torch.randn(2, k), torch.randn(n, 2), 0.02)
    with apply_lora(model, {"fc0": delta}):
        want += delta.delta(torch.device("cpu"))
        error = model.fc0.weight.dequantize() - want
        assert error.square().sum() < 10 ** (-case.least_db / 10) * want.square().sum()
    assert all(same(t, before[name]) for name, t in weight.inner_tensors().items())


@fp8
def test_fp8_of_others_is_verified_and_loads(case, tmp_path):
    original = save(tmp_path / "o.safetensors", weights(case))
    path = save(tmp_path / "q.safetensors", fp8_file(case))
    found = verify(original, path)
    assert found.ok, found.problems
    assert [r.name for r in found.layers] == names(case)
    model = Net(case)
    report = load_quantized(model, path, strict=False, dtype=torch.float32)
    assert list(report.quantized) == names(case)
    for name in names(case):
        want = decoded(case, layer(path, name)[0])
        got = model.get_submodule(name).weight.dequantize().double().numpy()
        assert np.allclose(got, want, rtol=1e-6, atol=0)


@fp8
def test_fp8_is_a_source_of_a_conversion(case, tmp_path):
    source = save(tmp_path / "s.safetensors", fp8_file(case))
    target = tmp_path / "t.safetensors"
    convert_to_int8(source, target, convrot=False)
    found = verify(source, target)
    assert found.ok, (found.problems, found.faults)
    row = WRITTEN[0]
    for name in names(case):
        want = decoded(case, layer(source, name)[0])
        error = decoded(row, layer(target, name)[0]) - want
        assert (error**2).sum() < 10**-3.5 * (want**2).sum()


def scaled(case) -> bool:
    """Whether its weights have a scale."""
    return "weight_scale" in case.tensors(1, 1)


def fp8_file(case) -> dict[str, torch.Tensor]:
    """The model of a case in FP8, as other tools write it."""
    out = {"norm": torch.ones(3)}
    for name in names(case):
        tensors = encoded(case, weights(case)[f"{name}.weight"])
        out |= {f"{name}.{s}": t for s, t in tensors.items()}
        out[f"{name}.comfy_quant"] = json_tensor(case.config)
    return out


def encoded(case, w: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight in FP8, as other tools make it."""
    wanted = case.tensors(*w.shape)
    dtype = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[wanted["weight"][0]]
    shape = wanted.get("weight_scale", ("F32", ()))[1]
    scale = w.abs().max() / 400 * torch.ones(shape) if scaled(case) else torch.ones(())
    beside = {"weight_scale": scale} if scaled(case) else {}
    return {"weight": (w / scale).to(dtype), **beside}


@pytest.mark.parametrize(
    ("asked", "columns", "stored_as"),
    [("int4", 208, "w4a8"), ("w6a8", 208, "int8"), ("w4a8", 200, "int8"), ("int4", 200, "int8")],
)
def test_a_layer_that_cannot_have_a_format_gets_the_next_better_one(asked, columns, stored_as, tmp_path):
    model = {f"blocks.{i}.fc.weight": torch.randn(160, columns if i else 256) for i in range(3)}
    plan = plan_int8(save(tmp_path / "m.safetensors", model), format=asked)
    kinds = {t.name: (t.kind, t.reason) for t in plan.layers}
    assert kinds["blocks.0.fc"][0] == asked.upper()
    kind, reason = kinds["blocks.1.fc"]
    assert kind == stored_as.upper()
    assert f"{columns} columns are no multiple of" in reason


@written
def test_the_dry_run_tells_the_size_of_the_file(case, files, tmp_path):
    original, converted, _ = files(case)
    assert plan_int8(original, tmp_path / "x.safetensors", **case.options).bytes_after == (
        converted.stat().st_size
    )


@written
def test_a_file_that_is_partly_of_the_format_is_converted_further_and_verified(files, case, tmp_path):
    """Layers that are quantized already stay as they are, packed or not; only the float one is new."""
    converted = load_file(files(case)[1])
    half = save(tmp_path / "half.safetensors", {**converted, "more.weight": torch.randn(128, 128)})
    report = convert_to_int8(half, tmp_path / "all.safetensors")
    found = verify(half, tmp_path / "all.safetensors")
    assert found.ok, found.problems
    new = {r.name for r in report.layers}
    assert new == {"more", *(set(names(case)) if isinstance(case.form, Float8) else ())}
