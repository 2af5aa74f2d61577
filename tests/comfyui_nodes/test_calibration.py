"""Recording while images are made, beside a stand-in for ComfyUI."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from hosted_model import PACK, float_model, hosted
from torch import nn

from convert_to_quant.quant.calibration import CalibrationData, Recorder
from convert_to_quant.runtime import quantize_model, save_quantized


class Graph:
    """A recorder, a sampler and a saver; `run` is one queued prompt, with the recorder's output cached."""

    def __init__(self, pack, comfy, name="cal"):
        nodes = {n: c() for n, c in pack.NODE_CLASS_MAPPINGS.items()}
        self.recorder, self.saver = nodes["CTQCalibrationRecorder"], nodes["CTQSaveCalibration"]
        self.control, self.int8 = nodes["CTQCalibrationControl"], nodes["CTQSaveInt8Checkpoint"]
        self.comfy, self.name = comfy, name
        self.load()

    def load(self, source="models/m.safetensors", model=None):
        """As after /free: the model built anew, every node run again."""
        model = float_model() if model is None else model
        self.model = self.comfy.model_patcher.ModelPatcher(SimpleNamespace(diffusion_model=model), source)
        (self.recorded,) = self.recorder.start(self.model, self.name, 64, 1.0)

    def run(self, tokens=30, keep=True):
        made = self.recorded.sample(torch.randn(1, tokens, 128))
        saved = self.saver.save({"samples": made}, self.name, keep)
        assert saved["result"][0] == {"samples": made}
        return saved["result"][1]

    def hooks(self):
        return sum(len(m._forward_pre_hooks) for m in self.model.model.diffusion_model.modules())


@pytest.fixture
def graph(pack, comfy, base):
    return Graph(pack, comfy)


def tokens(base, name):
    return CalibrationData.load(base / "output" / "calibration" / name).stats("up").samples.shape[0]


def test_runs_add_up_and_a_rebuilt_model_goes_on(graph, base):
    """/free and memory pressure build the model anew; the record is of its name and file, and only grows."""
    assert graph.run(20) == "cal_00001_.safetensors"
    assert tokens(base, "cal_00001_.safetensors") == 20
    graph.load()
    assert graph.run(20) == "cal_00001_.safetensors"
    assert tokens(base, "cal_00001_.safetensors") == 40


def test_hooks_are_on_only_while_the_recorded_model_runs(graph):
    """The model itself, and other samplers of it, know nothing of the node: when it is gone, so are they."""
    during = []
    graph.model.model.diffusion_model.register_forward_hook(lambda *a: during.append(graph.hooks()))
    graph.recorded.sample(torch.randn(1, 4, 128))
    graph.model.sample(torch.randn(1, 4, 128))
    assert during == [2, 0]
    assert graph.hooks() == 0
    assert graph.model.wrappers == {}


def test_a_record_that_is_not_kept_begins_anew(graph, base):
    """The next run of the same graph works, and writes a file of its own."""
    assert graph.run(20, keep=False) == "cal_00001_.safetensors"
    assert graph.run(10, keep=False) == "cal_00002_.safetensors"
    assert [tokens(base, f"cal_0000{i}_.safetensors") for i in (1, 2)] == [20, 10]
    # The sampler was cached: nothing ran since.
    assert graph.saver.save({}, "cal", False)["result"][1] == "cal_00002_.safetensors"


def test_two_models_of_one_name_have_two_records(graph, base):
    """Nothing is mixed, nothing is thrown away."""
    graph.run(20)
    graph.load("models/other.safetensors")
    assert graph.run(10) == "cal_00002_.safetensors"
    assert [tokens(base, f"cal_0000{i}_.safetensors") for i in (1, 2)] == [20, 10]


def test_a_file_of_an_earlier_session_is_never_written_over(graph, base):
    (base / "output" / "calibration").mkdir()
    old = base / "output" / "calibration" / "cal_00001_.safetensors"
    old.write_bytes(b"earlier")
    assert graph.run() == "cal_00002_.safetensors"
    assert old.read_bytes() == b"earlier"


def test_stop_continue_and_clear(graph, base):
    """Hooks stay off while stopped; clear forgets the record and not the file."""
    graph.run(20)
    assert graph.control.do("cal", "stop")["result"] == ("cal: stopped",)
    graph.run(5)
    graph.control.do("cal", "continue")
    graph.run(7)
    assert tokens(base, "cal_00001_.safetensors") == 27
    assert graph.control.do("cal", "clear")["result"] == ("cal: 1 records forgotten",)
    assert graph.run(3) == "cal_00002_.safetensors"
    assert tokens(base, "cal_00001_.safetensors") == 27
    assert tokens(base, "cal_00002_.safetensors") == 3
    value = graph.control.IS_CHANGED(filename="cal", action="stop")
    assert value != value, "runs each time it is queued"


def test_a_fault_of_the_recorder_never_reaches_the_sampling(graph, monkeypatch, caplog):
    """Whether it cannot begin or fails within a layer: one line, and the same output."""
    x = torch.randn(1, 4, 128)
    want = graph.model.sample(x)
    monkeypatch.setattr(Recorder, "_see", lambda *a: 1 / 0)
    for _ in range(2):
        assert torch.equal(graph.recorded.sample(x), want)
    assert caplog.text.count("recording of") == 1
    monkeypatch.setattr(Recorder, "attach", lambda *a: 1 / 0)
    for _ in range(2):
        assert torch.equal(graph.recorded.sample(x), want)
    assert caplog.text.count("recording of cal stopped: ZeroDivisionError") == 1
    assert graph.hooks() == 0
    with pytest.raises(ValueError, match="nothing was recorded under the name 'cal'"):
        graph.saver.save({}, "cal")


def test_a_fault_of_the_model_is_the_models(graph):
    """And takes the hooks off."""
    with pytest.raises(RuntimeError, match="shapes"):
        graph.recorded.sample(torch.randn(1, 4, 100))
    assert graph.hooks() == 0


def test_a_quantized_model_is_told(graph, comfy, base, caplog):
    model = float_model()
    quantize_model(model, rotation=64)
    path = save_quantized(model, base / "q.safetensors")
    with caplog.at_level(logging.WARNING):
        graph.load(model=hosted(comfy, path))
    assert "2 layers are quantized already (up, down)" in caplog.text
    assert caplog.text.count("\n") == 1


class Bypassing(nn.Module):
    """As a model that multiplies by the weight of its second layer itself."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(128, 64), nn.Linear(64, 128)

    def forward(self, x):
        return nn.functional.linear(self.up(x), self.down.weight)


def test_layers_that_do_not_run_as_modules_are_told_once(graph, caplog):
    graph.load(model=Bypassing())
    for _ in range(2):
        graph.run()
    assert caplog.text.count("1 of 2 linear layers did not run as modules (down)") == 1


def test_what_is_asked_amiss_is_refused(graph):
    with pytest.raises(ValueError, match="put a calibration recorder"):
        graph.saver.save({}, "other")
    with pytest.raises(RuntimeError, match=r"no model\.diffusion_model"):
        graph.recorder.start(object(), "cal", 64, 1.0)
    for act in (
        lambda: graph.recorder.start(graph.model, "../cal", 64, 1.0),
        lambda: graph.saver.save({}, "/tmp/cal"),
        lambda: graph.control.do("C:\\cal", "clear"),
    ):
        with pytest.raises(ValueError, match="no file name"):
            act()


def test_the_saver_of_checkpoints_finds_what_was_recorded(graph, base, monkeypatch):
    """By the recorder's name, also before it was saved; by what Save calibration gives; by file."""
    from convert_to_quant.converter.convert import run

    given = []
    convert = run.convert
    spy = lambda settings, *a: given.append(settings.calibration_data) or convert(settings, *a)
    monkeypatch.setattr(run, "convert", spy)
    graph.recorded.sample(torch.randn(1, 300, 128))
    graph.int8.save(graph.model, "a", "int8_tensorwise", calibration_data="cal")
    name = graph.run()
    graph.int8.save(graph.model, "a", "int8_tensorwise", calibration_data="none", recorded=name)
    graph.int8.save(graph.model, "a", "int8_tensorwise", calibration_data=name)
    graph.control.do("cal", "clear")
    graph.int8.save(graph.model, "a", "int8_tensorwise", calibration_data="cal")
    assert given == [str(base / "output" / "calibration" / "cal_00001_.safetensors")] * 4
    known = graph.int8.INPUT_TYPES()["optional"]["calibration_data"][0]
    assert known == ["none", "cal_00001_.safetensors"]
    with pytest.raises(ValueError, match="there is no calibration 'cal1'; there are: cal_00001_"):
        graph.int8.save(graph.model, "a", "int8_tensorwise", calibration_data="cal1")
    assert graph.int8.VALIDATE_INPUTS("cal1") is True
    assert "no file name" in graph.int8.VALIDATE_INPUTS("../cal1")


def test_the_records_are_this_packs(pack):
    assert sys.modules[f"{PACK}.recording"].RECORDS.named() == []
