"""Recording a model's activations, the file they are kept in, and finding each layer's record."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import CalibrationData, NothingMatched, Recorder, calibrate, save
from convert_to_quant.quant.calibration.names import match
from convert_to_quant.quant.calibration.record import Reservoir


class Block(nn.Module):
    """q, k and v share an input; out has its own; unused never runs."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 8)
        self.unused = nn.Linear(16, 8)

    def forward(self, x, scale=1.0):
        return self.out(self.q(x) + self.k(x) * self.v(input=x) * scale)


def batches(n=6, shape=(3, 10, 16), seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) + 0.5 for _ in range(n)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Block()


def test_statistics_are_those_of_every_token(model, tmp_path):
    data = calibrate(model, batches(), tmp_path / "c.safetensors", tokens=50)
    seen = torch.cat(batches()).reshape(-1, 16)
    stats = data.stats("q")
    torch.testing.assert_close(stats.channel_mean, seen.mean(0))
    assert torch.equal(stats.channel_max, seen.abs().amax(0))
    assert stats.input_scale == pytest.approx(seen.abs().max().item() / 127)
    assert stats.samples.shape == (50, 16)
    assert stats.samples.dtype == torch.bfloat16
    known = {tuple(row.tolist()) for row in seen.bfloat16()}
    assert all(tuple(row.tolist()) for row in stats.samples if tuple(row.tolist()) in known)
    assert not stats.synthetic


def test_layers_fed_by_one_tensor_share_a_record(model, tmp_path):
    data = calibrate(model, batches(), tmp_path / "c.safetensors")
    assert set(data.records) == {"q", "out"}
    assert data.shared == {"k": "q", "v": "q"}
    assert torch.equal(data.stats("v").samples, data.stats("q").samples)


def test_a_layer_that_stops_sharing_gets_its_own_record(model):
    with Recorder(model, tokens=8) as recorder:
        x = batches(1)[0]
        model.q(x), model.k(x)
        model.q(x), model.k(x + 100)
    assert set(recorder.records) == {"q", "k"}
    assert recorder.records["k"].stats().channel_mean.mean() > 90
    assert recorder.records["q"].seen == 60


def test_an_input_changed_in_place_is_another_input(model):
    with Recorder(model, tokens=8) as recorder:
        x = batches(1)[0]
        model.q(x)
        model.k(x.mul_(3))
    assert set(recorder.records) == {"q", "k"}


def test_hooks_are_gone_afterwards(model):
    with Recorder(model) as recorder:
        pass
    model(batches(1)[0])
    assert not recorder.records
    with pytest.raises(ValueError, match="nothing was recorded"):
        recorder.save("unused.safetensors")


def test_the_sample_is_uniform_over_all_calls():
    """Tokens numbered 0 .. 9999 in uneven calls: the sample's mean and spread are the population's."""
    reservoir = Reservoir(1, 1000, seed=0)
    numbers = torch.arange(10000.0).unsqueeze(1)
    for part in numbers.split([1, 499, 2500, 7000]):
        reservoir.add(part / 10000)
    drawn = reservoir.rows.float()
    # Standard error of the mean of 1000 draws is 0.009; of the standard deviation 0.004.
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.std().item() == pytest.approx(12**-0.5, abs=0.015)
    assert reservoir.seen == 10000


def test_fewer_tokens_than_room_are_all_kept():
    reservoir = Reservoir(4, 100, seed=0)
    x = torch.randn(30, 4).bfloat16()
    for part in x.split(7):
        reservoir.add(part)
    assert torch.equal(reservoir.stats().samples, x)


def test_the_seed_repeats_the_file(model, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        calibrate(model, batches(), path, tokens=20, seed=seed)
    one, two, three = (load_file(p)["q.samples"] for p in paths)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_tokens_that_are_not_finite_are_dropped():
    reservoir = Reservoir(4, 100, seed=0)
    x = torch.ones(5, 4)
    x[1, 2], x[3, 0] = float("nan"), float("inf")
    reservoir.add(x)
    assert (reservoir.seen, reservoir.dropped) == (3, 2)
    assert reservoir.stats().samples.isfinite().all()


def test_memory_bound_lowers_the_sample(model):
    assert Recorder(model, tokens=4096, max_bytes=5 * 16 * 2 * 100).tokens == 100


def test_any_call_and_progress(model, tmp_path):
    x, seen = batches(1)[0], []
    calls = [x, (x,), [x, 2.0], {"x": x, "scale": 3.0}]
    calibrate(model, calls, tmp_path / "c.safetensors", progress=lambda *p: seen.append(p))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    data = calibrate(
        model, iter([7]), tmp_path / "d.safetensors", forward=lambda m, batch: m(x * batch), tokens=8
    )
    assert data.stats("q").channel_max.max() > 7


def test_only_chosen_layers(model, tmp_path):
    data = calibrate(model, batches(), tmp_path / "c.safetensors", layers=lambda name: name == "out")
    assert set(data.records) == {"out"}
    with pytest.raises(ValueError, match="no linear layer"):
        Recorder(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("synthetic", [False, True], ids=["recorded", "synthetic"])
def test_files_give_back_what_was_saved(tmp_path, suffix, synthetic):
    stats = LayerStats(torch.randn(3, 4).bfloat16(), torch.rand(4), torch.randn(4), 0.25)
    path = save(tmp_path / f"c{suffix}", {"a.b": stats}, {"a.c": "a.b"}, synthetic)
    data = CalibrationData.load(path)
    got = data.stats("a.c")
    torch.testing.assert_close(got.channel_max, stats.channel_max)
    torch.testing.assert_close(got.channel_mean, stats.channel_mean)
    assert got.input_scale == 0.25
    assert got.synthetic == synthetic
    assert (got.samples is None) == (suffix == ".json")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_json_written_by_hand(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"blocks.0.q": {"channel_max": [1, 2], "input_scale": 0.5, "other": 1}}))
    stats = CalibrationData.load(path).stats("model.diffusion_model.blocks.0.q")
    assert stats.channel_max.tolist() == [1.0, 2.0]
    assert stats.input_scale == 0.5
    assert stats.channel_mean is None


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("c.json", "[1, 2", "not valid JSON"),
        ("c.json", "[]", "is not JSON"),
        ("c.json", "{}", "holds no layer"),
        ("c.safetensors", "nonsense", "is not a safetensors file"),
    ],
    ids=["torn", "list", "empty", "not safetensors"],
)
def test_refused_files(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=match):
        CalibrationData.load(path)


def test_refused_tensors_and_missing_file(tmp_path):
    save_file({"a.weight": torch.ones(2)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="holds no <layer>"):
        CalibrationData.load(tmp_path / "c.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CalibrationData.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("layer", "record"),
    [
        ("blocks.0.q", "blocks.0.q"),
        ("blocks.0.q.weight", "blocks.0.q"),
        ("model.diffusion_model.blocks.0.q", "blocks.0.q"),
        ("blocks.0.q", "model.diffusion_model.blocks.0.q"),
        ("diffusion_model.blocks.0.q", "transformer.blocks.0.q"),
        ("blocks.0.q", "_orig_mod.blocks.0.q"),
        ("model.layers.3.mlp.up_proj", "base_model.model.layers.3.mlp.up_proj"),
    ],
)
def test_names_match_across_prefixes(layer, record):
    found, report = match([layer], [record])
    assert found == {layer: record}
    assert not report.unmatched
    assert not report.unused


def test_match_report(tmp_path):
    stats = LayerStats(channel_max=torch.ones(2))
    data = CalibrationData.load(save(tmp_path / "c.json", {"a": stats, "b": stats}, {"a2": "a"}))
    found, report = data.match(["model.a", "model.a2", "model.c"])
    assert found == {"model.a": "a", "model.a2": "a"}
    assert report.unmatched == ("model.c",)
    assert report.unused == ("b",)
    assert "2 layers matched, 1 without a record (model.c), 1 records unused (b)" in report.summary()


def test_an_exact_name_wins_and_an_ambiguous_one_matches_neither():
    records = ["unet.a", "transformer.a"]
    assert match(["unet.a"], records)[0] == {"unet.a": "unet.a"}
    with pytest.raises(NothingMatched, match=r"none of 2 records \(unet.a, transformer.a\) matches"):
        match(["a"], records)


def test_unknown_layer(tmp_path):
    data = CalibrationData.load(save(tmp_path / "c.json", {"a": LayerStats(input_scale=1.0)}))
    with pytest.raises(KeyError, match="no calibration record for b"):
        data.stats("b")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_sampling_in_inference_mode_is_recorded_as_any_other(model, tmp_path, mode):
    """ComfyUI samples so: its tensors have no version counter."""
    with Recorder(model) as recorder:
        for batch in batches():
            with mode():
                model(batch.clone())
        with torch.no_grad():
            model(batches(1, seed=9)[0])
    data = recorder.save(tmp_path / "c.safetensors")
    wanted = calibrate(model, [*batches(), batches(1, seed=9)[0]], tmp_path / "w.safetensors")
    assert data.shared == wanted.shared == {"k": "q", "v": "q"}
    assert all(torch.equal(data.stats(n).samples, wanted.stats(n).samples) for n in ("q", "out"))
    assert torch.equal(data.stats("q").channel_mean, wanted.stats("q").channel_mean)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_change_in_place_inside_a_model_is_another_input(mode):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            self.first(x)
            x.mul_(3)
            return self.second(x)

    net = InPlace()
    with Recorder(net) as recorder, mode():
        net(torch.randn(5, 8) + 0)
    assert recorder.shared() == {}
    assert recorder.stats()["second"].channel_max == pytest.approx(3 * recorder.stats()["first"].channel_max)


def test_a_hook_that_fails_comes_off_with_one_line_and_never_stops_the_model(model, caplog, monkeypatch):
    wanted = [model(x) for x in batches()]
    add, calls = Reservoir.add, []

    def broken(self, x):
        calls.append(x)
        if x.shape[-1] == 16 and len(calls) > 2:
            raise RuntimeError("no memory")
        add(self, x)

    monkeypatch.setattr(Reservoir, "add", broken)
    with Recorder(model) as recorder:
        assert all(torch.equal(model(x), y) for x, y in zip(batches(), wanted, strict=True))
    lines = [r.message for r in caplog.records]
    assert len(lines) == len(set(lines)) <= 4
    assert "recording of q stopped: RuntimeError: no memory" in lines
    assert not recorder._handles
