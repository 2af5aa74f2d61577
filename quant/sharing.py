"""One quantization of an input for all the Linears that read it: q, k and v; gate and up.

A layout asks here, before it multiplies, for what another Linear has made of the same input. "The same" is
the same tensor object (held weakly), changed by nothing since: its version counter tells. Who reads an input
first, and how many Linears read it after that, is learned as the model runs: the first forward quantizes
at each Linear, as without this; later ones quantize at the first reader and drop the integers at the last.
So nothing is held for an input that one Linear reads, and nothing longer than from first to last reader.

Nothing is shared
- with ``CONVERT_TO_QUANT_SHARE=0``, read at each call;
- while code is compiled, exported or traced, whose graphs must hold the quantization. Why it is not done
  inside the op instead: compiled code writes new values into old tensors without counting them;
- while a CUDA graph is captured, whose replays read new values; and never between two streams, threads or
  groups of rotation;
- of inference tensors, which count no changes, outside of `shared_inputs`;
- up to 16 rows, where one launch does all; with a static activation scale, of which each layer has its own.

What it cannot see is what autograd cannot see either: a change through ``x.data``, or by foreign code that
writes to a tensor's address.
"""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..kernels import quantize_activations
from ..kernels._library import eager_forced
from ..kernels.int8_linear import FEW_ROWS
from ..kernels.quantize_activations import block_of

Pair = tuple[torch.Tensor, torch.Tensor]

LIMIT = 1 << 16
"""First readers remembered: far more than the layers of a model. Beyond, all are forgotten."""

_READS: dict[int, int] = {}
"""First reader -> Linears that read its input the last time. By address: a wrong number costs only time."""


class _Thread(threading.local):
    """What a thread's last Linear read, and whether inference tensors count."""

    last: "_Input | None" = None
    promised = False


_THREAD = _Thread()


class _Input:
    """An input, the Linears that have read it so far, and its integers while more are expected."""

    __slots__ = ("expected", "held", "kind", "readers", "ref")

    def __init__(self, x: torch.Tensor, kind: tuple, reader: int):
        self.kind, self.readers, self.expected = kind, [reader], _READS.get(reader, 1)
        held: list[Pair] = []  # by itself: a callback that held all of this would be a circle
        self.held, self.ref = held, weakref.ref(x, lambda _: held.clear())

    def read_by(self, reader: int) -> Pair | None:
        """Return the integers for one more reader; None where it was not expected, and now will be."""
        self.readers.append(reader)
        count = len(self.readers)
        if count > self.expected:
            _remember(self.readers[0], count)
        if not self.held:
            return None
        return self.held[0] if count < self.expected else self.held.pop()

    def end(self) -> None:
        """Let go, for another input; expect fewer readers the next time where fewer came."""
        self.held.clear()
        if len(self.readers) < self.expected:
            _remember(self.readers[0], len(self.readers))


def quantized(
    x: torch.Tensor, weight: torch.Tensor, rotation: int, scale: torch.Tensor | None = None
) -> Pair | None:
    """Return (q, q_scale) of x [.., K] where another Linear read or will read it too; else None.

    weight, rotation: the reader's integers and their group. scale: the weight's where that may be block-wise.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or type(x) is not torch.Tensor:
        return None
    if not x.shape or x.numel() <= FEW_ROWS * x.shape[-1] or not _can_share(x):
        return None
    block = 0 if scale is None else block_of(weight, scale)
    version = None if x.is_inference() else x._version
    kind = version, x.data_ptr(), rotation, block, eager_forced(), _stream(x.device)
    last, reader = _THREAD.last, weight.data_ptr()
    if last is not None and last.kind == kind and last.ref() is x and reader not in last.readers:
        return last.read_by(reader)
    if last is not None:
        last.end()
    _THREAD.last = last = _Input(x, kind, reader)
    if last.expected == 1:
        return None
    pair = quantize_activations(x, rotation, block=block)
    last.held.append(pair)
    return pair


@contextmanager
def shared_inputs() -> Iterator[None]:
    """Let Linears share the quantization of inference tensors too, in this thread, inside the block.

    For one forward under ``torch.inference_mode()``, whose tensors count no changes: who enters promises that
    the model changes no Linear's input in place before the last Linear that reads it. Tensors that do count
    need no promise.
    """
    before = _THREAD.promised
    _THREAD.promised, _THREAD.last = True, None
    try:
        yield
    finally:
        _THREAD.promised, _THREAD.last = before, None


def _can_share(x: torch.Tensor) -> bool:
    """Return whether changes of x are counted, and whether what is done to it is only run, not recorded."""
    if x.is_inference() and not _THREAD.promised:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    if os.environ.get("CONVERT_TO_QUANT_SHARE") == "0":
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _stream(device: torch.device) -> Any:
    if device.type not in ("cuda", "xpu"):
        return None
    return torch.get_device_module(device).current_stream(device)


def _remember(reader: int, count: int) -> None:
    if len(_READS) >= LIMIT:
        _READS.clear()
    _READS[reader] = count
