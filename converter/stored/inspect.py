"""``ctq inspect``: what is in a safetensors file, from its header and ``comfy_quant`` tensors."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # repair imports torch, which --help does without
    from .judge import Examined, Problem


@dataclass(frozen=True)
class Share:
    """A format or dtype: how many tensors, parameters and bytes are in it."""

    name: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    formats: quantized layers by format, scales and configs included; dtypes: the other tensors; rotations:
    INT8 layers by ConvRot group; metadata: the header's keys with the length of their texts.
    """

    path: str
    files: int
    nbytes: int
    architectures: tuple[str, ...]
    formats: tuple[Share, ...]
    dtypes: tuple[Share, ...]
    rotations: dict[str, int]
    metadata: dict[str, int]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def inspect_file(path: str | Path) -> Inspection:
    """Look into a checkpoint. ConversionError when it cannot be opened."""
    from ...files.checkpoint import open_checkpoint
    from ..presets import detect
    from .faults import examine_file
    from .layers import stored_file

    with open_checkpoint(path) as checkpoint:
        stored = stored_file(checkpoint)
        examined, problems = examine_file(stored)
        owned = {t.name for e in examined.values() for t in (e.layer.weight, *e.layer.companions())}
        others = [(t.dtype, t.numel, t.nbytes) for t in checkpoint.tensors.values() if t.name not in owned]
        layers = [_layer_share(e) for e in examined.values()]
        forms = [e.format for e in examined.values() if e.format and e.format.rotates]
        groups = Counter(f.rotation for f in forms if f)
        return Inspection(
            path=str(checkpoint.path),
            files=len(checkpoint.files),
            nbytes=checkpoint.nbytes,
            architectures=tuple(
                f"{m.label}{f' under {m.prefix!r}' if m.prefix else ''}: {', '.join(m.evidence)}"
                for m in detect(checkpoint.shapes(), checkpoint.metadata)
            ),
            formats=_shares(layers),
            dtypes=_shares(others),
            rotations={str(g) if g else "none": groups[g] for g in sorted(groups, reverse=True)},
            metadata={k: len(v) for k, v in checkpoint.metadata.items()},
            problems=tuple(problems),
        )


def _layer_share(examined: Examined) -> tuple[str, int, int]:
    layer, form = examined.layer, examined.format
    label = str((examined.config or {}).get("format", layer.weight.dtype))
    name = f"{label} {form.describe()}" if form and form.describe() != label else label
    size = layer.weight.nbytes + sum(t.nbytes for t in layer.companions())
    return name, layer.weight.numel, size


def _shares(items: Sequence[tuple[str, int, int]]) -> tuple[Share, ...]:
    """Totals by name, most bytes first."""
    totals: dict[str, list[int]] = {}
    for name, parameters, size in items:
        row = totals.setdefault(name, [0, 0, 0])
        for i, n in enumerate((1, parameters, size)):
            row[i] += n
    return tuple(sorted((Share(n, *row) for n, row in totals.items()), key=lambda s: -s.nbytes))


def parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    p = argparse.ArgumentParser(
        "ctq inspect",
        description="Show a file's architecture, formats, rotation groups, sizes and contract problems.",
        allow_abbrev=False,
    )
    p.add_argument("file", metavar="PATH", help="a .safetensors file, an index, or a folder of shards")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return p


def main(argv: Sequence[str]) -> int:
    """Inspect a file; returns 0, also when it has problems. ConversionError when it cannot be opened."""
    args = parser().parse_args(argv)
    found = inspect_file(args.file)
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found)
    return 0


def _show(found: Inspection) -> None:
    from rich.table import Table

    from ..cli.show import table_console

    files = f" in {found.files} files" if found.files > 1 else ""
    print(f"{found.path}: {found.nbytes / 2**20:,.1f} MiB{files}")
    print(f"model: {'; '.join(found.architectures) or 'not recognised'}")
    table = Table(title="Tensors", title_justify="left")
    table.add_column("what")
    for name in ("count", "parameters", "MiB"):
        table.add_column(name, justify="right")
    for kind, shares in (("layers", found.formats), ("tensors", found.dtypes)):
        for s in shares:
            size = f"{s.nbytes / 2**20:,.1f}"
            table.add_row(f"{kind} in {s.name}", str(s.tensors), f"{s.parameters:,}", size)
    table_console().print(table)
    if found.rotations:
        print("rotation groups: " + ", ".join(f"{g}: {n} layers" for g, n in found.rotations.items()))
    if found.metadata:
        print("metadata: " + ", ".join(f"{k} ({n} characters)" for k, n in found.metadata.items()))
    _show_problems(found.problems)


def _show_problems(problems: Sequence[Problem]) -> None:
    from ..cli.show_edit import problem_lines

    for fatal, label in ((True, "problem"), (False, "note")):
        for line in problem_lines([p for p in problems if p.fatal is fatal]):
            print(f"{label}: {line}")
    if any(p.fix for p in problems):
        print("ctq edit puts right what the file itself tells how to")
    if not problems:
        print("contract: nothing wrong")
