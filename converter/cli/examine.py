"""What is installed here, and what will therefore run how: facts for a user, and for a report of a fault."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...formats.choose import written
from .install_nodes import FOLDER

if TYPE_CHECKING:
    import torch

PACKAGES = {
    "triton": "GPU kernels",
    "comfy-kitchen": "ComfyUI's own kernels",
    "diffusers": "convert_to_quant.diffusers",
    "transformers": "convert_to_quant.transformers",
    "accelerate": "loading and offloading there",
    "peft": "adapters on top",
    "huggingface_hub": "models on the hub",
    "fsspec": "s3:// and other addresses",
    "ray": "--ray: more than one machine",
    "safetensors": "",
    "numpy": "",
}
"""What to look for, and what each is for."""

_VERSION = re.compile(r"""__version__\s*=\s*["']([^"']+)["']""")


@dataclass(frozen=True)
class Finding:
    """One line of the report. topic: what it is about; fault: whether something should be mended."""

    topic: str
    text: str
    fault: bool = False


def examine(comfyui: Iterable[str | Path] = ()) -> list[Finding]:
    """Look at this machine. comfyui: ComfyUI folders to look at, besides the usual places.

    No device is started but for its name and memory, and nothing is written.
    """
    return [*_program(), *_machine(), *_torch(), *_packages(), *_comfyui(comfyui)]


def _program() -> Iterator[Finding]:
    from ...namesake import message
    from ...version import DISTRIBUTION, VERSION

    yield Finding("convert_to_quant", f"{VERSION} ({DISTRIBUTION}) in {Path(__file__).resolve().parents[2]}")
    if (twice := message()) is not None:
        yield Finding("convert_to_quant", twice, fault=True)
    formats = [f"{f.name}{'' if f.stock_since else ' (node pack)'}" for f in written()]
    yield Finding("formats", ", ".join(formats))


def _machine() -> Iterator[Finding]:
    memory = _memory()
    yield Finding("python", f"{sys.version.split()[0]} on {platform.system()} {platform.machine()}")
    room = f", {memory / 2**30:.0f} GiB of memory" if memory else ""
    yield Finding("cpu", f"{os.cpu_count()} cores{room}; rounding to nearest and checks run here")


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _torch() -> Iterator[Finding]:
    import torch

    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{name} {version}" for name, version in builds.items() if version), "CPU only")
    yield Finding("torch", f"{torch.__version__} ({build})")
    found = False
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind, None)
        if backend is None or not backend.is_available():
            continue
        for i in range(backend.device_count()):
            found = True
            yield _device(torch.device(kind, i), backend.get_device_properties(i))
    if not found:
        yield Finding("gpu", "none that torch can use: everything runs on the CPU, models in plain PyTorch")


def _device(device: torch.device, properties: Any) -> Finding:
    from ...kernels.explain import served_by

    how, why = served_by(device)
    name, total = properties.name, properties.total_memory
    served = f"quantized linears run in Triton ({why})" if how == "Triton" else f"plain PyTorch: {why}"
    return Finding("gpu", f"{device}: {name}, {total / 2**30:.0f} GiB; {served}", fault=how != "Triton")


def _packages() -> Iterator[Finding]:
    for name, purpose in PACKAGES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        yield Finding(name, f"{version}{f' ({purpose})' if purpose else ''}")


def _comfyui(given: Iterable[str | Path]) -> Iterator[Finding]:
    named = [Path(p) for p in given]
    usual = [Path(p) for p in (os.environ.get("COMFYUI_PATH"), ".", "ComfyUI") if p]
    usual += [Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
    seen: set[Path] = set()
    for path in [*named, *usual]:
        if not ((path / "main.py").is_file() and (path / "custom_nodes").is_dir()):
            if path in named:
                text = f"{path}: no ComfyUI (no main.py and custom_nodes in it)"
                yield Finding("comfyui", text, fault=True)
            continue
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield _instance(path)
    if not seen:
        yield Finding("comfyui", "none found; name one with --comfyui PATH")


def _instance(path: Path) -> Finding:
    told = path / "comfyui_version.py"
    match = _VERSION.search(told.read_text(encoding="utf-8", errors="replace")) if told.is_file() else None
    version = match.group(1) if match else "of unknown version"
    pack = path / "custom_nodes" / FOLDER
    if not (pack.is_symlink() or pack.exists()):
        nodes = f"no node pack (ctq install-nodes {path})"
    elif (pack / "__init__.py").is_file():
        nodes = "with the node pack"
    else:
        return Finding("comfyui", f"{version} in {path}; its link to the node pack leads nowhere", fault=True)
    return Finding("comfyui", f"{version} in {path}, {nodes}")
