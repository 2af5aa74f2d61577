"""The machines of a Ray cluster: what they have, and whether they can do this package's work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...formats.errors import ConversionError
from ..executor import Need
from .worker import other_versions, versions

_PATIENCE = 300.0
"""Seconds within which a machine must have started a process and loaded torch."""


@dataclass(frozen=True)
class Machine:
    """One machine. memory: bytes that Ray gives out. gpu_memory: free bytes of a GPU, None without one."""

    name: str
    cpus: float
    gpus: float
    memory: float
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Machines:
    """All machines, and the threads that a piece of work has."""

    machines: tuple[Machine, ...]
    threads: int

    def cpus(self, gpu: bool) -> int:
        """Return the cores that a piece of work is given: its threads, or fewer where a machine has fewer.

        Beside a GPU that is no more than the GPU's share of its machine, so that all GPUs have work.
        """
        shares = [m.cpus // m.gpus if gpu else m.cpus for m in self.machines if m.gpus >= 1 or not gpu]
        return max(1, int(min([self.threads, *shares])))

    def slots(self, gpu: bool) -> int:
        """Return how many pieces of work run at once."""
        each = self.cpus(gpu)
        return max(1, int(sum(m.gpus if gpu else m.cpus // each for m in self.machines)))

    @property
    def gpu_memory(self) -> int | None:
        """The least free memory of a GPU, None where there is none."""
        return min((m.gpu_memory for m in self.machines if m.gpu_memory is not None), default=None)

    def require(self, name: str, need: Need, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Raise ConversionError where none of Ray's nodes that are alive could ever do a piece of work."""
        alive = [n["Resources"] for n in nodes if n["Alive"]]
        able = [r for r in alive if r.get("CPU", 0) >= self.cpus(need.gpu)]
        able = [r for r in able if r.get("GPU", 0) >= 1] if need.gpu else able
        most = max((r.get("memory", 0) for r in able), default=0)
        if most >= need.memory:
            return
        if not able:
            raise ConversionError(f"{name}: no machine {'with a GPU ' * need.gpu}is left in the Ray cluster")
        raise ConversionError(
            f"{name}: takes {need.memory / 2**30:.1f} GiB of memory, and no machine of the Ray cluster gives "
            f"more than {most / 2**30:.1f} (ray start --memory)"
        )

    def summary(self) -> str:
        """Say in one line what there is."""
        gpus = int(sum(m.gpus for m in self.machines))
        count = len(self.machines)
        what = f"{self.slots(True)} at once on GPUs, " if gpus else ""
        return (
            f"Ray: {count} machine{'s' * (count != 1)}; {what}{self.slots(False)} at once on CPUs "
            f"({self.threads} thread{'s' * (self.threads != 1)} each)"
        )


def look_at(ray: Any, threads: int) -> Machines:
    """Look at every machine of the cluster that has cores: start a process there, and load torch in it.

    ConversionError, naming the machine, where this package or torch is missing or of another version, and
    where a machine does not answer.
    """
    ours = versions()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise ConversionError("the Ray cluster has no machine with a core to work on")
    asked = [_asked(ray, node) for node in nodes]
    machines = []
    for node, reference in zip(nodes, asked, strict=True):
        name = str(node["NodeManagerHostname"])
        try:
            found = ray.get(reference, timeout=_PATIENCE)
        except ray.exceptions.GetTimeoutError as e:
            raise ConversionError(f"{_named(name)} started no process in time") from e
        except ray.exceptions.RayError as e:
            text = " ".join(str(e).split())[-200:]
            raise ConversionError(f"{_named(name)} can do no work: {text}") from e
        if isinstance(found, str):
            raise ConversionError(f"{_named(name)} can do no work: {found}")
        if found[:2] != ours:
            raise ConversionError(other_versions(name, found[:2], ours))
        r = node["Resources"]
        gpus = r.get("GPU", 0) if found[2] is not None else 0
        machines.append(Machine(name, r["CPU"], gpus, r.get("memory", 0), found[2]))
    return Machines(tuple(machines), threads)


def _named(name: str) -> str:
    return f"{name}: this machine of the Ray cluster"


def _asked(ray: Any, node: Mapping[str, Any]) -> Any:
    """Ask a node for what it has. The function is sent whole: this package may be missing there."""

    def look() -> Any:
        try:
            import torch

            from convert_to_quant.version import VERSION as version
        except ImportError as e:
            return f"{e} (pip install it there, in the Python that runs Ray)"
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
        return version, torch.__version__, free

    share = 0.01 if node["Resources"].get("GPU", 0) >= 1 else 0
    options = {"num_cpus": 0, "num_gpus": share, "max_retries": 1}
    return ray.remote(**options)(look).options(scheduling_strategy=on_node(ray, node["NodeID"])).remote()


def on_node(ray: Any, node: str, soft: bool = False) -> Any:
    """Return the strategy that does something on one node; with `soft` on another where that is lost."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=soft)
