"""Patterns on names: Python's regular expressions, matched in time that grows with the name alone.

``re`` tries one way after the other, and a pattern such as ``(a+)+b`` has more ways through a name of sixty
letters than can be tried in a lifetime. Here all ways are followed at once (Thompson 1968), so neither a
typing error nor a pattern out of somebody's file can hang a run. The syntax is that of ``re``, whose parser
reads it; what cannot be followed so (backreferences, atomic groups, flags inside groups) is refused.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    from re import _parser as _re  # type: ignore[attr-defined]
else:
    import sre_parse as _re

MAX_REPEATED = 2_000
"""States that counted repeats (``a{1,500}``) may take: each is looked at for every character."""

_MAX_STATES = 100_000
_MAX_MOVES = 50_000
_FLAGS = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE | re.ASCII

Test = Callable[[str], bool]


class PatternError(ValueError):
    """A pattern that is none, or one that is not matched here; the text says why."""


class Pattern:
    """A compiled pattern. PatternError, with the place of the fault, for one that is none."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        tree = _parsed(pattern)
        if tree.state.flags & ~_FLAGS:
            raise PatternError("this flag is not taken here; leave it out")
        self._automaton = _Automaton(tree, tree.state.flags)

    def search(self, name: str) -> bool:
        """Tell whether the pattern fits somewhere in `name`, as ``re.search`` does."""
        return self._automaton.run(name, 0, anywhere=True)

    def fullmatch(self, name: str) -> bool:
        """Tell whether the pattern fits the whole of `name`, as ``re.fullmatch`` does."""
        return self._automaton.run(name, 0, whole=True)


def _parsed(pattern: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _re.parse(pattern)
    except re.error as e:
        at = f" at character {e.pos + 1}" if e.pos is not None else ""
        raise PatternError(f"not a regular expression: {e.msg}{at}") from e
    except (RecursionError, OverflowError, MemoryError) as e:
        raise PatternError("not a regular expression: too deep or too large") from e


_FIRST, _LAST, _FINAL_NEWLINE, _EDGE = 1, 2, 4, 8
"""What a position in a name may be: at its begin, at its end, before a last newline, beside a word."""

_ANCHORS: dict[str, Callable[[int], bool]] = {
    "AT_BEGINNING": lambda here: bool(here & _FIRST),
    "AT_BEGINNING_STRING": lambda here: bool(here & _FIRST),
    "AT_END": lambda here: bool(here & (_LAST | _FINAL_NEWLINE)),
    "AT_END_STRING": lambda here: bool(here & _LAST),
    "AT_BOUNDARY": lambda here: bool(here & _EDGE),
    "AT_NON_BOUNDARY": lambda here: not here & _EDGE,
}

_CATEGORIES: dict[str, Test] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": lambda c: not c.isdecimal(),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda c: not c.isspace(),
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
    "CATEGORY_NOT_WORD": lambda c: not (c.isalnum() or c == "_"),
}


class _Look(NamedTuple):
    """A lookahead or lookbehind: what is to fit (or not) at a position. width: of a lookbehind, else -1."""

    automaton: _Automaton
    wanted: bool
    width: int

    def holds(self, name: str, at: int) -> bool:
        if self.width < 0:
            return self.automaton.run(name, at) == self.wanted
        if at < self.width:
            return not self.wanted
        return self.automaton.run(name[:at], at - self.width, whole=True) == self.wanted


class _Automaton:
    """States as parallel lists: a character's test and where it leads, or free moves under a condition."""

    def __init__(self, tree: Iterable[Any], flags: int):
        self._flags = flags
        self._tests: list[Test | None] = [None]
        self._next: list[int] = [-1]
        self._free: list[list[tuple[Any, int]]] = [[]]
        self._edges = False
        self._looked = False
        self._start = self._sequence(tree, 0)  # state 0 accepts
        self._moves: tuple[dict[Any, tuple[bool, frozenset[int]]], ...] = ({}, {})

    def run(self, name: str, at: int, anywhere: bool = False, whole: bool = False) -> bool:
        """Tell whether a match begins at `at` (or, `anywhere`, later) and, if `whole`, ends with the name."""
        current = frozenset((self._start,))
        moves, edges, final = self._moves[anywhere], self._edges, len(name) - 1
        for i in range(at, len(name)):
            char = name[i]
            here = _here(name, i) if edges or i == 0 or i == final else 0
            found = moves.get((current, char, here)) or self._move(current, char, here, name, i, anywhere)
            accepted, current = found
            if accepted and not whole:
                return True
            if not current:
                return False
        return self._move(current, "", _here(name, len(name)), name, len(name), anywhere)[0]

    def _move(
        self, states: frozenset[int], char: str, here: int, name: str, at: int, anywhere: bool
    ) -> tuple[bool, frozenset[int]]:
        """Return whether a match has ended before the character at `at`, and the states after it.

        What did not depend on a lookahead or lookbehind is kept: names are alike.
        """
        self._looked = False
        reached, waiting = set(states), list(states)
        while waiting:
            for condition, target in self._free[waiting.pop()]:
                if target not in reached and (condition is None or self._holds(condition, here, name, at)):
                    reached.add(target)
                    waiting.append(target)
        after = {self._start} if anywhere else set()
        for state in reached if char else ():
            test = self._tests[state]
            if test is not None and test(char):
                after.add(self._next[state])
        found = 0 in reached, frozenset(after)
        if not self._looked:
            moves = self._moves[anywhere]
            if len(moves) >= _MAX_MOVES:
                moves.clear()
            moves[states, char, here] = found
        return found

    def _holds(self, condition: Any, here: int, name: str, at: int) -> bool:
        if isinstance(condition, _Look):
            self._looked = True
            return condition.holds(name, at)
        return bool(condition(here))

    def _sequence(self, items: Iterable[Any], to: int) -> int:
        for op, argument in reversed(list(items)):
            to = self._item(str(op), argument, to)
        return to

    def _item(self, op: str, argument: Any, to: int) -> int:
        if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._add(_test(op, argument, self._flags), to)
        if op == "BRANCH":
            return self._split([self._sequence(way, to) for way in argument[1]])
        if op == "SUBPATTERN":
            _, added, removed, inner = argument
            if added or removed:
                raise PatternError("flags inside a group, as in (?i:...), are not taken here")
            return self._sequence(inner, to)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = argument
            return self._repeat(least, most, inner, to)
        if op == "AT":
            self._edges |= "BOUNDARY" in str(argument)
            return self._split([to], _ANCHORS[str(argument)])
        if op in ("ASSERT", "ASSERT_NOT"):
            direction, inner = argument
            width = inner.getwidth()[0] if direction < 0 else -1
            return self._split([to], _Look(_Automaton(inner, self._flags), op == "ASSERT", width))
        raise PatternError(f"{op.lower().replace('_', ' ')} is not taken here; write the pattern without it")

    def _repeat(self, least: int, most: Any, inner: Any, to: int) -> int:
        endless = most is _re.MAXREPEAT
        if max(least, 0 if endless else int(most)) > MAX_REPEATED:
            raise PatternError(f"a repeat of more than {MAX_REPEATED} is too large")
        before, end = len(self._tests), to
        if endless:
            to = self._split([end])
            self._free[to].append((None, self._sequence(inner, to)))
        else:
            for _ in range(int(most) - least):
                to = self._split([self._sequence(inner, to), end])
                self._require_small(before)
        for _ in range(least):
            to = self._sequence(inner, to)
            self._require_small(before)
        return to

    def _require_small(self, before: int) -> None:
        if len(self._tests) - before > MAX_REPEATED:
            raise PatternError(f"its counted repeats come to more than {MAX_REPEATED} characters")

    def _split(self, ways: list[int], condition: Any = None) -> int:
        """Add a state with free moves to `ways`."""
        state = self._add(None, -1)
        self._free[state] = [(condition, way) for way in ways]
        return state

    def _add(self, test: Test | None, to: int) -> int:
        if len(self._tests) >= _MAX_STATES:
            raise PatternError(f"it is longer than {_MAX_STATES} characters")
        self._tests.append(test)
        self._next.append(to)
        self._free.append([])
        return len(self._tests) - 1


def _here(name: str, at: int) -> int:
    last = at == len(name)
    before, after = at > 0 and _is_word(name[at - 1]), not last and _is_word(name[at])
    newline = at == len(name) - 1 and name[at] == "\n"
    return (at == 0) * _FIRST + last * _LAST + newline * _FINAL_NEWLINE + (before != after) * _EDGE


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _test(op: str, argument: Any, flags: int) -> Test:
    """Return the test of one character."""
    if op == "ANY":
        return (lambda c: True) if flags & re.DOTALL else (lambda c: c != "\n")
    if op == "IN":
        negated = bool(argument) and str(argument[0][0]) == "NEGATE"
        parts = [_part(str(kind), value) for kind, value in argument[negated:]]
    else:
        negated, parts = op == "NOT_LITERAL", [_part("LITERAL", argument)]
    if flags & re.IGNORECASE:
        return lambda c: any(p(form) for p in parts for form in (c, c.lower(), c.upper())) != negated
    if len(parts) == 1 and not negated:
        return parts[0]
    return lambda c: any(p(c) for p in parts) != negated


def _part(kind: str, value: Any) -> Test:
    if kind == "LITERAL":
        wanted = chr(value)
        return lambda c: c == wanted
    if kind == "RANGE":
        low, high = value
        return lambda c: low <= ord(c) <= high
    return _CATEGORIES[str(value)]
