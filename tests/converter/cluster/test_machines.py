"""What a cluster has room for, and where layers are placed on it: no machine is needed to reckon that."""

from dataclasses import replace

import pytest
from models import block_weights, layers, save

from convert_to_quant.converter.cluster.machines import Machine, Machines
from convert_to_quant.converter.convert.making import device_there, need_of
from convert_to_quant.converter.executor import Need
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.converter.plan.devices import place_again
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.quantization import ConversionError

GIB = 2**30


def cpu(cores):
    return Machine("c", cores, 0, 8 * GIB)


def gpus(cores, count, free=24 * GIB):
    return Machine("g", cores, count, 64 * GIB, free)


@pytest.mark.parametrize(
    ("machines", "threads", "on_cpus", "on_gpus"),
    [
        ([cpu(2)], 2, 1, None),
        ([cpu(2)], 1, 2, None),
        ([cpu(8), cpu(8)], 4, 4, None),
        ([cpu(8), cpu(2)], 4, 5, None),  # two cores each, so that the small machine has work
        ([gpus(64, 8)], 64, 1, 8),
        ([gpus(64, 8)], 4, 16, 8),
        ([gpus(4, 8)], 4, 1, 8),
        ([cpu(16), gpus(16, 2)], 8, 4, 2),
    ],
)
def test_what_runs_at_once(machines, threads, on_cpus, on_gpus):
    found = Machines(tuple(machines), threads)
    assert found.slots(False) == on_cpus
    if on_gpus:
        assert found.slots(True) == on_gpus
        for machine in machines:
            assert machine.gpus * found.cpus(True) <= max(machine.cpus, machine.gpus)


def test_the_smallest_gpu_counts():
    assert Machines((cpu(2),), 1).gpu_memory is None
    assert Machines((gpus(8, 1, 80 * GIB), gpus(8, 1, 24 * GIB)), 1).gpu_memory == 24 * GIB


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


def test_what_no_machine_has_is_refused():
    machines = Machines((gpus(8, 1),), 2)
    nodes = [node(CPU=8.0, memory=8.0 * GIB), node(alive=False, CPU=8.0, GPU=1.0, memory=64.0 * GIB)]
    machines.require("x", Need(8 * GIB), nodes)
    with pytest.raises(ConversionError, match=r"takes 9\.0 GiB of memory, and no machine .* more than 8\.0"):
        machines.require("x", Need(9 * GIB), nodes)
    with pytest.raises(ConversionError, match="x: no machine with a GPU is left in the Ray cluster"):
        machines.require("x", Need(1, gpu=True), nodes)
    with pytest.raises(ConversionError, match="no machine is left"):
        machines.require("x", Need(1), [])


class Cluster:
    """As much of an executor as a plan asks."""

    def __init__(self, free):
        self.free = free

    def gpu_memory(self):
        return self.free


def test_layers_are_placed_on_the_machines_that_compute_them(tmp_path):
    source = str(save(tmp_path / "m.safetensors", block_weights()))
    given = Settings(input_file=source, optimizer="adamw", device="cpu")
    with open_checkpoint(source) as checkpoint:
        plan = build_plan(checkpoint, given)
    given = replace(given, device="auto")
    device, free = device_there(given, Cluster(24 * GIB))
    there = place_again(plan, given, device, free)
    placed = {s.layer_name: s for s in there.quantized}
    assert sorted(placed) == sorted(layers())
    assert {(s.device, s.placement.kind) for s in placed.values()} == {("cuda", "device")}
    assert all(need_of(s, None).gpu for s in placed.values())
    tight = place_again(plan, given, "cuda", 1 << 20)
    assert {s.placement.kind for s in tight.quantized} == {"cpu"}, "no GPU of a mebibyte holds a layer"
    assert not need_of(tight.quantized[0], None).gpu
    assert place_again(plan, given, *device_there(given, Cluster(None))) == plan
    other = [s for s in there if s.action != "quantize"]
    assert other == [s for s in plan if s.action != "quantize"]
