"""A transformers model, run on the tokens of each prompt: text encoders and language models."""

from typing import Any

import torch
from torch import nn

from ...formats.errors import ConversionError
from .runner import Runs
from .source import Source

LONGEST = 2048
"""Tokens of a prompt at most, where the tokenizer has no limit of its own."""


class TextModel:
    """A model and its tokenizer; of an encoder with a decoder only the encoder runs.

    ConversionError where transformers is missing, and for a folder that it cannot load.
    """

    def __init__(self, source: Source, runs: Runs) -> None:
        self.title, self._runs = source.architecture, runs
        self.model, self._tokenizer = _load(source, runs)
        seq2seq = getattr(self.model.config, "is_encoder_decoder", False)
        self.called: nn.Module = self.model.get_encoder() if seq2seq else self.model  # type: ignore[operator]
        self._longest = min(LONGEST, self._tokenizer.model_max_length)

    def run(self, prompt: str, number: int) -> None:
        """Run the model on the prompt's tokens, without padding; ConversionError where it fails."""
        try:
            tokens = self._tokenizer(prompt, truncation=True, max_length=self._longest, return_tensors="pt")
            given = {
                k: tokens[k].to(self._runs.device) for k in ("input_ids", "attention_mask") if k in tokens
            }
            self.called(**given)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # other people's code may raise anything
            raise ConversionError(
                f"{self.title} failed on prompt {number + 1}: {type(e).__name__}: {e}"
            ) from e


def _load(source: Source, runs: Runs) -> tuple[nn.Module, Any]:
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as e:
        raise ConversionError(
            "this model is run by transformers: pip install 'convert-to-quant-toolkit[transformers]'"
        ) from e
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    kind = getattr(transformers, source.architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConversionError(
            f"{source.folder}: this transformers has no model {source.architecture}; is it newer?"
        )
    try:
        model = kind.from_pretrained(  # type: ignore[attr-defined]
            source.folder, dtype=runs.dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except Exception as e:  # a damaged folder may end in anything
        raise ConversionError(f"{source.folder}: transformers cannot load it: {type(e).__name__}: {e}") from e
    return model.eval().to(runs.device), tokenizer
