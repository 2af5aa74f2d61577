"""A format that no other file knows: five levels, two scales, packed rows. All of the toolkit works with it.

The recipe of CONTRIBUTING.md ("Add a format"), followed once, in this file alone.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from calibrated import tokens
from models import block_weights, layers, save
from safetensors.torch import load_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor, mixed_precision_ops
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.edit.run import edit
from convert_to_quant.converter.edit.settings import EditSettings
from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.formats import FORMATS, Format, StoredTensor
from convert_to_quant.formats.names import SCALE, WEIGHT
from convert_to_quant.kernels import rotate
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quant.grid import Grid
from convert_to_quant.quant.layouts import LAYOUTS, WeightLayout
from convert_to_quant.quant.layouts.weight import carried, with_extras
from convert_to_quant.quant.runtime.rows import join_rows, take_rows
from convert_to_quant.quantization import convert_to_int8, plan_int8
from convert_to_quant.runtime import LowRank, apply_lora, load_quantized, save_quantized

GROUP, PER_BYTE, LEVELS = 16, 3, 2
GROUP_SCALE = "weight_group_scale"


@dataclass(frozen=True, kw_only=True)
class FiveLevels(Format):
    """Codes -2 to 2, three in a byte; w = code x group scale (float16) x row scale (float32), rotated."""

    name: ClassVar[str] = "five_levels"
    option: ClassVar[str] = "five"
    layout: ClassVar[str] = "FiveLevelLayout"
    rotates: ClassVar[bool] = True
    weight_dtype: ClassVar[str] = "U8"
    suffixes: ClassVar[tuple[str, ...]] = (SCALE, GROUP_SCALE)

    columns: int = 0

    def tensors(self, shape):
        n, k = shape
        packed = StoredTensor(WEIGHT, "U8", (n, -(-k // PER_BYTE)))
        return packed, StoredTensor(SCALE, "F32", (n,)), StoredTensor(GROUP_SCALE, "F16", (n, k // GROUP))

    def keys(self):
        return {"convrot_groupsize": self.rotation}

    @classmethod
    def from_settings(cls, settings, tensors, where):
        columns = GROUP * tensors[GROUP_SCALE].shape[1]
        return cls(rotation=settings["convrot_groupsize"], columns=columns, **cls.common(settings, tensors))

    def shape(self, stored):
        return stored[0], self.columns or PER_BYTE * stored[1]

    def why_not(self, shape):
        return f"{shape[1]} columns are no multiple of {GROUP}" if shape[1] % GROUP else ""


class FiveLevelGrid(Grid):
    """Group scales are stored as float16 shares of the row's largest."""

    def settle(self, scale):
        row = scale.amax(1, keepdim=True)
        return (scale / row).half().float() * row


class FiveLevelLayout(WeightLayout):
    @classmethod
    def grid(cls, form):
        return FiveLevelGrid(levels=LEVELS, rows=1, columns=GROUP, rotation=form.rotation)

    @classmethod
    def form(cls, params):
        return with_extras(FiveLevels(rotation=params["rotation"], columns=params["orig_shape"][1]), params)

    @classmethod
    def pack(cls, codes, scale, form, dtype):
        n, k = codes.shape
        row = scale.amax(1, keepdim=True)
        digits = nn.functional.pad(codes + LEVELS, (0, -k % PER_BYTE)).view(n, -1, PER_BYTE)
        packed = (digits * torch.tensor([1, 5, 25], dtype=torch.uint8)).sum(2).to(torch.uint8)
        params = {"row": row.flatten(), "group": (scale / row).half(), "orig_dtype": dtype}
        return packed, {**params, "rotation": form.rotation, "orig_shape": (n, k)}

    @classmethod
    def values(cls, qdata, params):
        n, k = params["orig_shape"]
        powers = torch.tensor([1, 5, 25], dtype=torch.uint8)
        codes = (qdata.unsqueeze(2) // powers % 5).view(n, -1)[:, :k].float() - LEVELS
        scale = params["group"].float() * params["row"].unsqueeze(1)
        return codes * scale.repeat_interleave(GROUP, 1)

    @classmethod
    def scales(cls, qdata, params):
        return params["group"].float() * params["row"].unsqueeze(1)

    @classmethod
    def load(cls, form, tensors: Mapping[str, torch.Tensor], dtype):
        params: dict[str, Any] = {"row": tensors[SCALE], "group": tensors[GROUP_SCALE], "orig_dtype": dtype}
        params |= {"rotation": form.rotation, "orig_shape": form.shape(tuple(tensors[WEIGHT].shape))}
        return tensors[WEIGHT], {**params, **{s: tensors[s] for s in form.extra}}

    @classmethod
    def store(cls, qdata, params):
        tensors = {WEIGHT: qdata, SCALE: params["row"], GROUP_SCALE: params["group"]}
        return cls.form(params), {**tensors, **carried(params)}


@pytest.fixture(autouse=True)
def known():
    """The format is there for these tests only."""
    FORMATS[FiveLevels.name], LAYOUTS[FiveLevelLayout.__name__] = FiveLevels, FiveLevelLayout
    yield
    del FORMATS[FiveLevels.name], LAYOUTS[FiveLevelLayout.__name__]


del FORMATS[FiveLevels.name], LAYOUTS[FiveLevelLayout.__name__]


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "m.safetensors", block_weights(), {"kept": "yes"})


@pytest.fixture
def converted(model, tmp_path):
    output = tmp_path / "five.safetensors"
    return output, convert_to_int8(model, output, format="five")


def expected(tensors: Mapping[str, torch.Tensor], layer: str) -> torch.Tensor:
    """The float weight by the format's description, in float64, independently of the layout."""
    raw = tensors[f"{layer}.weight"].to(torch.int64)
    digits = torch.stack([raw % 5, raw // 5 % 5, raw // 25], 2).flatten(1) - 2
    scale = tensors[f"{layer}.{GROUP_SCALE}"].double() * tensors[f"{layer}.weight_scale"].double()[:, None]
    k = scale.shape[1] * GROUP
    group = json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))["convrot_groupsize"]
    rotated = digits[:, :k].double() * scale.repeat_interleave(GROUP, 1)
    return rotate(rotated.float(), group).double()


def test_converts_checks_and_names(converted, model):
    output, report = converted
    tensors, source = load_file(output), load_file(model)
    assert [r.name for r in report.layers] == layers()
    assert {r.format for r in report.layers} == {"five_levels"}
    for layer in layers():
        n, k = source[f"{layer}.weight"].shape
        assert tensors[f"{layer}.weight"].shape == (n, -(-k // 3))
        assert tensors[f"{layer}.weight"].dtype == torch.uint8
        assert tensors[f"{layer}.weight_scale"].shape == (n,)
        error = expected(tensors, layer) - source[f"{layer}.weight"].double()
        signal = source[f"{layer}.weight"].double().square().sum()
        reported = next(r.sqnr_db for r in report.layers if r.name == layer)
        assert 5 < reported < 15
        assert reported == pytest.approx(10 * torch.log10(signal / error.square().sum()).item(), abs=0.01)


def test_the_default_name_and_the_dry_run(model):
    plan = plan_int8(model, format="five")
    assert plan.output.endswith("m-five_convrot.safetensors")
    assert {t.stored for t in plan.layers if t.action == "quantize"} == {"five_levels"}
    done = convert_to_int8(model, format="five")
    assert done.bytes_after == plan.bytes_after


def test_a_layer_it_cannot_hold_is_kept_and_says_why(tmp_path):
    weights = {f"blocks.{i}.a.weight": torch.randn(100, 200 + 8 * i) for i in range(3)}
    report = convert_to_int8(save(tmp_path / "m.safetensors", weights), format="five", convrot=False)
    assert [r.name for r in report.layers] == ["blocks.1.a"]
    assert report.kept[0].reason == "five_levels cannot hold it: 200 columns are no multiple of 16"


def test_calibrated_conversion_is_better_on_its_inputs(model, tmp_path):
    x = {name: tokens(600, 512 if name.endswith("fc2") else 256) for name in layers()}
    records = {name: LayerStats(samples=samples) for name, samples in x.items()}
    calibration = save_calibration(tmp_path / "c.safetensors", records)
    files = {}
    for name, options in {"plain": {}, "ldlq": {"calibration_data": str(calibration)}}.items():
        files[name] = tmp_path / f"{name}.safetensors"
        report = convert_to_int8(model, files[name], format="five", **options)
    assert {r.algorithm for r in report.layers} == {"quip"}
    source = load_file(model)
    for layer in layers():
        weight = source[f"{layer}.weight"].double()
        noise = [
            ((expected(load_file(f), layer) - weight) @ x[layer].double().T).square().sum()
            for f in (files["plain"], files["ldlq"])
        ]
        assert noise[1] < 0.7 * noise[0]


def test_custom_layers_and_configuration(model, tmp_path):
    config = tmp_path / "l.json"
    config.write_text(json.dumps({r"blocks\.0\.mlp\.fc1": {"format": "five_levels"}}))
    mixed = convert_to_int8(model, tmp_path / "a.safetensors", layer_config=str(config))
    assert [r.format for r in mixed.layers].count("five_levels") == 1
    custom = convert_to_int8(model, tmp_path / "b.safetensors", custom_layers="fc2", custom_type="five")
    assert [r.format for r in custom.layers].count("five_levels") == 2


def test_verifies_and_tells_damage(converted, model, tmp_path):
    output, report = converted
    found = verify(model, output)
    assert found.ok, found.problems
    assert [r.weight_db for r in found.layers] == pytest.approx([r.sqnr_db for r in report.layers], abs=1e-3)
    tensors = load_file(output)
    tensors[f"{layers()[0]}.weight"] = tensors[f"{layers()[0]}.weight"].roll(1, 0)
    damaged = verify(model, save(tmp_path / "d.safetensors", tensors))
    assert [r.name for r in damaged.faults] == layers()[:1]


def test_a_missing_or_misshapen_scale_is_a_problem(converted, tmp_path):
    tensors = load_file(converted[0])
    del tensors[f"{layers()[0]}.{GROUP_SCALE}"]
    tensors[f"{layers()[1]}.weight_scale"] = tensors[f"{layers()[1]}.weight_scale"][:-1]
    problems = inspect_file(save(tmp_path / "d.safetensors", tensors)).problems
    assert {p.where for p in problems} == set(layers()[:2])


def test_inspect_and_command_line(converted, model, capsys):
    output, _ = converted
    assert main(["inspect", str(output)]) == 0
    text = capsys.readouterr().out
    assert "five_levels" in text
    assert "contract: nothing wrong" in text
    assert main(["verify", str(model), str(output)]) == 0
    assert main(["-i", str(model), "-o", str(output), "--format", "five", "--no-convrot", "--overwrite"]) == 0


def test_edit_makes_single_layers_float_again(converted, tmp_path):
    output, _ = converted
    target = tmp_path / "e.safetensors"
    edit(EditSettings(input_file=str(output), output_file=str(target), dequantize="fc1"))
    before, after = load_file(output), load_file(target)
    for layer in layers():
        weight = after[f"{layer}.weight"]
        if layer.endswith("fc1"):
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight, expected(before, layer).to(torch.bfloat16))
            assert f"{layer}.{GROUP_SCALE}" not in after
        else:
            assert torch.equal(weight, before[f"{layer}.weight"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.fixture
def net(model, tmp_path):
    """A model, its float weights, and a file of it in the format."""
    source = load_file(model)
    own = {f"{n}.weight": source[f"blocks.0.mlp.{n}.weight"].float() for n in ("fc1", "fc2")}
    path = tmp_path / "five.safetensors"
    convert_to_int8(save(tmp_path / "net.safetensors", own), path, format="five")
    return Net(), path


def test_loads_runs_compiles_and_saves(net, tmp_path):
    module, path = net
    report = load_quantized(module, path)
    assert set(report.quantized.values()) == {"five_levels"}
    tensors = load_file(path)
    x = torch.randn(7, 256)
    dense = {n: expected(tensors, n).float() for n in ("fc1", "fc2")}
    want = torch.relu(x @ dense["fc1"].T) @ dense["fc2"].T
    with torch.no_grad():
        got = module(x)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)
    assert torch.allclose(compiled, got, rtol=1e-5, atol=1e-5)
    again = load_file(save_quantized(module, tmp_path / "again.safetensors"))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[n], t) for n, t in tensors.items())


def test_mixed_precision_ops_read_and_write_it(net):
    _, path = net
    tensors = {n.removeprefix("fc1."): t for n, t in load_file(path).items() if n.startswith("fc1.")}
    linear = mixed_precision_ops({}, torch.float32).Linear(256, 512, bias=False, device="meta")
    linear.load_state_dict(tensors)
    assert linear.quant_format == "five_levels"
    x = torch.randn(3, 256)
    assert torch.allclose(linear(x), x @ linear.weight.dequantize().T, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(t, tensors[n]) for n, t in linear.state_dict().items())


def test_a_lora_goes_on_and_comes_off_to_the_bit(net):
    module, path = net
    load_quantized(module, path)
    before = {n: t.clone() for n, t in module.fc1.weight.inner_tensors().items()}
    dense = module.fc1.weight.dequantize()
    delta = LowRank(torch.randn(4, 256), torch.randn(512, 4), 0.5)
    with apply_lora(module, {"fc1": delta}):
        error = module.fc1.weight.dequantize() - dense - delta.delta(torch.device("cpu"))
        wanted = dense + delta.delta(torch.device("cpu"))
        assert error.square().sum() < 0.3 * wanted.square().sum()
        assert not torch.equal(module.fc1.weight._qdata, before["_qdata"])
    assert all(torch.equal(t, before[n]) for n, t in module.fc1.weight.inner_tensors().items())


def test_rows_are_taken_and_joined_exactly(net):
    module, path = net
    load_quantized(module, path)
    weight = module.fc1.weight
    parts = [take_rows(weight, a, b) for a, b in ((0, 100), (100, 512))]
    assert torch.equal(parts[1].dequantize(), weight.dequantize()[100:])
    joined = join_rows(parts)
    assert all(torch.equal(t, weight.inner_tensors()[n]) for n, t in joined.inner_tensors().items())


def test_layout_ops_with_a_hessian():
    """ldlq_ and accumulate_hessian_ on a QuantizedTensor of the format."""
    w, x = torch.randn(40, 64), tokens(300, 64)
    form = FiveLevels(rotation=16, columns=64)
    q = QuantizedTensor.from_float(w, "FiveLevelLayout", form=form)
    h = torch.zeros(64, 64)
    torch.ops.convert_to_quant.accumulate_hessian_(h, x, 16)
    h /= len(x)
    grid = FiveLevelLayout.grid(form)
    scale = grid.scale_from(grid.peaks(rotate(w, 16)))
    before = ((q.dequantize() - w) @ x.T).square().sum()
    errors = torch.ops.convert_to_quant.ldlq_(q, w, h, scale)
    after = ((q.dequantize() - w) @ x.T).square().sum()
    assert after < 0.8 * before
    assert torch.allclose(rotate(errors, 16), w - q.dequantize(), atol=1e-4)


@pytest.mark.parametrize("algorithm", ["rtn", "ldlq", "quip", "radam"])
@pytest.mark.parametrize("search", [False, True])
def test_every_algorithm_stays_on_the_grid(algorithm, search):
    form = FiveLevels(rotation=64, columns=128)
    w, stats = torch.randn(48, 128), LayerStats(samples=tokens(400, 128))
    options = QuantizeOptions(algorithm, form, scale_search=search, steps=5, row_chunk=17)
    result = quantize_layer(w, stats, options)
    assert result.weight._layout_type == "FiveLevelLayout"
    assert result.weight._qdata.max() <= 124
    error = (result.weight.dequantize() - w).square().sum()
    assert error < 0.5 * w.square().sum()


def test_no_other_file_of_the_toolkit_knows_it():
    code = "import convert_to_quant.formats as f; print('five_levels' in f.FORMATS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
