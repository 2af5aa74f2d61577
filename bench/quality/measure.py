"""What a quantized layer, and a quantized model, lose on held-out text."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from minilm import MiniLM
from torch import nn

from convert_to_quant.quant.algorithms import LayerResult


@dataclass(frozen=True)
class Scores:
    """Output SQNR of each layer in dB, and 1 - cosine of the embeddings with float32's (means)."""

    w8a16: dict[str, float]
    w8a8: dict[str, float]
    drift16: float = math.nan
    drift8: float = math.nan

    def row(self) -> list[float]:
        """Return mean and worst W8A16, mean and worst W8A8, drift W8A16, drift W8A8."""
        return [
            mean(self.w8a16),
            min(self.w8a16.values()),
            mean(self.w8a8),
            min(self.w8a8.values()),
            self.drift16,
            self.drift8,
        ]


def mean(scores: dict[str, float]) -> float:
    """Return the mean of all layers."""
    return sum(scores.values()) / len(scores)


def sqnr(exact: torch.Tensor, got: torch.Tensor) -> float:
    """Return 10 log10(|exact|^2 / |exact - got|^2), in dB."""
    noise = (exact.double() - got.double()).square().sum()
    return (10 * torch.log10(exact.double().square().sum() / noise)).item()


def integer_output(x: torch.Tensor, result: LayerResult) -> torch.Tensor:
    """Run x through the INT8 linear as models do: dynamic int8 activations, rotated where the weight is."""
    return F.linear(smoothed(x, result), result.weight, result.bias)


def smoothed(x: torch.Tensor, result: LayerResult) -> torch.Tensor:
    """Return x as the layer receives it: times its pre_quant_scale, where it has one."""
    return x if result.pre_quant_scale is None else x * result.pre_quant_scale


def layer_scores(x: torch.Tensor, weight: torch.Tensor, result: LayerResult) -> tuple[float, float]:
    """Return (W8A16, W8A8) output SQNR of tokens x [n, K]; a corrected bias counts as one of zero."""
    exact = x @ weight.T
    dense = F.linear(smoothed(x, result), result.weight.dequantize().float(), result.bias)
    return sqnr(exact, dense), sqnr(exact, integer_output(x, result))


class _Replaced(nn.Module):
    """A linear layer run from its quantized form."""

    def __init__(self, original: nn.Linear, result: LayerResult, integer: bool) -> None:
        super().__init__()
        self.bias, self.result, self.integer = original.bias, result, integer
        self.dense = None if integer else result.weight.dequantize().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.integer:
            return integer_output(x, self.result) + self.bias
        y = F.linear(smoothed(x, self.result), self.dense, self.result.bias)
        return y + self.bias


def embeddings(model: MiniLM, batches: list) -> torch.Tensor:
    """Return the embeddings of all sequences, [sequences, 384]."""
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in batches])


@contextmanager
def replaced(model: nn.Module, results: dict[str, LayerResult], integer: bool) -> Iterator[None]:
    """Run the layers of `results` in their quantized form while the block lasts."""
    originals = {name: model.get_submodule(name) for name in results}
    try:
        for name, result in results.items():
            _set(model, name, _Replaced(originals[name], result, integer))
        yield
    finally:
        for name, module in originals.items():
            _set(model, name, module)


def drift(
    model: MiniLM, results: dict[str, LayerResult], batches: list, exact: torch.Tensor, integer: bool
) -> float:
    """Return the mean of 1 - cosine between the embeddings of the quantized model and the exact ones."""
    with replaced(model, results, integer):
        got = embeddings(model, batches)
    return (1 - (got.double() * exact.double()).sum(1)).mean().item()


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
