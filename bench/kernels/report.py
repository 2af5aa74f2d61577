"""The record of a run: machine and versions, one JSON, one Markdown table per section."""

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch
from timing import Time

RIVAL_PACKAGES = ("torchao", "comfy-kitchen", "gemlite")


@dataclass
class Row:
    """One measurement: what, at which shape, how long, and next to what."""

    section: str
    name: str
    shape: str
    time: Time
    tflops: float | None = None
    gbs: float | None = None
    floor: float | None = None
    """Microseconds nothing can beat: bytes at copy bandwidth, or operations at the datasheet rate."""
    rivals: dict[str, float] = field(default_factory=dict)
    """Microseconds of each rival at this shape."""


def environment(device: str) -> dict:
    """Return device, driver and versions."""
    found = {"torch": torch.__version__, "python": platform.python_version(), "device": device}
    if device != "cpu":
        properties = torch.get_device_module(device).get_device_properties(0)
        found["gpu"] = properties.name
        found["driver"] = _driver()
        found["cuda"] = str(torch.version.cuda or torch.version.hip)
    for package in ("triton", *RIVAL_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def markdown(machine: dict, rows: list[Row], notes: list[str]) -> str:
    """Return the same as Markdown tables, for people."""
    lines = ["# Kernels", "", ", ".join(f"{k} {v}" for k, v in machine.items()), ""]
    for section in dict.fromkeys(row.section for row in rows):
        part = [row for row in rows if row.section == section]
        names = list(dict.fromkeys(n for row in part for n in row.rivals))
        head = [
            "shape",
            "op",
            "µs",
            "spread",
            "host µs",
            "TFLOP/s",
            "GB/s",
            "of floor",
            *(f"x {n}" for n in names),
        ]
        lines += [f"## {section}", "", _line(head), _line(["---"] * len(head))]
        for row in part:
            t = row.time
            ratios = [f"{row.rivals[n] / t.median:.2f}" if n in row.rivals else "" for n in names]
            floor = f"{row.floor / t.median:.0%}" if row.floor else ""
            cells = [row.shape, row.name, f"{t.median:.1f}", f"{t.low:.1f} to {t.high:.1f}"]
            cells.append(f"{t.host:.0f}")
            lines.append(_line([*cells, _number(row.tflops), _number(row.gbs), floor, *ratios]))
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(folder: Path, machine: dict, rows: list[Row], notes: list[str]) -> Path:
    """Write <device>-<time>.json and .md into `folder`; returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    gpu = str(machine.get("gpu", machine["device"])).lower().replace(" ", "-")
    stem = f"kernels-{gpu}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    record = {"machine": machine, "rows": [asdict(row) for row in rows], "notes": notes}
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    path = folder / f"{stem}.md"
    path.write_text(markdown(machine, rows, notes))
    return path
