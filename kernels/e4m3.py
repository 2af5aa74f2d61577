"""e4m3 values by their bits: what the scales of groups and blocks are chosen among."""

from functools import lru_cache

import torch

LARGEST = 126
"""The bits of the largest finite value, 448."""


def e4m3_bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bits of the e4m3 values nearest to x, which lie in 2^-9 to 448, float32; 126 for NaN."""
    nearest = x.clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn)
    return nearest.view(torch.uint8).float().clamp_(1, LARGEST)


def e4m3_values(bits: torch.Tensor) -> torch.Tensor:
    """Return the values, float32, of bits 0 to 126 given as floats or integers of any shape."""
    index = bits.to(torch.int32)
    return _every_value(str(bits.device)).index_select(0, index.flatten()).view(bits.shape)


@lru_cache(maxsize=8)
def _every_value(device: str) -> torch.Tensor:
    """Return the values of bits 0 to 126; do not write to them."""
    with torch.inference_mode(False):
        bits = torch.arange(LARGEST + 1, dtype=torch.uint8, device="cpu")
        return bits.view(torch.float8_e4m3fn).float().to(device)
