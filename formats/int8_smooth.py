"""``int8_smooth``: ``int8_tensorwise`` with a ``pre_quant_scale`` (SmoothQuant), under a name of its own.

Stock ComfyUI reads a smoothed layer that is called ``int8_tensorwise``, ignores the ``pre_quant_scale`` and
shows noise; this name it refuses, and the node pack reads it. Under the old name such layers are read too.
"""

from dataclasses import dataclass
from typing import ClassVar

from .int8_tensorwise import Int8Tensorwise
from .names import PRE_QUANT_SCALE, SCALE


@dataclass(frozen=True, kw_only=True)
class Int8Smooth(Int8Tensorwise):
    """As `Int8Tensorwise`; ``pre_quant_scale`` [K] is always among its extra tensors."""

    name: ClassVar[str] = "int8_smooth"
    option: ClassVar[str] = ""
    stock_since: ClassVar[str] = ""
    unlabelled: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = (SCALE, PRE_QUANT_SCALE)
    smoothed_as: ClassVar[str] = "int8_smooth"

    def __post_init__(self) -> None:
        """Add what makes it this format."""
        object.__setattr__(self, "extra", (*self.extra, PRE_QUANT_SCALE))
        super().__post_init__()

    def tag(self) -> str:
        """Return ``int8_row_smooth`` or ``int8_tensor_smooth``."""
        return f"{super().tag()}_smooth"
