"""The multiple-choice knapsack: one option for each item, the least error that a number of bytes allows.

The linear relaxation is greedy on the lower convex hull of each item's options (Zemel, "The linear
multiple choice knapsack problem", 1980). Its price of a byte bounds what every other choice can still gain
(Lagrange), which settles nearly all items; the rest are enumerated (Pisinger, "A minimal algorithm for the
multiple-choice knapsack problem", 1995).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MOST_STATES = 20_000
"""Partial choices kept while the unsettled items are enumerated; beyond it the result may miss the optimum
by `Choice.gap`."""


class Option(NamedTuple):
    """One way to store an item: its bytes and its error, both not negative."""

    bytes: int
    error: float


@dataclass(frozen=True)
class Choice:
    """taken: the option's index for each item. bytes, error: their sums.

    bound: no choice within the budget has a smaller error.
    """

    taken: tuple[int, ...]
    bytes: int
    error: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the error may lie above the optimum, as a share of it: 0 where it is the optimum."""
        return max(0.0, self.error - self.bound) / self.error if self.error > 0 else 0.0


def least_bytes(items: Sequence[Sequence[Option]]) -> int:
    """Return the bytes that the smallest options take together."""
    return sum(min(o.bytes for o in options) for options in items)


def best_choice(items: Sequence[Sequence[Option]], budget: int) -> Choice:
    """Choose an option for each item, of at most `budget` bytes together and with the least error.

    Deterministic; seconds for thousands of items. ValueError where even the smallest options take more.
    """
    if not items:
        return Choice((), 0, 0.0, 0.0)
    least = least_bytes(items)
    if least > budget:
        raise ValueError(f"even the smallest options take {least} bytes, {least - budget} too many")
    hulls = [_hull(options) for options in items]
    taken, price = _greedy(items, hulls, budget)
    return _exact(items, taken, price, budget)


def _hull(options: Sequence[Option]) -> list[int]:
    """Return the options on the lower convex hull, by bytes: each next one costs more for each gain."""
    hull: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i], i)):
        if hull and options[i].error >= options[hull[-1]].error:
            continue
        while len(hull) > 1 and _gain(options, hull[-1], i) >= _gain(options, hull[-2], hull[-1]):
            hull.pop()
        hull.append(i)
    return hull


def _gain(options: Sequence[Option], a: int, b: int) -> float:
    """Return the error saved for each byte more from option a to option b."""
    return (options[a].error - options[b].error) / (options[b].bytes - options[a].bytes)


def _greedy(
    items: Sequence[Sequence[Option]], hulls: Sequence[Sequence[int]], budget: int
) -> tuple[list[int], float]:
    """Return a choice that fits, and the error that one byte more would save in the relaxation."""
    steps = [
        (-_gain(items[i], a, b), i, place)
        for i, hull in enumerate(hulls)
        for place, (a, b) in enumerate(pairwise(hull), 1)
    ]
    taken = [hull[0] for hull in hulls]
    left = budget - sum(options[t].bytes for options, t in zip(items, taken, strict=True))
    full, price = set(), 0.0
    for gain, i, place in sorted(steps):
        more = items[i][hulls[i][place]].bytes - items[i][taken[i]].bytes
        if i not in full and more <= left:
            taken[i] = hulls[i][place]
            left -= more
        else:
            price = price or -gain
            full.add(i)
    return taken, price


def _exact(items: Sequence[Sequence[Option]], taken: list[int], price: float, budget: int) -> Choice:
    """Improve a choice to the optimum, or as near as MOST_STATES allows."""
    costs = [np.array([o.error + price * o.bytes for o in options]) for options in items]
    lowest = [float(c.min()) for c in costs]
    bound = max(0.0, sum(lowest) - price * budget)
    best_error = sum(o[t].error for o, t in zip(items, taken, strict=True))
    # An option whose own cost over the lowest already lifts the bound over what is at hand is out.
    # The last bits of these sums are noise.
    slack = best_error - bound + 1e-12 * (sum(lowest) + price * budget)
    open_options = [np.flatnonzero(c - low <= slack).tolist() for c, low in zip(costs, lowest, strict=True)]
    size, error, lift = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    fixed_size, fixed_error, fixed_lift, unsettled = 0, 0.0, 0.0, []
    for i, found in enumerate(open_options):
        if len(found) == 1:
            option = items[i][found[0]]
            fixed_size, fixed_error = fixed_size + option.bytes, fixed_error + option.error
            fixed_lift += float(costs[i][found[0]]) - lowest[i]
        else:
            unsettled.append(i)
    size, error, lift = size + fixed_size, error + fixed_error, lift + fixed_lift
    smallest = [min(items[i][j].bytes for j in open_options[i]) for i in unsettled]
    room, whole, parents = sum(smallest), True, []
    for i, least in zip(unsettled, smallest, strict=True):
        room -= least
        found = open_options[i]
        options = np.array([items[i][j].bytes for j in found]), np.array([items[i][j].error for j in found])
        sizes = (size[:, None] + options[0]).ravel()
        errors = (error[:, None] + options[1]).ravel()
        lifts = (lift[:, None] + (costs[i][found] - lowest[i])).ravel()
        fits = np.flatnonzero((sizes + room <= budget) & (lifts <= slack))
        keep = _undominated(sizes[fits], errors[fits])
        if len(keep) > MOST_STATES:
            nearest = np.argsort(lifts[fits][keep], kind="stable")[:MOST_STATES]
            keep, whole = keep[np.sort(nearest)], False
        chosen = fits[keep]
        parents.append((chosen // len(found), np.array(found)[chosen % len(found)]))
        size, error, lift = sizes[chosen], errors[chosen], lifts[chosen]
    result = list(taken)
    if len(error):
        at = int(np.lexsort((size, error))[0])
        if error[at] < best_error or whole:
            result = [found[0] for found in open_options]
            for i, (previous, option) in zip(unsettled[::-1], parents[::-1], strict=True):
                result[i], at = int(option[at]), int(previous[at])
    total = sum(o[t].error for o, t in zip(items, result, strict=True))
    used = sum(o[t].bytes for o, t in zip(items, result, strict=True))
    return Choice(tuple(result), used, total, total if whole else min(bound, total))


def _undominated(size: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the indices, by size, of what nothing as small beats in error."""
    order = np.lexsort((error, size))
    best = np.minimum.accumulate(error[order])
    first = np.ones(len(order), bool)
    first[1:] = best[1:] < best[:-1]
    return order[first]
