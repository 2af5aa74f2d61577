"""The interpreter's tests: run by tests/test_triton_interpreter.py in a process of their own."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
else:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    import bfloat16

    bfloat16.repair()

GUARD = 256


def _surround(buffers: list, shape, dtype, device=None) -> torch.Tensor:
    """An uninitialised tensor whose bytes, and those around it, are 0x7f or 0xff: NaN, 127 or -1."""
    if isinstance(shape, int):
        shape = (shape,)
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.full((size + 2 * GUARD,), 0x7F if dtype == torch.int8 else 0xFF, dtype=torch.uint8)
    buffers.append((raw, size, int(raw[0])))
    return raw[GUARD : GUARD + size].view(dtype).view(shape)


@pytest.fixture
def buffers(monkeypatch):
    """Poison everything the launchers allocate, and check that nothing was written beyond it."""
    made: list = []
    plain = torch.empty

    def empty(*shape, dtype=torch.float32, device=None, **options):
        shape = shape[0] if len(shape) == 1 else shape
        if str(device) == "meta" or options or torch.Size(shape if not isinstance(shape, int) else (shape,)).numel() == 0:
            return plain(shape, dtype=dtype, device=device, **options)
        return _surround(made, shape, dtype)

    for name, module in list(sys.modules.items()):
        if name.startswith("convert_to_quant.kernels.triton."):
            fake = SimpleNamespace(**{**vars(torch), "empty": empty})
            if hasattr(module, "torch"):
                monkeypatch.setattr(module, "torch", fake)
    yield made
    for raw, size, fill in made:
        assert (raw[:GUARD] == fill).all(), "written before a buffer"
        assert (raw[GUARD + size :] == fill).all(), "written beyond a buffer"


@pytest.fixture
def place(buffers):
    """Copies an operand into a surrounded buffer."""

    def put(x):
        if x is None or x.numel() == 0:
            return x
        out = _surround(buffers, x.shape, x.dtype)
        return out.copy_(x)

    return put
