"""What a layer is stored as: its tensors by suffix, dtype and shape."""

from collections.abc import Mapping
from dataclasses import dataclass

Shape = tuple[int, int]
"""[N, K] of a linear weight: out_features, in_features."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a stored layer.

    suffix: what follows the layer's name and a dot. dtype: its safetensors name ("F32"). shape: as stored,
    which for a packed weight is not [N, K].
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    def per_row(self, rows: int) -> bool:
        """Return whether it has one element per row of the weight: [N, 1], [N] or [1, N]."""
        return self.numel == rows and rows in self.shape


Tensors = Mapping[str, StoredTensor]
"""The tensors of a layer by suffix, ``comfy_quant`` aside."""
