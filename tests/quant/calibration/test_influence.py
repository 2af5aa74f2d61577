"""How much of a layer's error arrives at the model's output."""

import json

import pytest
import torch
from torch import nn

from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.calibration import open_calibration
from convert_to_quant.formats.errors import CheckpointError
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import CalibrationData, Calls, calibrate, influences
from convert_to_quant.quant.calibration import save as save_calibration


class Two(nn.Module):
    """One input, two branches: the output is a(x) + 0.1 b(x); `lost` arrives nowhere, `idle` never runs."""

    def __init__(self, wrap=lambda y: y):
        super().__init__()
        self.a, self.b, self.lost, self.idle = (nn.Linear(16, 8) for _ in range(4))
        self.wrap = wrap

    def forward(self, x, scale=0.1):
        self.lost(x)
        return self.wrap(self.a(x) + scale * self.b(x))


def kept(model, *inputs, count=4, **kwargs):
    with Calls(model, count) as calls:
        for x in inputs:
            model(x, **kwargs)
    return calls


def branches(model, x):
    """Return the exact influences: a branch's signal, without its bias, over the output's."""
    x = x.double()
    a, b = (x @ m.weight.double().T for m in (model.a, model.b))
    y = a + model.a.bias.double() + 0.1 * (b + model.b.bias.double())
    return {
        "a": (a.square().sum() / y.square().sum()).item(),
        "b": 0.01 * (b.square().sum() / y.square().sum()).item(),
    }


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y, None), lambda y: {"sample": y}])
def test_a_branch_counts_by_its_share_of_the_output(wrap):
    model, x = Two(wrap), torch.randn(5, 40, 16)
    found = influences(model, kept(model, x))
    assert set(found) == {"a", "b", "lost"}
    assert found["lost"] == 0
    for name, exact in branches(model, x).items():
        assert found[name] == pytest.approx(exact, rel=1e-4)


def test_what_follows_amplifies_or_drowns():
    """A norm behind a layer makes its relative error that of the output; more signal beside it drowns it."""
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    calls = kept(model, torch.randn(200, 32))
    assert influences(model, calls)["1"] == pytest.approx(1, rel=1e-5)
    with torch.no_grad():
        before = influences(model, calls)["0"]
        model[0].weight.mul_(100)
    calls = kept(model, torch.randn(200, 32))
    assert influences(model, calls)["0"] == pytest.approx(before, rel=0.2), "a relative measure"


def test_the_model_is_as_it_was():
    model, x = Two(), torch.randn(3, 16)
    before = {n: p.clone() for n, p in model.named_parameters()}
    exact = model(x)
    first = influences(model, kept(model, x))
    assert influences(model, kept(model, x)) == first
    assert torch.equal(model(x), exact)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_kept_calls_are_copies_and_a_uniform_sample():
    model = Two()
    counts = torch.zeros(6)
    for seed in range(200):
        with Calls(model, 2, seed) as calls:
            for value in range(6):
                x = torch.full((1, 16), float(value))
                model(x, scale=0.1)
                x.zero_()
        assert len(calls) == 2
        with torch.no_grad():
            outputs = [model(torch.full((1, 16), float(v))) for v in range(6)]
            for y in calls.outputs():
                counts[next(i for i, exact in enumerate(outputs) if torch.equal(y, exact))] += 1
    assert counts.sum() == 400
    assert (counts - 400 / 6).abs().max() < 30, "each call is as likely as the next"


def test_bfloat16_and_chosen_layers():
    model = Two().bfloat16()
    calls = kept(model, torch.randn(300, 16, dtype=torch.bfloat16))
    assert set(influences(model, calls, layers=lambda n: n == "b")) == {"b"}
    exact = branches(model.float(), torch.randn(300, 16))["a"]
    assert influences(model.bfloat16(), calls)["a"] == pytest.approx(exact, rel=0.3)


def test_nothing_to_compare():
    model = Two(lambda y: y.argmax())
    with pytest.raises(ValueError, match="Two returns no floating-point tensor"):
        influences(model, kept(model, torch.randn(2, 16)))
    with Calls(model, 0) as calls:
        assert not model._forward_pre_hooks
    assert influences(model, calls) == {}


def test_calibrate_measures_it_when_asked(tmp_path):
    model, batches = Two(), [torch.randn(6, 16) for _ in range(3)]
    assert calibrate(model, batches, tmp_path / "plain.safetensors").influence == {}
    data = calibrate(model, batches, tmp_path / "c.safetensors", influence=3)
    assert data.influence == pytest.approx(influences(model, kept(model, *batches)))
    assert data.names() == CalibrationData.load(tmp_path / "plain.safetensors").names()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("value", ["[]", '{"a": -1}', '{"a": "1"}', '{"a": NaN}', "{", '{"a": true}'])
def test_what_is_no_influence_is_refused(tmp_path, suffix, value):
    path = tmp_path / f"c{suffix}"
    stats = {"a": LayerStats(samples=torch.randn(4, 16), channel_max=torch.ones(16))}
    save_calibration(path, stats, influence={"a": 0.123456789})
    assert CalibrationData.load(path).influence == {"a": 0.123456789}
    whole = path.read_bytes()
    escaped = b'{\\"a\\": 0.123456789}' if suffix != ".json" else b'{"a": 0.123456789}'
    crafted = json.dumps(value)[1:-1].encode() if suffix != ".json" else value.encode()
    assert escaped in whole
    path.write_bytes(whole.replace(escaped, crafted.ljust(len(escaped))))
    with pytest.raises(CheckpointError, match=r"calibration file .*c\."):
        CalibrationData.load(path)


def test_fused_and_split_layers(tmp_path):
    """ComfyUI fuses what diffusers keeps apart: its layer counts as the three, one of three as a third."""
    theirs = [f"transformer_blocks.0.attn.to_{n}" for n in "qkv"]
    ours = "double_blocks.0.img_attn.qkv"
    stats = LayerStats(samples=torch.randn(4, 16))

    def found(recorded, layers):
        path = tmp_path / f"{len(recorded)}.safetensors"
        save_calibration(path, dict.fromkeys(recorded, stats), influence=recorded)
        settings = Settings("m.safetensors", calibration_data=str(path))
        return open_calibration(settings, layers, {}).influence

    assert found(dict(zip(theirs, (0.1, 0.2, 0.4), strict=True)), [ours]) == {ours: pytest.approx(0.7)}
    assert found({ours: 0.6}, theirs) == {name: pytest.approx(0.2) for name in theirs}
