"""Calibration without data: token ids drawn at random, and what that gains on real text."""

import measure
import minilm
import text
import torch
from methods import BASE, BEST, MAIN

from convert_to_quant.quant.calibration import calibrate

_FIRST, _LAST, _CLS, _SEP = 1996, 30522, 101, 102
"""Ids of whole words in BERT's vocabulary, and of the tokens around a sequence."""

SEQUENCES = 48


def show(bench) -> None:
    """Print the SQNR of layers (docstrings) and of embeddings (two kinds of text), W8A16 / W8A8."""
    texts = {n: minilm.batches(text.paragraphs(n), 4096) for n in ("eval", "prompts")}
    exact = {n: measure.embeddings(bench.model, batches) for n, batches in texts.items()}
    print(f"\n| calibrated on | layers | {' | '.join(f'embeddings, {n}' for n in texts)} |\n|{' --- |' * 4}")

    def row(name: str, results: dict) -> None:
        layers = bench.score(results, model_too=False).row()
        cells = [f"{layers[0]:.2f} / {layers[2]:.2f}"]
        for n, batches in texts.items():
            drifts = (measure.drift(bench.model, results, batches, exact[n], i) for i in (False, True))
            # 1 - cosine of unit vectors is half of their squared distance.
            cells.append(" / ".join(f"{-10 * torch.tensor(2 * d).log10().item():.2f}" for d in drifts))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    row("nothing (rounding)", bench.quantize(MAIN[BASE]))
    row("the language reference", bench.quantize(MAIN[BEST]))
    words, g = _LAST - _FIRST, torch.Generator().manual_seed(0)
    frequencies = {"random ids": torch.ones(words), "random ids, 1 / rank": 1 / torch.arange(1.0, words + 1)}
    for name, weights in frequencies.items():
        ids = _FIRST + torch.multinomial(weights, SEQUENCES * (minilm.LENGTH - 2), True, generator=g)
        ids = ids.view(SEQUENCES, -1)
        ids = torch.nn.functional.pad(torch.nn.functional.pad(ids, (1, 0), value=_CLS), (0, 1), value=_SEP)
        batches = [(part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(16)]
        bench.train = calibrate(bench.model, batches, bench.folder / "random.safetensors", tokens=4096)
        row(name, bench.quantize(MAIN[BEST]))
