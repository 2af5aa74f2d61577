"""Repeated blocks as one name: ``double_blocks.{0..18}.img_mlp.0`` for nineteen layers."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Layers that differ only in the numbers of their blocks. indices: where they stand in what was given."""

    name: str
    indices: tuple[int, ...]


def collapse(names: Sequence[str], alike: Sequence[Hashable] | None = None) -> list[Group]:
    """Return the names with those of repeated blocks joined, in the order in which each first occurs.

    alike: one value per name; only names with equal values are joined. A number is that of a block where it
    stands between dots, or first; a last number (``mlp.0``) is none. Names join along one number after the
    other, so that experts in blocks become ``layers.{0..47}.experts.{0..127}.w1`` where all are there.
    """
    groups = [
        (tuple(n.split(".")), alike[i] if alike is not None else None, [i]) for i, n in enumerate(names)
    ]
    deepest = max((len(tokens) for tokens, _, _ in groups), default=0)
    for position in range(deepest - 1):
        groups = _joined(groups, position)
    return [Group(".".join(tokens), tuple(indices)) for tokens, _, indices in groups]


def _joined(
    groups: Iterable[tuple[tuple[str, ...], Hashable, list[int]]], position: int
) -> list[tuple[tuple[str, ...], Hashable, list[int]]]:
    """Join groups that differ in the number at one position only."""
    found: dict[Hashable, list[tuple[tuple[str, ...], Hashable, list[int]]]] = {}
    for number, group in enumerate(groups):
        tokens = group[0]
        joins = position < len(tokens) - 1 and tokens[position].isdecimal()
        key = (tokens[:position], tokens[position + 1 :], group[1]) if joins else number
        found.setdefault(key, []).append(group)
    out = []
    for members in found.values():
        tokens, value, _ = members[0]
        if len(members) > 1:
            numbers = sorted({int(m[0][position]) for m in members})
            tokens = (*tokens[:position], _ranges(numbers), *tokens[position + 1 :])
        out.append((tokens, value, [i for m in members for i in m[2]]))
    return out


def _ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers as ``{0..18}`` or ``{0, 3, 5..7}``."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    parts = (str(r[0]) if len(r) == 1 else f"{r[0]}{',' if len(r) == 2 else '..'}{r[-1]}" for r in runs)
    return "{" + ",".join(parts) + "}"
