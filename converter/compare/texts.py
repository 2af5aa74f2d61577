"""A text run through both checkpoints: perplexity, or how far the embeddings of an encoder turn."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...formats.errors import ConversionError
from .cases import TORCH, find_factory
from .report import TextResult
from .side import load_model


def read_windows(text: str, tokenizer: str, size: int) -> list[torch.Tensor]:
    """Return the token ids of a UTF-8 file as int64 [1, n], n at most `size`; a last single one is left out.

    tokenizer: a ``tokenizer.json``, or the folder that holds it. ConversionError for a file that cannot be
    read, a text of fewer than two tokens, or where the package tokenizers is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise ConversionError("--perplexity needs the package tokenizers: pip install tokenizers") from e
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = Path(text).read_text(encoding="utf-8")
        found = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConversionError(f"--perplexity: cannot be read: {e}") from e
    except Exception as e:  # tokenizers raises nothing more exact
        raise ConversionError(f"--tokenizer {path}: is no tokenizer.json: {e}") from e
    found.no_truncation()
    found.no_padding()
    ids = torch.tensor(found.encode(content).ids, dtype=torch.int64)
    windows = [w.unsqueeze(0) for w in ids.split(size) if len(w) > 1]
    if not windows:
        raise ConversionError(f"--perplexity {text}: its {len(ids)} tokens are too few")
    return windows


@dataclass
class _Run:
    """What one checkpoint made of the windows: the loss in nats over its tokens, or mean states."""

    loss: float = 0.0
    predicted: int = 0
    states: list[torch.Tensor] = field(default_factory=list)


def text_result(
    reference: str, candidate: str, spec: str, windows: list[torch.Tensor], device: str, dtype: str, seed: int
) -> TextResult:
    """Run the windows through both checkpoints, one after the other.

    ConversionError for a model that does not take ``input_ids``, or answers with neither logits nor states.
    """
    a, b = (_run(path, spec, windows, device, TORCH[dtype], seed) for path in (reference, candidate))
    result = TextResult(sum(w.numel() for w in windows), len(windows))
    if a.predicted:
        result.reference, result.candidate = (math.exp(r.loss / r.predicted) for r in (a, b))
        return result
    cosines = [float(F.cosine_similarity(x, y, dim=0)) for x, y in zip(a.states, b.states, strict=True)]
    result.cosine, result.worst_cosine = sum(cosines) / len(cosines), min(cosines)
    return result


def _run(
    path: str, spec: str, windows: list[torch.Tensor], device: str, dtype: torch.dtype, seed: int
) -> _Run:
    model, _ = load_model(find_factory(spec), path, device, seed)
    model.to(dtype)
    run = _Run()
    for window in windows:
        ids = window.to(device)
        try:
            with torch.no_grad():
                out = model(input_ids=ids)
        except TypeError as e:
            raise ConversionError(f"--perplexity: the model of --model does not take input_ids: {e}") from e
        logits, states = _part(out, "logits"), _part(out, "last_hidden_state")
        if logits is not None:
            nats = F.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum")
            run.loss, run.predicted = run.loss + float(nats), run.predicted + ids.shape[1] - 1
        elif states is not None:
            run.states.append(states[0].double().mean(0).cpu())
        else:
            raise ConversionError(
                f"--perplexity: {type(model).__name__} answers with neither logits nor last_hidden_state"
            )
    return run


def _part(out: Any, name: str) -> torch.Tensor | None:
    found = out.get(name) if isinstance(out, dict) else getattr(out, name, None)
    return found if isinstance(found, torch.Tensor) else None
