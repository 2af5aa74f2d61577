"""Telling a person how far a conversion is."""

from typing import Protocol


class Progress(Protocol):
    """Called from the pipeline's writer as layers are finished."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """The bytes of input there are, and those an interrupted run had done."""

    def advance(self, name: str, nbytes: int) -> None:
        """A tensor is written: a layer by its name, or "" for one that is only carried over."""

    def stop(self) -> None:
        """No more will come."""


class Silent:
    """No progress at all."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Nothing."""

    def advance(self, name: str, nbytes: int) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
