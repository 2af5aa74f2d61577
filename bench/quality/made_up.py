"""Calibration without data: inputs made up from the model itself, and what they gain on real ones.

Text-like networks: token ids drawn at random, or sequences that the model writes. A denoiser: noise, or what
its own sampler makes of it, at the timesteps that it visits, with made-up text. All is measured end to end,
on real inputs that no calibration has seen, as the model runs (W8A8), beside rounding and real calibration.
"""

from collections.abc import Callable
from pathlib import Path

import antibodies
import dit
import measure
import minilm
import painted
import text
import torch
from methods import options
from torch import nn

from convert_to_quant.quant.algorithms import quantize_layer
from convert_to_quant.quant.calibration import CalibrationData, calibrate

_FIRST, _LAST, _CLS, _SEP = 1996, 30522, 101, 102
"""Ids of whole words in BERT's vocabulary, and of the tokens around a sequence."""

SEQUENCES = 48
FORMATS = ("int8", "w4a8")


class _Judge:
    """Quantizes a text-like network by what was recorded, and prints a row of SQNR of its hidden states."""

    def __init__(self, model: minilm.MiniLM, held_out: dict[str, list]) -> None:
        self._model, self._held_out = model, held_out
        self._layers = {n: m for n, m in model.named_modules() if _in_a_block(n, m)}
        self._exact = {n: _hidden(model, batches) for n, batches in held_out.items()}
        names = [f"{f}, {n}" for f in FORMATS for n in held_out]
        print(f"\n| calibrated on | {' | '.join(names)} |\n|{' --- |' * (1 + len(names))}", flush=True)

    def row(self, name: str, data: CalibrationData | None) -> None:
        cells = []
        for form in FORMATS:
            results = {}
            for layer, module in self._layers.items():
                method = {"format": form} if data is None else {"format": form, "algorithm": "ldlq"}
                chosen = options(method, module.in_features)
                stats = None if data is None else data.stats(layer)
                zero = torch.zeros(module.out_features)
                results[layer] = quantize_layer(module.weight.detach(), stats, chosen, zero, layer)
            for n, batches in self._held_out.items():
                with measure.replaced(self._model, results, integer=True):
                    cells.append(f"{measure.sqnr(self._exact[n], _hidden(self._model, batches)):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _in_a_block(name: str, module: nn.Module) -> bool:
    return name.startswith("layers.") and isinstance(module, nn.Linear)


def _hidden(model: minilm.MiniLM, batches: list) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.hidden(*batch).flatten(0, 1) for batch in batches])


def _whole(ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(16)]


def english(folder: Path, training: int = 0) -> None:
    """Print the table of MiniLM: SQNR of hidden states on docstrings and prompts."""
    model = minilm.load()
    judge = _Judge(model, {n: minilm.batches(text.paragraphs(n), 2048) for n in ("eval", "prompts")})
    judge.row("nothing (rounding)", None)
    real = minilm.batches(text.paragraphs("train"), SEQUENCES * minilm.LENGTH)
    judge.row("the language reference", calibrate(model, real, folder / "made.safetensors"))
    prompts = minilm.batches(text.paragraphs("prompts"), SEQUENCES * minilm.LENGTH)
    judge.row("the built-in prompts", calibrate(model, prompts, folder / "made.safetensors"))
    words, g = _LAST - _FIRST, torch.Generator().manual_seed(0)
    frequencies = {"random ids": torch.ones(words), "random ids, 1 / rank": 1 / torch.arange(1.0, words + 1)}
    for name, weights in frequencies.items():
        ids = _FIRST + torch.multinomial(weights, SEQUENCES * (minilm.LENGTH - 2), True, generator=g)
        ids = ids.view(SEQUENCES, -1)
        ids = nn.functional.pad(nn.functional.pad(ids, (1, 0), value=_CLS), (0, 1), value=_SEP)
        judge.row(name, calibrate(model, _whole(ids), folder / "made.safetensors"))
    judge.row("any ids, 1 / (1000 + id)", calibrate(model, _any(30522), folder / "made.safetensors"))


def _any(words: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw from a vocabulary of which nothing is known but its size, and that 0 is padding."""
    odds = 1 / torch.arange(1000.0, 1000.0 + words)
    odds[0] = 0
    ids = torch.multinomial(odds, 32 * 128, True, generator=torch.Generator().manual_seed(0))
    return _whole(ids.view(32, 128))


def proteins(folder: Path, training: int = 0) -> None:
    """Print the table of AntiBERTy: SQNR of hidden states on antibodies that nothing was calibrated on."""
    model = antibodies.load()
    judge = _Judge(
        model, {"human": antibodies.batches(antibodies.HUMAN), "mouse": antibodies.batches(antibodies.MOUSE)}
    )
    judge.row("nothing (rounding)", None)
    made: dict[str, Callable[[torch.Generator], list]] = {
        "four other antibodies": lambda g: antibodies.batches(antibodies.KNOWN),
        "random ids": lambda g: _whole(antibodies.random_ids(32, g)),
        "sequences that it writes": lambda g: _whole(antibodies.sampled_ids(model, 16, g)),
    }
    for name, make in made.items():
        batches = make(torch.Generator().manual_seed(0))
        judge.row(name, calibrate(model, batches, folder / "made.safetensors"))
    judge.row("any ids, 1 / (1000 + id)", calibrate(model, _any(25), folder / "made.safetensors"))


def pictures(folder: Path, training: int) -> None:
    """Print the table of the small Flux: layers on real inputs, and pictures against the float model's."""
    small = painted.Painted(folder, training)
    g = torch.Generator().manual_seed(21)
    real = dit.embedded(dit.captions(16, g))
    told = {
        "normal numbers": torch.randn(real.shape, generator=g),
        "normal numbers, a quarter": torch.randn(real.shape, generator=g) / 4,
        "normal numbers, fourfold": torch.randn(real.shape, generator=g) * 4,
        "zeros": torch.zeros(real.shape),
        "captions": real,
    }
    made: dict[str, Path | str | None] = {
        "nothing (rounding)": None,
        "its pictures of other captions": "train",
    }
    for name, words in told.items():
        for how, run in (("noise", _on_noise), ("its sampler", _on_steps)):
            made[f"{how}; {name}"] = small.record(f"{how}-{name}", [words], run)
    heads = [f"{f}, {what}" for f in FORMATS for what in ("W8A8 of layers", "pictures")]
    print(
        f"\n| small Flux, calibrated on | {' | '.join(heads)} |\n|{' --- |' * (1 + len(heads))}", flush=True
    )
    for name, record in made.items():
        cells = []
        for form in FORMATS:
            kept = small.kept({"format": form, "fold": "off", "simple": record is None}, record)
            cells += [f"{measure.mean(kept.w8a8):.2f}", f"{kept.pictures:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _on_noise(model: nn.Module, words: torch.Tensor) -> None:
    for i in range(dit.STEPS):
        dit.denoise(model, dit.noise(len(words), 30 + i), words, torch.full((len(words),), 1 - i / dit.STEPS))


def _on_steps(model: nn.Module, words: torch.Tensor) -> None:
    dit.sample(model, words, 22)


TABLES = {
    "english": english,
    "proteins": proteins,
    "flux": pictures,
}
"""What prints a table, by the name of its network's inputs; given a folder that keeps what takes long, and
optimizer steps."""
