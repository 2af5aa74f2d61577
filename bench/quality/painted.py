"""What converted files of the small Flux keep: outputs of its layers, and the pictures that it paints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dit
import measure
import torch
from methods import formats

from convert_to_quant.converter.verify.run import verify
from convert_to_quant.quant.calibration import calibrate
from convert_to_quant.quantization import convert_to_int8
from convert_to_quant.runtime import load_quantized


@dataclass(frozen=True)
class Kept:
    """Of one file: output SQNR of each layer, dB, w8a8 of those that round activations; bytes.

    each: PSNR of every picture, dB. One of them says little (they differ by 4 dB), and so do a few.
    """

    w8a16: dict[str, float]
    w8a8: dict[str, float]
    each: torch.Tensor
    bytes: int

    @property
    def pictures(self) -> float:
        """The mean PSNR of the pictures."""
        return self.each.mean().item()

    def over(self, other: "Kept") -> tuple[float, float]:
        """Return how many dB its pictures are above another's of the same, and the standard error of that."""
        gain = self.each - other.each
        return gain.mean().item(), gain.std().item() / len(gain) ** 0.5


class Painted:
    """The trained model, calibration records of two sets of captions, and pictures of all, of other noise."""

    def __init__(self, folder: Path, training: int = dit.TRAINING) -> None:
        self._folder = folder
        self.model = model = dit.train(folder / "dit.safetensors", training)
        words = dit.captions(24, torch.Generator().manual_seed(7))
        self._recorded = {}
        for name, part, seed in (("train", words[:16], 11), ("held-out", words[16:], 12)):
            self._recorded[name] = path = folder / f"dit-{name}.safetensors"
            if not path.is_file():
                calibrate(model, [(part, seed)], path, forward=lambda m, b: dit.paint(m, *b))
        self._test = dit.every_caption()
        self._want = dit.paint(model, self._test, 13)

    def record(self, name: str, batches: list, forward: Callable[[torch.nn.Module, Any], Any]) -> Path:
        """Record what `forward` makes the model see of `batches`; for `kept`."""
        return calibrate(self.model, batches, self._folder / f"dit-{name}.safetensors", forward=forward).path

    def kept(self, asked: dict[str, Any], record: Path | Literal["train"] | None = "train") -> Kept:
        """Convert as asked, with a calibration (None: without), and measure the file."""
        source = self._folder / "dit.safetensors"
        output = source.with_stem("dit-quantized")
        if record is not None:
            asked = asked | {
                "calibration_data": str(self._recorded["train"] if record == "train" else record)
            }
        convert_to_int8(str(source), str(output), overwrite=True, **asked)
        layers = verify(source, output, self._recorded["held-out"]).layers
        quantized = dit.build().eval().requires_grad_(False)
        load_quantized(quantized, output)
        return Kept(
            {r.name: r.w8a16_db for r in layers if r.w8a16_db is not None},
            {r.name: r.w8a8_db for r in layers if r.w8a8_db is not None},
            dit.psnr(dit.paint(quantized, self._test, 13), self._want),
            output.stat().st_size,
        )


def table(folder: Path) -> None:
    """Print what each format keeps, rounded and calibrated."""
    painted = Painted(folder)
    print("\n| small Flux, file | kB | W8A16 | W8A8 | pictures, dB PSNR |\n|" + 5 * " --- |")
    for name, method in formats().items():
        kept = painted.kept({"format": method["format"], "simple": "algorithm" not in method})
        w8a8 = f"{measure.mean(kept.w8a8):.2f}" if kept.w8a8 else ""
        line = f"{kept.bytes / 1000:.0f} | {measure.mean(kept.w8a16):.2f} | {w8a8}"
        print(f"| {name} | {line} | {kept.pictures:.2f} |", flush=True)
