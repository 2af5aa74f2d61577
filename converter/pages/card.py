"""The model card of a result: what it is made of and how, and what is left to say for its maker."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from ...files.remote.address import RemoteFile, hub_place, located
from ...version import VERSION
from ..convert.report import ConversionReport
from ..options.recipe import as_flags
from ..options.settings import Settings
from ..plan.steps import kinds

_MIB = 2**20
_WORST = 5


def card(report: ConversionReport, settings: Settings) -> str:
    """Write the card of a conversion: Markdown under YAML, as the hub reads it.

    Nothing of this machine is in it but names of files; the licence is left to whoever publishes it.
    """
    name = Path(report.output).name
    return "\n".join(
        [*_head(settings), "", f"# {_plain(Path(name).stem)}", "", *_facts(report, settings, name), ""]
    )


def _head(settings: Settings) -> list[str]:
    place = located(settings.input_file)
    at = hub_place(place) if isinstance(place, RemoteFile) else None
    base = [f"base_model: {json.dumps(at.repository)}", "base_model_relation: quantized"] if at else []
    return [
        "---",
        "# license: the base model's license, which a quantized copy is under as well",
        *(base or ["# base_model: the name of the original on the hub"]),
        "tags: [convert_to_quant, quantized, comfyui]",
        "---",
    ]


def _facts(report: ConversionReport, settings: Settings, name: str) -> list[str]:
    source = located(settings.input_file)
    told = str(source) if isinstance(source, RemoteFile) else source.name
    lines = [
        f"Made from `{_code(told)}` by convert_to_quant {VERSION}: {len(report.layers)} layers in "
        f"{kinds(report.layers)}, {report.bytes_before / _MIB:,.1f} to {report.bytes_after / _MIB:,.1f} MiB.",
        "",
        "| layers | tensors | MiB before | MiB after |",
        "| --- | ---: | ---: | ---: |",
    ]
    rows = [*report.formats(), *((f"kept: {why}", n, a, b) for why, n, a, b in report.kept_reasons())]
    lines += [f"| {_plain(what)} | {n} | {a / _MIB:,.1f} | {b / _MIB:,.1f} |" for what, n, a, b in rows]
    if worst := report.worst(_WORST):
        lines += ["", "The layers that lost most, of all that were read back and compared:", ""]
        lines += ["| layer | SQNR in dB |", "| --- | ---: |"]
        lines += [f"| `{_code(r.name)}` | {r.judged_db:.1f}{r.judged_by} |" for r in worst]
    if report.loras:
        merged = ", ".join(f"{_plain(Path(lora.path).name)} ({lora.scale:.3g})" for lora in report.loras)
        lines += ["", f"LoRAs in it, with their strengths: {merged}."]
    command = shlex.join(["ctq", "-i", told, "-o", name, *as_flags(settings)])
    return [*lines, "", "The command:", "", "```", _line(command), "```"]


def _plain(text: str) -> str:
    """Return text as Markdown shows it: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", _line(text))


def _code(text: str) -> str:
    """Return text for between backquotes, in a table too."""
    return _line(text).replace("`", "'").replace("|", "\\|")


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
