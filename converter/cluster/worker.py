"""What runs on the machines of a cluster: a function for all pieces of work, and what it tells meanwhile."""

from __future__ import annotations

import platform
import time
import traceback
from dataclasses import dataclass
from typing import Any

import torch

from ...files.memory import return_freed_buffers
from ...version import VERSION
from ..executor import Reached
from ..failures import in_words
from .parcel import Parcel

_EVERY = 0.5
"""Seconds between two messages on how far a piece of work is."""


@dataclass(frozen=True)
class Failure:
    """An exception, for a person, and where it came from, for a report of a fault."""

    words: str
    trace: str


def versions() -> tuple[str, str]:
    """Return the versions of this package and of torch: with others, results would be others."""
    return VERSION, torch.__version__


def perform(parcel: Parcel, threads: int, theirs: tuple[str, str], board: Any = None, key: int = 0) -> Parcel:
    """Do a piece of work, a parcel of (function, arguments); return its result, or a Failure, in a parcel.

    threads: of torch, the same as where the work came from: sums are then added up in the same order.
    theirs: the `versions` there. board: an actor that is told under `key` how far the work is, None for work
    that does not say it.
    """
    if theirs != versions():  # of a machine that joined the cluster during the run
        return Parcel.of(Failure(other_versions(platform.node(), versions(), theirs), ""))
    return_freed_buffers()
    torch.set_num_threads(threads)
    try:
        function, args = parcel.opened()
        watched = () if board is None else (Reporter(board, key),)
        return Parcel.of(function(*args, *watched))
    except Exception as e:
        return Parcel.of(Failure(in_words(e), traceback.format_exc()))


def other_versions(machine: str, there: tuple[str, str], here: tuple[str, str]) -> str:
    """Say that a machine of the cluster cannot be used."""
    return (
        f"{machine}: this machine of the Ray cluster has convert_to_quant {there[0]} with torch {there[1]}, "
        f"and this process {here[0]} with torch {here[1]}: the results would differ"
    )


class Reporter:
    """A Progress that sends to a board, now and then, how far a piece of work is."""

    def __init__(self, board: Any, key: int) -> None:
        self._board, self._key = board, key
        self._total, self._reached, self._sent = 1, 0, 0.0

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Begin, or begin another part of the work."""
        self._total, self._reached = max(1, total_bytes), done_bytes
        self._send("")

    def advance(self, name: str, nbytes: int) -> None:
        """Count a tensor; most of them are told of together."""
        self._reached += nbytes
        if time.monotonic() - self._sent >= _EVERY:
            self._send(name)

    def stop(self) -> None:
        """Do nothing: the result tells the end."""

    def _send(self, name: str) -> None:
        self._sent = time.monotonic()
        self._board.put.remote(self._key, Reached(min(1.0, self._reached / self._total), name))


class Board:
    """The actor that keeps the last message of each piece of work."""

    def __init__(self) -> None:
        self._reached: dict[int, Reached] = {}

    def put(self, key: int, reached: Reached) -> None:
        """Take a message."""
        self._reached[key] = reached

    def read(self) -> dict[int, Reached]:
        """Return the messages since the last call."""
        found, self._reached = self._reached, {}
        return found
