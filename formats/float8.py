"""``float8_e4m3fn`` and ``float8_e5m2``: eight-bit floats with one scale in all, or none.

weight [N, K]; weight_scale float32 [] (one per row is read too). Older files name the scale ``scale_weight``
and mark themselves with a tensor ``scaled_fp8``; of two elements, it asks for products in full precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .base import Format, Report
from .config import flag
from .errors import CheckpointError
from .names import SCALE, WEIGHT
from .tensors import Shape, StoredTensor, Tensors


@dataclass(frozen=True, kw_only=True)
class Float8(Format):
    """What both have in common. scaled: whether there is a scale; row_scales: one per row, where others
    wrote it."""

    layout: ClassVar[str] = "TensorCoreFP8Layout"
    stock_since: ClassVar[str] = "0.29"
    activations: ClassVar[str] = "float"
    unlabelled: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = ()
    banks: ClassVar[bool] = True

    scaled: bool = True
    row_scales: bool = False

    def tensors(self, shape: Shape) -> tuple[StoredTensor, ...]:
        """Return the weight and, where it is scaled, the scale [] or [N, 1]."""
        scale = StoredTensor(SCALE, "F32", (shape[0], 1) if self.row_scales else ())
        return (StoredTensor(WEIGHT, self.weight_dtype, shape), *((scale,) if self.scaled else ()))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], tensors: Tensors, where: str) -> Format:
        """Read whether there is a scale, and whether it is one per row."""
        scale, n = tensors.get(SCALE), tensors[WEIGHT].shape[0]
        rows = scale is not None and (scale.numel > 1 or scale.shape == (n, 1))
        return cls(scaled=SCALE in tensors, row_scales=rows, **cls.common(settings, tensors))

    def check(self, tensors: Tensors, where: str) -> None:
        """CheckpointError for a scale that is neither one element nor one per row: [N, 1], [N] or [1, N]."""
        scale, n = tensors.get(SCALE), tensors[WEIGHT].shape[0]
        if scale is not None and scale.numel != 1 and not scale.per_row(n):
            raise CheckpointError(
                f"{where}: weight_scale must have one element, or one per row, not {list(scale.shape)}"
            )
        own = self.tensors(self.shape(tensors[WEIGHT].shape))
        super().check({**tensors, **{t.suffix: t for t in own}}, where)

    def rows(self, first: int, count: int, tensors: Tensors) -> dict[str, tuple[int, int] | None]:
        """Take the rows of the weight, and of a scale per row."""
        parts = super().rows(first, count, tensors)
        if SCALE in tensors and tensors[SCALE].numel > 1:
            parts[SCALE] = (first, first + count)
        return parts

    def describe(self) -> str:
        """Return the name, and what is unusual of the scale."""
        scales = ", row scales" if self.row_scales else "" if self.scaled else ", no scale"
        return self.name + scales + self.bank_words()

    def speed(self) -> float:
        """Return what was measured; both kinds are about as fast."""
        return 8.5e7

    @classmethod
    def put_right(
        cls, config: dict[str, Any] | None, tensors: Tensors, report: Report, reported: bool = False
    ) -> tuple[dict[str, Any] | None, Tensors]:
        """Label a scaled weight by its dtype, and read scales per row as [N, 1].

        A weight without a scale needs no ``comfy_quant``.
        """
        if config is not None and config.get("format") != cls.name:
            report(
                "wrong format",
                f"labelled {config.get('format')!r}, but is {cls.name}",
                f"labelled {cls.name}",
            )
            config = {**config, "format": cls.name}
        if config is not None and flag(config, "convrot"):
            report("rotation", f"it says convrot, and {cls.name} has no rotation")
        scale, n = tensors.get(SCALE), tensors[WEIGHT].shape[0] if tensors[WEIGHT].shape else 0
        if scale is not None and scale.numel > 1 and scale.per_row(n) and scale.shape != (n, 1):
            text = f"its row scale has shape {list(scale.shape)}, not [{n}, 1]"
            report("scale shape", text, f"reshaped to [{n}, 1]", fatal=False)
            tensors = {**tensors, SCALE: replace(scale, shape=(n, 1))}
        return config, tensors


@dataclass(frozen=True, kw_only=True)
class Float8E4M3(Float8):
    """Four bits of exponent, three of mantissa: up to 448."""

    name: ClassVar[str] = "float8_e4m3fn"
    option: ClassVar[str] = "fp8"
    weight_dtype: ClassVar[str] = "F8_E4M3"


@dataclass(frozen=True, kw_only=True)
class Float8E5M2(Float8):
    """Five bits of exponent, two of mantissa: up to 57344."""

    name: ClassVar[str] = "float8_e5m2"
    option: ClassVar[str] = "fp8_e5m2"
    weight_dtype: ClassVar[str] = "F8_E5M2"
