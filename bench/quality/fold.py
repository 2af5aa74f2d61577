"""What folding gains: on MiniLM's inputs, layer by layer, and in files of a small Flux that is trained here.

MiniLM normalises behind each branch, so that in the model itself only values fold; its inputs stand for those
of models that normalise before (every layer but the Linear behind a GELU). The Flux is converted, and its
files are loaded and run; so are those of SmolLM2, which normalises before (smollm.py).
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import measure
from methods import BEST, MAIN, TOKENS, options
from painted import Kept, Painted

from convert_to_quant.converter.fold.find import find_inputs
from convert_to_quant.converter.fold.stats import folded_stats
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.converter.presets import Match, Preset
from convert_to_quant.converter.presets.folds import BlockFolds, Norm, Up, Values, fold
from convert_to_quant.converter.progress import Silent
from convert_to_quant.converter.quantize.measure import measured
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.files.save import save_tensors
from convert_to_quant.formats.choose import options as names
from convert_to_quant.quant.algorithms import quantize_layer

KINDS = {"nothing": (), "mean": ("mean",), "smooth": ("smooth",), "mean and smooth": ("mean", "smooth")}

_VALUES = fold("attention.dense", by=Values("attention.value"))
_PRE_NORM = (
    fold("attention.query", "attention.key", "attention.value", by=Norm("attention.norm")),
    _VALUES,
    fold("intermediate", by=Norm("norm")),
)
FOLDABLE = {
    "values only (MiniLM itself)": (_VALUES,),
    "all but behind GELU (a pre-norm model)": _PRE_NORM,
    "every layer": (*_PRE_NORM, fold("output", by=Up("intermediate"))),
}
"""Sets of MiniLM's layers; what is changed before them is not looked at, only their inputs."""


def minilm(bench) -> None:
    """Print W8A16 and W8A8 of QuIP on MiniLM's layers by what is folded, as means, on every kind of text."""
    texts = bench.others()
    print(f"\n| folded | layers | {' | '.join(f'{n}: W8A16 | W8A8' for n in texts)} | worst |")
    print("|" + (3 + 2 * len(texts)) * " --- |")
    for where, folds in FOLDABLE.items():
        for kind, kinds in KINDS.items():
            if kind == "nothing" and where != next(iter(FOLDABLE)):
                continue
            scores = _layers(bench, texts, folds, kinds)
            name = "nothing" if kind == "nothing" else f"{where}: {kind}"
            cells = []
            for found in scores.values():
                w8a16, w8a8 = ({n: s[i] for n, s in found.items()} for i in (0, 1))
                cells += [f"{measure.mean(w8a16):.2f}", f"{measure.mean(w8a8):.2f}"]
            worst = min(w8a8 for found in scores.values() for _, w8a8 in found.values())
            print(f"| {name} | {len(bench.layers)} | {' | '.join(cells)} | {worst:.2f} |", flush=True)


def formats(bench) -> None:
    """Print the output SQNR of each format as it runs, with all inputs but those behind a GELU folded."""
    texts = bench.others()
    print(f"\n| format | folded | {' | '.join(texts)} |\n|{' --- |' * (2 + len(texts))}")
    for name in names():
        method = {"format": name, "algorithm": "ldlq"}
        for kind in ("nothing", "mean and smooth"):
            scores = _layers(bench, texts, _PRE_NORM, KINDS[kind], method)
            cells = [f"{sum(s for _, s in found.values()) / len(found):.2f}" for found in scores.values()]
            print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)


def _layers(
    bench, texts: dict, folds: tuple, kinds: tuple[str, ...], method: dict | None = None
) -> dict[str, dict[str, tuple[float, float]]]:
    """Quantize every layer on folded inputs; return the SQNR of outputs by text and layer.

    Pairs: with exact inputs, and as the layer runs (W8A16 and W8A8 of INT8). Outputs are compared as they are
    before their rows are divided, as they count in the model.
    """
    method = method or MAIN[BEST]
    made = _folds(bench, folds, kinds, method.get("format", "int8"))
    scores: dict[str, dict[str, tuple[float, float]]] = {split: {} for split in texts}
    for name, weight in bench.layers.items():
        stats = bench.train.stats(name)
        folded = made.apply(f"{name}.weight", weight.clone())
        chosen = options(method, weight.shape[1], TOKENS, bench.damping)
        result = quantize_layer(folded, folded_stats(made, name, stats), chosen, None, name)
        mean, rows = made.mean_output(name), made.row_factors(name, len(weight))
        extra = 0.0 if mean is None else mean
        own = 1.0 if rows is None else rows.double()
        for split, data in texts.items():
            x = data.stats(name).samples.float()
            inner = folded_stats(made, name, replace(stats, samples=x)).samples
            exact = (inner @ folded.T).double() * own + extra
            dense = (inner @ result.weight.dequantize().float().T).double() * own + extra
            runs = measure.integer_output(inner, result).double() * own + extra
            scores[split][name] = measure.sqnr(exact, dense), measure.sqnr(exact, runs)
    return scores


def _folds(bench, folds: tuple, kinds: tuple[str, ...], form: str):
    """Measure the factors as a conversion does, for layers that the model's own preset would name so."""
    preset = Preset("minilm", "MiniLM", (), (), folds=(BlockFolds(r"layers\.\d+", folds),))
    with tempfile.TemporaryDirectory() as folder:
        path = save_tensors(Path(folder) / "m.safetensors", dict(bench.model.state_dict()))
        settings = Settings(input_file=str(path), calibration_data=str(bench.train.path), format=form)
        with open_checkpoint(path) as checkpoint:
            plan = build_plan(checkpoint, settings)
            inputs = tuple(find_inputs(checkpoint.shapes(), [Match(preset)], kinds))
            return measured(replace(plan, inputs=inputs), checkpoint, Silent())


FILES = {
    "rounding, unfolded": {"simple": True, "fold": "off"},
    "QuIP, unfolded": {"fold": "off"},
    "QuIP, smooth": {"fold": "smooth"},
    "QuIP, mean": {"fold": "mean"},
    "QuIP, mean and smooth": {"fold": "auto"},
    "QuIP, unfolded, modulation kept": {"fold": "off", "preset_strict": True},
    "QuIP, mean and smooth, modulation kept": {"fold": "auto", "preset_strict": True},
}


_NOT_BEHIND = (".lin", "mlp.2")
"""Layers whose inputs cannot be folded: modulation, and what is behind a GELU."""


def _behind(layers: dict[str, float]) -> float:
    return measure.mean({n: db for n, db in layers.items() if not n.endswith(_NOT_BEHIND)})


def flux(folder: Path, training: int) -> None:
    """Print what files of the small Flux keep: outputs of layers on held-out inputs, and pictures.

    Gains are of the same pictures, with the standard error of their mean.
    """
    painted = Painted(folder, training)
    _files(painted)
    print("\n| format | layers behind folds, as run | folded | pictures, dB PSNR | folded | gain |")
    print("|" + 6 * " --- |")
    for name in names():
        base, kept = (painted.kept({"format": name, "fold": fold}) for fold in ("off", "auto"))
        layers = " | ".join(f"{_behind(k.w8a8 or k.w8a16):.2f}" for k in (base, kept))
        gain = "{:+.2f} ± {:.2f}".format(*kept.over(base))
        print(f"| {name} | {layers} | {base.pictures:.2f} | {kept.pictures:.2f} | {gain} |", flush=True)


def _files(painted: Painted) -> None:
    print("\n| file | W8A16 | W8A8 | worst | W8A8 behind folds | pictures, dB PSNR | gain |")
    print("|" + 7 * " --- |")
    unfolded: dict[bool, Kept] = {}
    for name, asked in FILES.items():
        kept = painted.kept(asked)
        base = unfolded.setdefault("preset_strict" in asked, kept) if "simple" not in asked else kept
        gain = "" if base is kept else "{:+.2f} ± {:.2f}".format(*kept.over(base))
        behind = _behind(kept.w8a8)
        line = (
            f"{measure.mean(kept.w8a16):.2f} | {measure.mean(kept.w8a8):.2f} | {min(kept.w8a8.values()):.2f}"
        )
        print(f"| {name} | {line} | {behind:.2f} | {kept.pictures:.2f} | {gain} |", flush=True)
