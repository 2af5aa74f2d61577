"""Values on their way to another process: pickled, with the bytes of tensors and arrays beside the pickle.

Ray hands numpy arrays over without a copy; tensors it would pickle, byte by byte and twice over.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_PROTOCOL = 5


@dataclass(frozen=True)
class Parcel:
    """A value. data: its pickle. buffers: what lies beside it, uint8 arrays."""

    data: bytes
    buffers: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, value: Any) -> Parcel:
        """Pack a value; tensors in it must be on the CPU. Its memory is shared until the parcel is sent."""
        found: list[pickle.PickleBuffer] = []
        out = io.BytesIO()
        _Pickler(out, _PROTOCOL, buffer_callback=found.append).dump(value)
        return cls(out.getvalue(), tuple(np.frombuffer(b.raw(), np.uint8) for b in found))

    def opened(self) -> Any:
        """Return the value, in memory of its own: what comes out of Ray may only be read."""
        return pickle.loads(self.data, buffers=[bytearray(b) for b in self.buffers])


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor:
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(flat.data), value.dtype, tuple(value.shape))


def _tensor(buffer: Any, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    if not len(buffer):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).view(shape)
