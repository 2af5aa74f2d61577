"""Banks of experts [E, N, K] in every format that ComfyUI reads them in, through the toolkit's doors."""

import json

import numpy as np
import pytest
import torch
from format_cases import WRITTEN, arrays, json_tensor, layer, same
from models import save
from safetensors.torch import load_file, save_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor, mixed_precision_ops
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.edit.run import edit
from convert_to_quant.converter.edit.settings import EditSettings
from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.quantization import convert_to_int8, plan_int8
from convert_to_quant.runtime import load_quantized, save_quantized

E, N, K = 3, 160, 128
NAME = "blocks.0.mlp.experts.down_proj"
BANKS = [c for c in WRITTEN if c.form.banks and c.id in ("row", "float8_e4m3fn", "int4")]
banks = pytest.mark.parametrize("case", BANKS, ids=str)


class Net(nn.Module):
    """A module that has a bank as its parameter, under its name."""

    def __init__(self, ops=None):
        super().__init__()
        inner, last = self, NAME.rpartition(".")[2]
        for part in NAME.split(".")[:-1]:
            inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        plain = nn.Module()
        plain.weight = nn.Parameter(torch.empty(E, N, K), requires_grad=False)
        inner.add_module(last, plain if ops is None else ops.MoEExperts(E, K, N, bias=False))

    @property
    def bank(self):
        return self.get_submodule(NAME)


def weights() -> torch.Tensor:
    return torch.randn(E, N, K, generator=torch.Generator().manual_seed(2)) * 0.05


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(original, converted) by case, each made once."""
    made = {}

    def of(case):
        if case.id not in made:
            folder = tmp_path_factory.mktemp("bank")
            original = save(folder / "original.safetensors", {f"{NAME}.weight": weights()})
            convert_to_int8(original, folder / "bank.safetensors", **case.options)
            made[case.id] = original, folder / "bank.safetensors"
        return made[case.id]

    return of


def experts(case, path):
    """The float64 weight of every expert, each decoded as a layer of its own, as ComfyUI takes it out."""
    tensors, config = layer(path, NAME)
    for i in range(E):
        own = {s: t[i] if t.dim() else t for s, t in tensors.items()}
        yield case.decode(arrays(own), {**case.config, **config})


def decibels(found, want) -> float:
    found, want = (np.asarray(t, dtype=np.float64) for t in (found, want))
    return 10 * np.log10((want**2).sum() / ((found - want) ** 2).sum())


@banks
def test_every_expert_is_a_layer_of_the_format(files, case):
    original, converted = files(case)
    tensors, config = layer(converted, NAME)
    assert config["num_experts"] == E
    assert config.get("convrot", False) is False, "ComfyUI 0.33 does not un-rotate a bank of INT8"
    want = {s: (E, *shape) if shape else () for s, (_, shape) in case.tensors(N, K).items()}
    assert {s: tuple(t.shape) for s, t in tensors.items()} == want
    for found, floats in zip(experts(case, converted), load_file(original)[f"{NAME}.weight"], strict=True):
        assert decibels(found, floats.numpy()) > case.least_db - 6


@banks
def test_a_bank_is_verified_inspected_and_made_float(tmp_path, files, case):
    original, converted = files(case)
    report = verify(original, converted)
    assert report.ok, report.problems
    assert report.layers[0].shape == (E, N, K)
    assert f"{E} experts" in report.layers[0].format
    found = inspect_file(converted)
    assert [s.name for s in found.formats if f"{E} experts" in s.name]
    assert not [p for p in found.problems if p.fatal]
    edit(EditSettings(str(converted), str(tmp_path / "float.safetensors"), dequantize="experts"))
    floats = load_file(tmp_path / "float.safetensors")[f"{NAME}.weight"]
    want = np.stack(list(experts(case, converted)))
    assert floats.shape == (E, N, K)
    np.testing.assert_allclose(floats.double().numpy(), want, rtol=2.0**-8, atol=1e-5)


@banks
@pytest.mark.parametrize("damage", ["two experts swapped", "a row of one expert"])
def test_damage_to_one_expert_is_found(tmp_path, files, case, damage):
    original, converted = files(case)
    tensors = load_file(converted)
    weight = tensors[f"{NAME}.weight"].view(torch.int8)
    if damage == "two experts swapped":
        weight[[0, 1]] = weight[[1, 0]]
    else:
        weight[2, 5] = weight[2, 6]
    save_file(tensors, tmp_path / "damaged.safetensors")
    report = verify(original, tmp_path / "damaged.safetensors")
    assert not report.ok
    if damage == "a row of one expert":
        assert f"row {2 * N + 5}" in report.layers[0].fault


@banks
def test_a_bank_runs_in_its_module_and_is_saved_as_it_was(tmp_path, files, case):
    _, converted = files(case)
    ops = mixed_precision_ops({}, torch.float32)
    net = Net(ops)
    net.load_state_dict(load_file(converted))
    assert isinstance(net.bank.weight, QuantizedTensor)
    x = torch.randn(7, K)
    with net.bank.bank_resident(x) as bank:
        for i, want in enumerate(experts(case, converted)):
            assert decibels(bank.expert_linear(x, i), x.double().numpy() @ want.T) > 30
    state = net.state_dict()
    assert state.keys() == load_file(converted).keys()
    for name, tensor in load_file(converted).items():
        assert same(state[name], tensor), name


@banks
def test_a_bank_is_loaded_into_a_parameter_of_three_axes(tmp_path, files, case):
    """Quantized where the layout can be seen so, else as floats."""
    _, converted = files(case)
    net = Net()
    load_quantized(net, converted)
    want = np.stack(list(experts(case, converted)))
    assert net.bank.weight.shape == (E, N, K)
    weight = net.bank.weight
    assert isinstance(weight, QuantizedTensor) == (case.id == "row")
    floats = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    np.testing.assert_allclose(floats.double().numpy(), want, rtol=2.0**-7, atol=1e-4)
    if case.id == "row":
        save_quantized(net, tmp_path / "again.safetensors")
        again, before = load_file(tmp_path / "again.safetensors"), load_file(converted)
        assert all(torch.equal(again[n], before[n]) for n in before)


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({}, "row, 3 experts"),
        ({"format": "w4a8"}, "row, 3 experts"),
        ({"format": "nvfp4"}, "float8_e4m3fn, 3 experts"),
        ({"scaling_mode": "tensor"}, "a bank of experts has a scale per row"),
        ({"scaling_mode": "block"}, "stock ComfyUI reads no bank of experts in it"),
    ],
    ids=str,
)
def test_formats_without_banks_give_way(tmp_path, options, stored):
    tensors = {f"{NAME}.weight": weights(), "blocks.0.fc.weight": torch.randn(256, K)}
    plan = plan_int8(save(tmp_path / "m.safetensors", tensors), **options)
    bank = next(t for t in plan.layers if NAME in t.name)
    assert stored in (bank.stored, bank.reason.partition(": ")[2])


def test_a_bank_that_is_rotated_or_counts_others_is_reported(tmp_path, files, capsys):
    original, converted = files(BANKS[0])
    for change, told in (
        ({"convrot": True, "convrot_groupsize": 64}, "stock ComfyUI does not un-rotate it"),
        ({"num_experts": 5}, "num_experts is 5, its weight has 3"),
    ):
        tensors = load_file(converted)
        config = json.loads(bytes(tensors[f"{NAME}.comfy_quant"].tolist()))
        tensors[f"{NAME}.comfy_quant"] = json_tensor({**config, **change})
        save_file(tensors, tmp_path / "changed.safetensors")
        main(["inspect", str(tmp_path / "changed.safetensors")])
        assert told in capsys.readouterr().out.replace("\n", " ")
        assert main(["verify", str(original), str(tmp_path / "changed.safetensors")]) == (
            1 if "convrot" in change else 0
        )


def test_no_lora_and_no_bias_correction_of_a_bank(tmp_path):
    tensors = {f"{NAME}.weight": weights(), "blocks.0.fc.weight": torch.randn(256, K)}
    model = save(tmp_path / "m.safetensors", tensors)
    assert main(["-i", str(model), "-o", str(tmp_path / "q"), "--extract-lora", "4", "--lora-output",
                 str(tmp_path / "l"), "--quiet"]) == 0  # fmt: skip
    assert not [n for n in load_file(tmp_path / "l") if "experts" in n]
