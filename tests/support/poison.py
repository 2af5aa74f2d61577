"""Buffers whose bytes, and those around them, are NaN, 127 or -1: unwritten and foreign values show."""

import sys
from types import SimpleNamespace

import torch

GUARD = 256


class Poison:
    """Allocates surrounded buffers on a device and checks that nothing was written around them."""

    def __init__(self, device: str = "cpu"):
        self.device = device
        self._made: list[tuple[torch.Tensor, int, int]] = []

    def empty(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """Like torch.empty, with every byte 0xff (0x7f for int8)."""
        size = torch.Size(shape).numel() * dtype.itemsize
        fill = 0x7F if dtype == torch.int8 else 0xFF
        raw = torch.full((size + 2 * GUARD,), fill, dtype=torch.uint8, device=self.device)
        self._made.append((raw, size, fill))
        return raw[GUARD : GUARD + size].view(dtype).view(shape)

    def place(self, x):
        """A copy of an operand on the device, surrounded; None and empty tensors as they are."""
        if x is None or x.numel() == 0:
            return x if x is None else x.to(self.device)
        return self.empty(x.shape, x.dtype).copy_(x)

    def into_launchers(self, monkeypatch) -> None:
        """Make every torch.empty of the launchers a surrounded buffer."""
        plain = torch.empty

        def empty(*shape, dtype=torch.float32, device=None):
            shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
            if str(device) == "meta" or torch.Size(shape).numel() == 0:
                return plain(shape, dtype=dtype, device=device)
            return self.empty(shape, dtype)

        torch_with_poison = SimpleNamespace(**{**vars(torch), "empty": empty})
        for name, module in list(sys.modules.items()):
            if name.startswith("convert_to_quant.kernels.triton.") and hasattr(module, "torch"):
                monkeypatch.setattr(module, "torch", torch_with_poison)

    def check(self) -> None:
        """Fail when a byte around any buffer changed."""
        for raw, size, fill in self._made:
            assert (raw[:GUARD] == fill).all(), "written before a buffer"
            assert (raw[GUARD + size :] == fill).all(), "written beyond a buffer"
