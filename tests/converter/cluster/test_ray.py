"""Conversions on a real Ray cluster of two nodes on this machine: the bytes are those of one process.

Starting it, and a process in each node, takes most of the time here: one cluster serves all tests.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from fatal import Fatal
from models import block_weights, layers, save

from convert_to_quant import convert_many
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.cluster import ray_executor
from convert_to_quant.converter.convert.run import convert
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.files.writer import OutputFile
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import ConversionError, convert_to_int8

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from convert_to_quant.ray import RayExecutor  # noqa: E402

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture(scope="module")
def scratch():
    """A folder for Ray. There are sockets in it: its path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="ctq", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def address(scratch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(scratch))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(
            "RAY_worker_niceness", "0"
        )  # 15 by default: on a busy machine they would wait for minutes
        patch.setenv("PYTHONPATH", str(SUPPORT))
        one_core = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=one_core)
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def executor(address, told):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers, whatever ran before
    with RayExecutor(address, told.append) as executor:
        yield executor
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models that differ, and a calibration for all."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        save(folder / f"{name}.safetensors", block_weights(dtype=torch.float32, seed=seed))
    weights, g = block_weights(), torch.Generator().manual_seed(0)
    stats = {}
    for name in layers():
        x = torch.randn(384, weights[f"{name}.weight"].shape[1], generator=g)
        stats[name] = LayerStats(x.bfloat16(), x.abs().amax(0), x.mean(0), float(x.abs().max() / 127))
    save_calibration(folder / "calibration.safetensors", stats)
    return folder


def settings(folder, output, name="a", **options):
    given = {"calibration_data": str(folder / "calibration.safetensors"), **options}
    return Settings(input_file=str(folder / f"{name}.safetensors"), output_file=str(output), **given)


@pytest.fixture(scope="module")
def whole(folder, executor):
    """The bytes of a calibrated conversion in this process, with as many threads."""
    output = folder / "whole.quantized"
    convert(settings(folder, output))
    return output.read_bytes()


# The layers of one model


def test_the_bytes_are_those_of_one_process(tmp_path, folder, executor, whole, told):
    report = convert(settings(folder, tmp_path / "q.safetensors"), executor=executor)
    assert (tmp_path / "q.safetensors").read_bytes() == whole
    assert [r.algorithm for r in report.layers] == ["quip"] * 6
    assert all(r.judged_db > 20 for r in report.layers)
    assert told[0] == "Ray: 2 machines; 2 at once on CPUs (1 thread each)"


def test_what_else_a_layer_may_need_reaches_it(tmp_path, folder, executor):
    options = {"bias_correction": True, "smoothquant": True, "static_activations": True, "calib_samples": 200}
    for name, where in (("here", None), ("there", executor)):
        convert(settings(folder, tmp_path / f"{name}.safetensors", **options), executor=where)
    here, there = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("here", "there"))
    assert here == there


def test_a_killed_worker_costs_its_layer_only(tmp_path, folder, executor, whole, told):
    victim = layers()[2]
    deadly = Fatal(executor, tmp_path, victim)
    convert(settings(folder, tmp_path / "q.safetensors"), executor=deadly)
    assert (tmp_path / "q.safetensors").read_bytes() == whole
    assert (tmp_path / "deaths").read_text() == "xx", "it died once, and was done again"
    assert sorted(deadly.names) == sorted(layers()), "each layer was handed over once"
    assert told[-1] == f"{victim}: the process that did it was lost; it is done again"


def test_an_error_is_told_as_in_one_process(tmp_path, folder, executor):
    weights = block_weights(dtype=torch.float32)
    weights["blocks.1.mlp.fc1.weight"][3, 5] = float("nan")
    save(tmp_path / "a.safetensors", weights)
    found = []
    for where in (None, executor):
        output = tmp_path / "q.safetensors"
        with pytest.raises(ConversionError) as e:
            convert_to_int8(
                tmp_path / "a.safetensors",
                output,
                calibration_data=str(folder / "calibration.safetensors"),
                executor=where,
            )
        assert not output.exists()
        found.append(str(e.value))
    assert found[0] == found[1]
    assert "blocks.1.mlp.fc1.weight: the weight holds NaN or Inf (1 values" in found[0]


def test_rounding_stays_here(tmp_path, folder, executor):
    deadly = Fatal(executor, tmp_path, "none")
    given = settings(folder, tmp_path / "q.safetensors", calibration_data=None)
    report = convert(given, executor=deadly)
    assert deadly.names == []
    assert "the cluster has no part in it" in report.notes[-1]


def test_what_ray_prints_of_its_machines_is_silenced(executor, capfd):
    """Its lines would stand in the middle of standard output."""
    from inspect import getsource

    from ray._private import worker

    assert "print_to_stdstream(" in getsource(worker.listen_error_messages), "they are printed elsewhere now"
    executor.slots(False)
    worker.print_to_stdstream({"lines": ["a machine was lost"], "pid": "raylet", "is_err": False}, False)
    assert capfd.readouterr() == ("", "")


def test_a_device_that_no_machine_has(tmp_path, folder, executor):
    for device, message in (("cuda", "no machine of the Ray cluster has a GPU"), ("cuda:1", "its own GPU")):
        with pytest.raises(ConversionError, match=message):
            convert(settings(folder, tmp_path / "q.safetensors", device=device), executor=executor)


def test_more_memory_than_any_machine_has(executor):
    from convert_to_quant.converter.executor import Need

    with pytest.raises(ConversionError, match=r"x: takes 1024\.0 GiB of memory, and no machine"):
        executor.submit("x", Need(1 << 40), print)


# Many models


class Bar:
    """A Progress that keeps what it is told."""

    def __init__(self):
        self.total, self.reached = 0, []

    def start(self, total_bytes, done_bytes):
        self.total = total_bytes
        self.reached.append(done_bytes)

    def advance(self, name, nbytes):
        self.reached.append(self.reached[-1] + nbytes)

    def stop(self):
        pass


def test_models_are_converted_side_by_side(tmp_path, folder, executor, whole):
    """Rounding, so that models are the pieces of work; one dies at first, one is damaged."""
    from convert_to_quant.converter.convert.batch import plan_batch
    from convert_to_quant.converter.convert.spread import goes_by_model, run_spread

    damaged = tmp_path / "bad.safetensors"
    damaged.write_bytes(b"not a checkpoint")
    inputs = [str(folder / "a.safetensors"), str(damaged), *(str(folder / f"{n}.safetensors") for n in "bc")]
    batch = plan_batch(inputs, settings(folder, tmp_path / "out"))
    assert goes_by_model(batch, executor)
    bar, lines = Bar(), []
    report = run_spread(batch, Fatal(executor, tmp_path, "b.safetensors"), lines.append, bar)
    assert report.summary() == "3 of 4 models done, 1 failed"
    assert [Path(o.input).name for o in report.outcomes] == [Path(i).name for i in inputs]
    assert "truncated or not a safetensors file" in report.failed[0].error
    assert Path(report.outcomes[0].output).read_bytes() == whole
    assert (tmp_path / "deaths").read_text() == "xx"
    for outcome, name in zip(report.outcomes[2:], "bc", strict=True):
        convert(settings(folder, tmp_path / f"{name}.safetensors", name))
        assert Path(outcome.output).read_bytes() == (tmp_path / f"{name}.safetensors").read_bytes()
    sizes = [Path(i).stat().st_size for i in inputs]
    assert bar.reached[-1] == bar.total <= sum(sizes)
    assert sum("[4/4]" in line for line in lines) == 1


def test_few_calibrated_models_have_their_layers_spread(tmp_path, folder, executor, whole):
    deadly = Fatal(executor, tmp_path, "none")
    report = convert_many(
        [folder / "a.safetensors"],
        tmp_path / "out",
        format="int8",
        calibration_data=str(folder / "calibration.safetensors"),
        executor=deadly,
    )
    assert report.summary() == "1 of 1 models done, 0 failed"
    assert Path(report.outcomes[0].output).read_bytes() == whole
    assert sorted(deadly.names) == sorted(layers())


def test_relative_paths_and_files_that_the_machines_do_not_share(tmp_path, folder, executor, monkeypatch):
    """A worker begins where Ray was started, and sees the paths of this process all the same."""
    from convert_to_quant.converter.convert import spread

    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    report = convert_many(["a.safetensors", "b.safetensors"], "out", executor=executor)
    assert [o.output for o in report.outcomes] == [
        f"out/{name}-int8_row_convrot.safetensors" for name in "ab"
    ]
    assert not report.failed
    monkeypatch.setattr(spread, "fingerprint", lambda path: "of another file")
    report = convert_many(["a.safetensors", "b.safetensors"], "again", executor=executor)
    assert len(report.failed) == 2
    assert "does not see the same files" in report.failed[0].error


# Ends before the end. Each ends workers too, and starting new ones takes seconds.


def test_what_kills_every_worker_ends_the_run_which_is_then_gone_on_with(
    tmp_path, folder, executor, whole, monkeypatch
):
    output, victim = tmp_path / "q.safetensors", layers()[3]
    monkeypatch.setattr(ray_executor, "MOST_LOSSES", 1)  # each takes seconds
    with pytest.raises(ConversionError, match=f"{victim}: 1 times the process that did it was lost"):
        convert(settings(folder, output), executor=Fatal(executor, tmp_path, victim, times=9))
    assert not output.exists()
    bar = Bar()
    convert(settings(folder, output), bar)
    assert output.read_bytes() == whole
    assert 0 < bar.reached[0] < bar.total, "what was written is not computed again"


def test_an_interruption_ends_the_work_and_leaves_what_can_be_gone_on_with(
    tmp_path, folder, executor, whole, monkeypatch
):
    output, mark, count = tmp_path / "q.safetensors", OutputFile.mark, itertools.count(1)

    def interrupting(file, key, note):
        mark(file, key, note)
        if next(count) == 5:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: this is the writer, and the main thread gets it

    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "mark", interrupting)
        with pytest.raises(KeyboardInterrupt):
            convert(settings(folder, output), executor=executor)
    assert not output.exists()
    bar = Bar()
    convert(settings(folder, output), bar)
    assert output.read_bytes() == whole
    assert 0 < bar.reached[0] < bar.total


# The command line


def processes_of(folder):
    """The command lines of a Ray cluster's daemons, by the folder of its session."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes().decode(errors="replace")
                found += [line] * (f"{folder}/" in line)
    return found


def test_a_killed_run_is_gone_on_with_and_ray_says_nothing(tmp_path, folder, executor, whole, scratch, capfd):
    """One with a cluster of its own, which goes with it."""
    output = tmp_path / "q.safetensors"
    options = ["-i", str(folder / "a.safetensors"), "-o", str(output), "--quiet"]
    options += ["--calibration-data", str(folder / "calibration.safetensors"), "--ray"]
    command = [sys.executable, str(SUPPORT / "stopped.py"), "SIGKILL", *options, "local"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(scratch / "own")}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGKILL, "", "")
    assert not output.exists()
    assert output.with_name(f"{output.name}.part").exists()
    until = time.monotonic() + 60
    while (left := processes_of(scratch / "own")) and time.monotonic() < until:
        time.sleep(0.5)
    assert left == []
    executor.slots(False)
    assert main(options) == 0, "this process is connected already: no address is needed"
    told = capfd.readouterr()
    assert (len(told.out.splitlines()), told.err) == (1, "")
    assert output.read_bytes() == whole
    assert main([*options, "127.0.0.1:1"]) == 1
    assert "connected to a Ray cluster already: name no address" in capfd.readouterr().err
