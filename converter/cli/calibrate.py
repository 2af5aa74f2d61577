"""The command ``calibrate_activation_scales``: activation statistics for the layers of a checkpoint."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...files.checkpoint import open_checkpoint
from ...files.stamp import fingerprint
from ...files.target import already_exists, require_target
from ...formats.errors import ConversionError
from ...version import VERSION
from ..plan.inputs import files_behind
from .guard import guarded
from .suggest import SuggestingParser
from .text import say

if TYPE_CHECKING:
    from ...quant.algorithms import LayerStats

_DESCRIPTION = """\
Write a calibration file for a checkpoint: for each layer the channels' maxima and means, and an input scale.

With --activations FILE (safetensors: <layer>.samples, <layer>.input or <layer>, each [.., in_features]) the
numbers are measured. Without it they come from synthetic normal inputs: the file says so; such numbers may
set a static input scale, and they never steer a rounding."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        "calibrate_activation_scales",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-i", "--input", required=True, type=Path, help="the checkpoint (safetensors)")
    p.add_argument("-o", "--output", required=True, type=Path, help="the calibration (.safetensors or .json)")
    p.add_argument("--activations", type=Path, help="recorded activations (safetensors)")
    p.add_argument(
        "--samples", type=int, default=4096, help="tokens per layer, kept or made up (default 4096)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the choice of tokens (default 0)")
    p.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code, 1 with a message on stderr for what cannot be done."""
    return guarded(lambda: _command(argv), "calibrate_activation_scales")


def _command(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    try:
        text = calibrate_checkpoint(
            args.input, args.output, args.activations, args.samples, args.seed, args.overwrite
        )
    except ValueError as e:
        raise ConversionError(str(e)) from e
    say(text)
    return 0


def calibrate_checkpoint(
    checkpoint: Path,
    output: Path,
    activations: Path | None,
    samples: int = 4096,
    seed: int = 0,
    overwrite: bool = False,
) -> str:
    """Write the calibration of `checkpoint` to `output`; returns what was done, in lines.

    ValueError for files that are missing or no safetensors, samples below one, or activations that match no
    layer; ConversionError for a place where nothing may be written, and for a file that is there unless it
    is the result of the same call (which is then left) or `overwrite` is set.
    """
    from ...quant.calibration.file import job_of, save

    if samples < 1:
        raise ValueError(f"--samples must be at least 1, not {samples}")
    inputs = [checkpoint, *files_behind(checkpoint)]
    inputs += [activations, *files_behind(activations)] if activations else []
    require_target(output, inputs)
    widths = _linear_layers(checkpoint)
    job = _job(widths, activations, samples, seed)
    if output.exists() and not overwrite:
        if job_of(output) != job:
            raise already_exists(output)
        return f"{output}: already there, made before from the same files with the same options"
    if activations is None:
        records = {name: _synthetic(name, k, samples, seed) for name, k in widths.items()}
        save(output, records, synthetic=True, job=job, overwrite=overwrite)
        return (
            f"{output}: {len(records)} layers, SYNTHETIC inputs: no activations were given, so these are the "
            "statistics\nof standard normal numbers. They may set a static scale; they steer no rounding."
        )
    records, report = _measured(activations, widths, samples, seed)
    save(output, records, job=job, overwrite=overwrite)
    return f"{output}: {len(records)} layers measured on {activations}\n{report}"


def _job(widths: dict[str, int], activations: Path | None, samples: int, seed: int) -> str:
    """Tell a calibration from any other by all that goes into it, and the version."""
    prints = [fingerprint(file) for file in files_behind(activations)] if activations else []
    return hashlib.sha256(json.dumps([VERSION, widths, prints, samples, seed]).encode("utf-8")).hexdigest()


def _linear_layers(path: Path) -> dict[str, int]:
    """Return layer name -> in_features of every 2-D weight."""
    shapes = open_checkpoint(path).shapes()
    weights = {n.removesuffix(".weight"): s for n, s in shapes.items() if n.endswith(".weight")}
    widths = {name: shape[1] for name, shape in weights.items() if len(shape) == 2}
    if not widths:
        raise ValueError(f"{path} holds no linear layer (no 2-D <layer>.weight)")
    return widths


def _synthetic(name: str, columns: int, samples: int, seed: int) -> "LayerStats":
    import zlib

    import torch

    from ...quant.calibration.record import Reservoir

    reservoir = Reservoir(columns, 1, seed)
    g = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    step = max(1, (1 << 22) // columns)
    for start in range(0, samples, step):
        reservoir.add(torch.randn(min(step, samples - start), columns, generator=g))
    return _without_samples(reservoir.stats())


def _without_samples(stats: "LayerStats") -> "LayerStats":
    from dataclasses import replace

    return replace(stats, samples=None)


def _measured(
    path: Path, widths: dict[str, int], samples: int, seed: int
) -> tuple[dict[str, "LayerStats"], str]:
    from ...quant.calibration.names import match
    from ...quant.calibration.record import Reservoir

    with open_checkpoint(path) as f:
        keys = {_layer_of(key): key for key in f.tensors}
        found, report = match(widths, keys)
        records = {}
        for layer, record in found.items():
            x = f.read(keys[record])
            if not x.is_floating_point() or x.dim() < 1 or x.shape[-1] != widths[layer]:
                raise ValueError(
                    f"{keys[record]} in {path} has shape {list(x.shape)} and dtype {x.dtype}; layer {layer} "
                    f"takes floats of {widths[layer]} channels"
                )
            reservoir = Reservoir(widths[layer], samples, seed)
            reservoir.add(x)
            if not reservoir.seen:
                raise ValueError(f"{keys[record]} in {path} holds no finite token")
            records[layer] = reservoir.stats()
    return records, report.summary()


def _layer_of(key: str) -> str:
    for ending in (".samples", ".input", ".activations"):
        key = key.removesuffix(ending)
    return key


if __name__ == "__main__":
    sys.exit(main())
