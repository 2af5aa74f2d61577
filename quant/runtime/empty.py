"""Building a model without memory for its weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def empty_weights() -> Iterator[None]:
    """Put the parameters of modules built inside on the meta device, and their buffers where they belong::

        with empty_weights():
            model = FluxTransformer2DModel(**config)
        load_quantized(model, "flux-int8.safetensors")

    Unlike ``torch.device("meta")`` this keeps tables that no checkpoint holds (rotary frequencies,
    position ids) real. Not for use from several threads at once: it replaces ``Module.register_parameter``.
    """
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=param.requires_grad)
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
