"""Models of real classes whose inputs can be folded: one row per family, tiny, with uneven channels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peers import peer
from running_models import MODELS, output

transformers = peer("transformers")


@dataclass(frozen=True)
class Foldable:
    """A tiny model. inputs: makes a batch. inside: what is folded, and how much of it less its mean.

    preset: named where sizes tell the family apart. run: the outputs to compare.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[torch.Generator], dict]
    inside: tuple[int, int]
    preset: str = "auto"
    run: Callable[[torch.nn.Module, dict], torch.Tensor] = output


def _hidden(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


def _tokens(g: torch.Generator) -> dict:
    return {"input_ids": torch.randint(0, 64, (2, 24), generator=g)}


def _t5() -> torch.nn.Module:
    sizes = {"vocab_size": 64, "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2}
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    return transformers.T5EncoderModel(config)


FAMILIES = {
    "flux": Foldable(MODELS["flux"][0], MODELS["flux"][1], (7, 7)),
    "t5": Foldable(_t5, _tokens, (8, 0), "te-t5-xxl", _hidden),
}
"""One row per family; each is folded and compared with itself."""


def uneven(family: str) -> torch.nn.Module:
    """The family's model, its channels of sizes that differ by a factor of several, their means not zero."""
    torch.manual_seed(0)
    model = FAMILIES[family].build().eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            size = torch.exp(0.7 * torch.randn(p.shape[0], *[1] * (p.dim() - 1)))
            p.copy_(torch.randn_like(p) * size / p[0].numel() ** 0.5)
        else:
            p.copy_(torch.randn_like(p) * 0.5 + (1.0 if "norm" in name else 0))
    return model
