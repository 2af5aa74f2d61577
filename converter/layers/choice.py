"""What becomes of one layer: the model's preset, the user's patterns and the options for all, in one."""

from __future__ import annotations

from ...files.checkpoint import TensorInfo
from ...files.dtypes import QUANTIZABLE
from ...formats import Asked, Format
from ...formats.algorithms import ALGORITHMS, ROUNDING
from ...formats.bank import matrix_shape
from ...formats.choose import chosen
from ...formats.convrot import GROUPS, largest_group
from ...formats.errors import ConversionError
from ..options.settings import Settings
from ..options.values import FLOAT16
from ..presets.columns_read import columns_are_read
from .config import LayerOverride
from .heuristics import why_skip
from .rules import Rule
from .selection import Decision

_NOTHING = LayerOverride()


def choose(weight: TensorInfo, decision: Decision, rule: Rule | None, settings: Settings) -> Decision:
    """Decide for one layer.

    weight: its weight, [N, K] or a bank [E, N, K]; decision: quantize or keep, from the preset or the general
    rule; rule: the user's pattern that decides for it, if any. ConversionError, naming the layer, for a
    rotation group that does not divide its columns and for a rotation that its format does not have.
    """
    asked = rule.override if rule else _NOTHING
    if rule and asked.skip:
        return Decision("keep", f"left out by {rule.where}")
    if not asked.decides and decision.action == "keep":
        return decision
    shape = matrix_shape(weight.shape)
    heuristic = rule.heuristic if rule and asked.decides else "--heur" if settings.heur else ""
    if heuristic and (why := why_skip(weight.shape[-2], weight.shape[-1])):
        return Decision("keep", f"{heuristic}: {why}")
    if weight.dtype not in QUANTIZABLE:
        return Decision("keep", f"stored as {weight.dtype}")
    reason = rule.where if rule else decision.reason
    fallback = None if rule else settings.fallback
    stored = asked.format or fallback or settings.format
    if stored == FLOAT16:
        why = rule.where if rule else f"--fallback {FLOAT16}"
        if weight.dtype == "F16":
            return Decision("keep", f"float16 already, as asked by {why}")
        return Decision("cast", f"stored as float16: {why}")
    if fallback and settings.fallback_block_size:
        asked = LayerOverride(block_size=settings.fallback_block_size)
    form = _format(weight, asked, stored, rule.where if rule else "", settings)
    refused = ""
    while why_not := form.why_no_bank() or form.why_not(shape) or _hidden_columns(weight.name, form, shape):
        refused += f"; {form.asked_as()} cannot hold it: {why_not}"
        if not form.instead():
            return Decision("keep", refused.removeprefix("; "))
        form = _format(weight, asked, form.instead(), rule.where if rule else "", settings)
    reason += refused
    simple = bool(fallback) and settings.fallback_simple
    return Decision("quantize", reason, form, ROUNDING if simple else asked.optimizer or "")


def _hidden_columns(name: str, form: Format, shape: tuple[int, int]) -> str:
    """Return why a packed weight may not stand where ComfyUI reads its columns; "" where it does not."""
    if form.tensors(shape)[0].shape[-1] == shape[1] or not columns_are_read(name):
        return ""
    return "ComfyUI reads the number of its columns, which packed rows hide"


def _format(weight: TensorInfo, asked: LayerOverride, stored: str, where: str, s: Settings) -> Format:
    found = _class(stored, asked.scaling_mode, s)
    full = asked.full_precision_matrix_mult
    granularity = asked.scaling_mode or s.scaling_mode or ""
    return found.make(
        Asked(
            granularity if granularity in found.granularities else "",
            _rotation(weight, asked, found, where, s),
            asked.block_size or s.block_size,
            s.full_precision_matrix_mult if full is None else full,
            stored,
            weight.shape[0] if len(weight.shape) == 3 else 0,
        )
    )


def _class(stored: str, granularity: str | None, s: Settings) -> type[Format]:
    """Find the format; the granularity for all layers counts where the format has it."""
    if granularity is None and s.scaling_mode is not None:
        try:
            return chosen(stored, s.scaling_mode)
        except ValueError:
            return chosen(stored, None)
    return chosen(stored, granularity)


def _rotation(weight: TensorInfo, asked: LayerOverride, form: type[Format], where: str, s: Settings) -> int:
    """Return the ConvRot group of a layer, 0 for none; so for a bank that ComfyUI would not un-rotate."""
    if len(weight.shape) == 3 and form.banks and not form.rotates_banks:
        return 0
    wanted = asked.convrot
    if wanted is None and asked.convrot_group_size is not None:
        wanted = True
    if not form.rotates:
        if wanted:
            raise ConversionError(
                f"{where}: {weight.name} is {form.name}, a format without rotation; leave convrot out"
            )
        if s.convrot and not chosen(s.format, s.scaling_mode).rotates:
            named = f"--scaling_mode {s.scaling_mode}" if s.scaling_mode else f"--format {s.format}"
            raise ConversionError(
                f"--convrot does not apply to {named}: that format has no rotation; leave it out"
            )
        return 0
    if wanted is None:
        wanted = s.convrot
    if form.always_rotated:
        if wanted is False:
            raise ConversionError(
                f"{weight.name} is to be {form.name}, which is always rotated; leave --no-convrot out"
            )
        wanted = True
    if wanted is None:
        algorithm = asked.optimizer or s.optimizer
        wanted = algorithm is None or ALGORITHMS[algorithm].rotates is not False
    if not wanted:
        return 0
    group = asked.convrot_group_size or s.convrot_group_size
    if group == "auto":
        return largest_group(weight.shape[-1])
    if weight.shape[-1] % int(group):
        flag = f"{where}: convrot_group_size" if asked.convrot_group_size else "--convrot-group-size"
        raise ConversionError(_does_not_divide(flag, int(group), weight))
    return int(group)


def _does_not_divide(flag: str, group: int, weight: TensorInfo) -> str:
    fits = largest_group(weight.shape[-1], GROUPS[::-1])
    return (
        f"{flag} {group} does not divide the {weight.shape[-1]} columns of {weight.name} "
        f"(the largest that does is {fits or 'none'}); use auto, which chooses for each layer"
    )
