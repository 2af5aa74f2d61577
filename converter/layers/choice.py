"""What becomes of one layer: the model's preset, the user's patterns and the options for all, in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...files.checkpoint import TensorInfo
from ...files.dtypes import QUANTIZABLE
from ...formats.errors import ConversionError
from ..contract import GROUPS, LayerFormat, largest_group
from ..options.settings import Settings
from .config import LayerOverride
from .heuristics import why_skip
from .rules import Rule
from .selection import Decision

_NOTHING = LayerOverride()


@dataclass(frozen=True)
class LayerChoice:
    """How one layer is stored, and why.

    action: "quantize" it as `format` with `algorithm`, "cast" it to float16, or "keep" its bytes.
    algorithm: the layer's own, "" where the one for all layers counts.
    """

    action: Literal["quantize", "cast", "keep"]
    reason: str
    format: LayerFormat | None = None
    algorithm: str = ""


def choose(weight: TensorInfo, decision: Decision, rule: Rule | None, settings: Settings) -> LayerChoice:
    """Decide for one layer.

    weight: its 2-D weight; decision: quantize or keep, from the preset or the general rule; rule: the user's
    pattern that decides for it, if any. ConversionError, naming the layer, for a rotation group that does not
    divide its columns and for a rotation of block-wise integers.
    """
    asked = rule.override if rule else _NOTHING
    if rule and asked.skip:
        return LayerChoice("keep", f"left out by {rule.where}")
    if not asked.decides:
        if decision.action == "keep":
            return LayerChoice("keep", decision.reason)
        if settings.heur and (why := why_skip(weight.shape[0], weight.shape[1])):
            return LayerChoice("keep", f"--heur: {why}")
    if weight.dtype not in QUANTIZABLE:
        return LayerChoice("keep", f"stored as {weight.dtype}")
    reason = rule.where if rule else decision.reason
    stored = asked.format or ("int8" if rule else settings.fallback)
    if stored == "fp16":
        why = rule.where if rule else "--fallback fp16"
        if weight.dtype == "F16":
            return LayerChoice("keep", f"float16 already, as asked by {why}")
        return LayerChoice("cast", f"stored as float16: {why}")
    layer = _format(weight, asked, stored, rule.where if rule else "", settings)
    return LayerChoice("quantize", reason, layer, asked.optimizer or "")


def _format(weight: TensorInfo, asked: LayerOverride, stored: str, where: str, s: Settings) -> LayerFormat:
    scaling = asked.scaling_mode or s.scaling_mode
    if stored == "int8_blockwise":
        scaling = "block"
    elif stored == "int8_tensorwise" and scaling == "block":
        scaling = "row"
    full = asked.full_precision_matrix_mult
    return LayerFormat(
        scaling,
        _rotation(weight, asked, scaling, where, s),
        (asked.block_size or s.block_size) if scaling == "block" else LayerFormat.block_size,
        s.full_precision_matrix_mult if full is None else full,
    )


def _rotation(weight: TensorInfo, asked: LayerOverride, scaling: str, where: str, s: Settings) -> int:
    """The ConvRot group of a layer, 0 for none."""
    wanted = asked.convrot
    if wanted is None and asked.convrot_group_size is not None:
        wanted = True
    if scaling == "block":
        if wanted:
            raise ConversionError(f"{where}: {weight.name} is block-wise, a format without rotation")
        if s.convrot and s.scaling_mode == "block":
            raise ConversionError(
                "--convrot does not apply to --scaling_mode block: that format has no rotation"
            )
        return 0
    if wanted is None:
        wanted = s.convrot
    if wanted is None:
        wanted = (asked.optimizer or s.optimizer) != "ldlq"  # by that name it is the unrotated one
    if not wanted:
        return 0
    group = asked.convrot_group_size or s.convrot_group_size
    if group == "auto":
        return largest_group(weight.shape[1])
    if weight.shape[1] % int(group):
        flag = f"{where}: convrot_group_size" if asked.convrot_group_size else "--convrot-group-size"
        raise ConversionError(_does_not_divide(flag, int(group), weight))
    return int(group)


def _does_not_divide(flag: str, group: int, weight: TensorInfo) -> str:
    fits = largest_group(weight.shape[1], GROUPS[::-1])
    return (
        f"{flag} {group} does not divide the {weight.shape[1]} columns of {weight.name} "
        f"(the largest that does is {fits or 'none'}); use auto, which chooses for each layer"
    )
