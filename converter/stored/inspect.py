"""What is in a safetensors file, from its header and ``comfy_quant`` tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files.checkpoint import open_checkpoint
from ...folding.coding import summary
from ..presets import detect
from .faults import examine_file
from .judge import Examined, Problem
from .layers import stored_file


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
    INT8 layers by ConvRot group; metadata: the header's keys with the length of their texts; folded: what is
    folded, in words, "" for nothing.
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
    folded: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain JSON values."""
        return asdict(self)


def inspect_file(path: str | Path) -> Inspection:
    """Look into a checkpoint, reading no weight. ConversionError when it cannot be opened."""
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
            folded=summary(checkpoint.metadata),
        )


def _layer_share(examined: Examined) -> tuple[str, int, int]:
    layer, form = examined.layer, examined.format
    label = str((examined.config or {}).get("format", layer.weight.dtype))
    name = f"{label} {form.describe()}" if form and form.describe() != label else label
    size = layer.weight.nbytes + sum(t.nbytes for t in layer.companions())
    return name, layer.weight.numel, size


def _shares(items: Sequence[tuple[str, int, int]]) -> tuple[Share, ...]:
    """Sum up by name, most bytes first."""
    totals: dict[str, list[int]] = {}
    for name, parameters, size in items:
        row = totals.setdefault(name, [0, 0, 0])
        for i, n in enumerate((1, parameters, size)):
            row[i] += n
    return tuple(sorted((Share(n, *row) for n, row in totals.items()), key=lambda s: -s.nbytes))
