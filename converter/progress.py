"""Telling a person how far a conversion is."""

from typing import Protocol


class Progress(Protocol):
    """Called from the pipeline's writer as layers are finished."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Begin: so many bytes of input there are, and so many an interrupted run had done."""

    def advance(self, name: str, nbytes: int) -> None:
        """Count a tensor that is written: a layer by its name, or "" for one that is only carried over."""

    def stop(self) -> None:
        """End: no more will come, because all is done or because it failed."""


class Silent:
    """No progress at all."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Do nothing."""

    def advance(self, name: str, nbytes: int) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""
