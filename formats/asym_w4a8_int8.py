"""``asym_w4a8_int8``: weights of 4 or 6 bits, decoded to int8 by group scales. Stock ComfyUI loads it.

weight int8 [N, K bits / 8] (`kernels.packing`); weight_s_rel float8_e4m3fn [N, K / g], a scale per group;
weight_s_channel float32 [N]; at 4 bits weight_codebook float32 [16]. Integers are round(level x s_rel),
weights those times s_channel, then un-rotated; the level is codebook[code], or code - 8 without a codebook,
or code - 32 at 6 bits. Despite its name it is symmetric. The bits are told by the width of a row alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .base import Asked, Format
from .config import shown, whole_number
from .convrot import DEFAULT_GROUP, required_rotation
from .errors import CheckpointError
from .names import WEIGHT
from .tensors import Shape, StoredTensor, Tensors

S_REL = "weight_s_rel"
S_CHANNEL = "weight_s_channel"
CODEBOOK = "weight_codebook"

GROUP = 16
"""Weights that share a scale, where a layer does not say otherwise; larger groups are only read."""

OPTIONS = {"w4a8": 4, "w6a8": 6}


@dataclass(frozen=True, kw_only=True)
class AsymW4A8Int8(Format):
    """bits: 4 or 6. group_size: columns per scale. codebook: whether there is a table of 16 levels (4
    bits)."""

    name: ClassVar[str] = "asym_w4a8_int8"
    option: ClassVar[str] = "w4a8"
    options: ClassVar[tuple[str, ...]] = tuple(OPTIONS)
    layout: ClassVar[str] = "AsymW4A8Int8Layout"
    stock_since: ClassVar[str] = "0.33"
    rotates: ClassVar[bool] = True
    always_rotated: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = (S_REL, S_CHANNEL)
    optional: ClassVar[tuple[str, ...]] = (CODEBOOK,)
    warn_db: ClassVar[float] = 17.0

    rotation: int = DEFAULT_GROUP
    bits: int = 4
    group_size: int = GROUP
    codebook: bool = True

    def __post_init__(self) -> None:
        """Leave out a codebook at 6 bits; ValueError for other bits than 4 and 6."""
        super().__post_init__()
        if self.bits not in OPTIONS.values():
            raise ValueError(f"{self.name} has 4 or 6 bits, not {self.bits}")
        object.__setattr__(self, "codebook", self.codebook and self.bits == 4)

    @classmethod
    def make(cls, asked: Asked) -> Format:
        """Return 4 bits, or 6 where that is asked."""
        form = super().make(asked)
        return replace(form, bits=OPTIONS.get(asked.option, 4))  # type: ignore[call-arg]

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the packed weight, its two scales and the codebook."""
        n, k = shape
        return (
            StoredTensor(WEIGHT, "I8", (n, k * self.bits // 8)),
            StoredTensor(S_REL, "F8_E4M3", (n, k // self.group_size)),
            StoredTensor(S_CHANNEL, "F32", (n,)),
            *((StoredTensor(CODEBOOK, "F32", (16,)),) if self.codebook else ()),
        )

    def keys(self) -> dict[str, Any]:
        """Return the sizes of both groups."""
        return {"group_size": self.group_size, "convrot_groupsize": self.rotation}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> Format:
        """Tell K by the group scales and the bits by the width of a row.

        CheckpointError for groups that no such layer has: they must fit K and pack into 16 columns.
        """
        group = whole_number(settings.get("group_size", GROUP))
        if group < 4 or (16 % group and group % 16):
            given = settings.get("group_size")
            raise CheckpointError(f"{where}: group_size {shown(given)} is no 4, 8 or multiple of 16")
        scale, width = tensors[S_REL].shape, tensors[WEIGHT].shape[1]
        columns = group * scale[1] if len(scale) == 2 else 0
        bits = next((b for b in OPTIONS.values() if columns * b == 8 * width), 0)
        if not bits or columns % 16 or (bits == 6 and (columns % 32 or group % 16)):
            raise CheckpointError(
                f"{where}: rows of {width} bytes with {S_REL} {list(scale)} in groups of {group} are "
                f"neither 4 nor 6 bits a weight"
            )
        return cls(
            rotation=required_rotation(settings, columns, where),
            bits=bits,
            group_size=group,
            codebook=CODEBOOK in tensors,
            **cls.common(settings, tensors),
        )

    def check_dtypes(self, tensors: Tensors, where: str) -> None:
        """Read the group scales as bytes too, as some tools store them."""
        scale = tensors[S_REL]
        as_float = replace(scale, dtype="F8_E4M3") if scale.dtype == "U8" else scale
        super().check_dtypes({**tensors, S_REL: as_float}, where)

    def shape(self, stored: tuple[int, ...]) -> Shape:
        """Return [N, K] of a packed weight."""
        return stored[0], stored[1] * 8 // self.bits

    def why_not(self, shape: Shape) -> str:
        """Return why: K must be a multiple of 16, at 6 bits of 32."""
        step = 16 if self.bits == 4 else 32
        if shape[1] % step:
            return f"{shape[1]} columns are no multiple of {step}"
        return "" if self.rotation else "it is always rotated"

    def instead(self) -> str:
        """Return 6 bits after 4, then INT8."""
        return "w6a8" if self.bits == 4 else "int8"

    def asked_as(self) -> str:
        """Return w4a8 or w6a8."""
        return next(name for name, bits in OPTIONS.items() if bits == self.bits)

    def tag(self) -> str:
        """Return w4a8 or w6a8."""
        return self.asked_as()

    def speed(self) -> float:
        """Return what was measured at 4 and at 6 bits."""
        return 2.7e7 if self.bits == 4 else 2.4e7

    def describe(self) -> str:
        """Return ``w4a8 group 16 + convrot 256`` or the like."""
        return f"{self.asked_as()} group {self.group_size} + convrot {self.rotation}"
