"""A model that can be run on prompts one by one: what `record` hooks, and calls."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class Runs:
    """How a model is run.

    steps, sizes (width, height; taken in turn), frames: of images and videos, None or empty for the
    pipeline's own. seed: of the first run's noise, the next run's is one more. dtype, device: of the weights.
    offload: keep the models of a pipeline on the CPU but for the one that runs.
    """

    steps: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    frames: int | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    offload: bool = False


class Runner(Protocol):
    """A loaded model. model: whose linear layers are recorded. called: what a run calls, the model or a part
    of it. title: what it is, for people."""

    model: nn.Module
    called: nn.Module
    title: str

    def run(self, prompt: str, number: int) -> None:
        """Run the model on a prompt; number: of the run, from 0. ConversionError where it cannot be run."""
