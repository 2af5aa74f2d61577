"""The repeated, numbered blocks of a model, found from the names of its Linears."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

# A list of blocks that does not stand beside the main one counts from this share of
# the main list's parameters on. Vision towers of text encoders (4 to 10 %), token
# refiners (1 to 3 %) and adapters (7 to 9 %) stay below it; the encoder of an
# encoder-decoder model (75 %) reaches it.
SECOND_LIST_SHARE = 0.25

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")


@dataclass(frozen=True)
class Blocks:
    """The block lists of a model, main list first, and the list of each Linear in one.

    A list is named by its path without the number: ``model.layers``.
    """

    lists: tuple[str, ...] = ()
    member: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _List:
    """A numbered list of modules: what it holds and how much of it there is."""

    items: dict[str, set[str]] = field(default_factory=dict)  # number -> Linears inside
    parameters: int = 0

    @property
    def repeats(self) -> bool:
        """Tell whether two items have the same Linears inside."""
        seen = [frozenset(linears) for linears in self.items.values()]
        return len(set(seen)) < len(seen)

    @property
    def size(self) -> int:
        """Linears in the largest item."""
        return max(len(linears) for linears in self.items.values())


def find_blocks(linears: Mapping[str, int]) -> Blocks:
    """Find the block lists of a model; ``linears`` maps ``<module>.weight`` to its element count.

    A block list is ``path.0``, ``path.1``, ... where two items have the same Linears.
    In nested lists the outermost that repeats counts, so that a wrapper such as
    ``conditioner.embedders.0`` is passed over. Items hold at least two Linears, unless
    no list's do: ``mlp.0``, ``mlp.2`` are layers and not blocks, and
    ``caption_projection.N.linear`` are embedders.

    The main list is the one with the most parameters. Of the others, these count too:
    those that stand beside it (``single_blocks`` by ``double_blocks``, Z-Image's refiners
    by ``layers``), even with one item only, and those anywhere else that reach
    ``SECOND_LIST_SHARE`` of its size. So a vision tower, a token refiner or an adapter
    with a few blocks of its own stays as it is. The owners of published files decide
    such short lists either way; a model that differs from this rule has a preset.
    """
    lists = _numbered_lists(linears)
    repeated = {path for path, found in lists.items() if found.repeats}
    if not repeated:
        return Blocks()
    floor = min(2, max(lists[path].size for path in repeated))
    lists = {path: found for path, found in lists.items() if found.size >= floor}
    repeated &= lists.keys()
    outermost = {path for path in repeated if not any(outer in repeated for outer in _paths(path))}
    main = max(outermost, key=lambda path: (lists[path].parameters, path))
    # Embedders may be numbered too (label_emb.0.0, label_emb.0.2), and stay embedders.
    beside = {path for path in lists if _parent(path) == _parent(main) and "emb" not in _last(path)}
    limit = lists[main].parameters * SECOND_LIST_SHARE
    chosen = {main} | beside | {path for path in outermost if lists[path].parameters >= limit}
    others = sorted(chosen - {main}, key=lambda path: (-lists[path].parameters, path))
    members = ((name, next((path for path in _paths(name) if path in chosen), None)) for name in linears)
    return Blocks((main, *others), {name: path for name, path in members if path is not None})


def _numbered_lists(linears: Mapping[str, int]) -> dict[str, _List]:
    lists: dict[str, _List] = {}
    for name, elements in linears.items():
        for path in _paths(name):
            number, _, inside = name[len(path) + 1 if path else 0 :].partition(".")
            inside = _unnumbered(inside.removesuffix("weight"))
            if inside.replace("N.", ""):  # a module with layers in it, not a layer itself
                found = lists.setdefault(path, _List())
                found.items.setdefault(number, set()).add(inside)
                found.parameters += elements
    return lists


def _paths(name: str) -> Iterator[str]:
    """Yield what stands before each number in a name, outermost first."""
    for number in _NUMBER.finditer(name):
        yield name[: number.start()].rstrip(".")


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


@cache
def _unnumbered(path: str) -> str:
    return _NUMBER.sub("N", path)
