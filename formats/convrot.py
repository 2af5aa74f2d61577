"""ConvRot's rotation: the group sizes there are, and which of them each layer gets.

The kernels rotate by these groups, and the formats name them in ``comfy_quant``.
"""

from collections.abc import Mapping
from typing import Any

from .config import flag, shown, whole_number
from .errors import CheckpointError

GROUPS = (4, 16, 64, 256, 1024)
"""Columns rotated together: powers of four, for which a regular Hadamard matrix exists."""

PREFERRED_GROUPS = (256, 64, 16)
"""What automatic choice tries, best first: larger groups spread outliers further."""

DEFAULT_GROUP = 256
"""The group of a layer that says it is rotated and not by which group: ComfyUI's default."""


def largest_group(in_features: int, groups: tuple[int, ...] = PREFERRED_GROUPS) -> int:
    """Return the first of `groups` that divides `in_features`, or 0 when none does."""
    return next((g for g in groups if in_features % g == 0), 0)


def rotation_of(config: Mapping[str, Any], columns: int, where: str) -> int:
    """Read the rotation group of a flattened ``comfy_quant`` object; 0 for none.

    CheckpointError names `where` for a group that does not exist or does not divide `columns`.
    """
    if not flag(config, "convrot"):
        return 0
    group = whole_number(config.get("convrot_groupsize", DEFAULT_GROUP))
    if group not in GROUPS:
        given = config.get("convrot_groupsize")
        raise CheckpointError(f"{where}: convrot_groupsize {shown(given)} is not one of {GROUPS}")
    if columns % group:
        raise CheckpointError(f"{where}: convrot_groupsize {group} does not divide its {columns} columns")
    return group


def required_rotation(config: Mapping[str, Any], columns: int, where: str) -> int:
    """Read the group of a format that is always rotated, whatever ``convrot`` says; otherwise as
    `rotation_of`."""
    return rotation_of({**config, "convrot": True}, columns, where)


def rotation_config(rotation: int) -> dict[str, Any]:
    """Return the ``comfy_quant`` keys of a rotation, in the order of ComfyUI's own saver."""
    return {"convrot": True, "convrot_groupsize": rotation} if rotation else {}
