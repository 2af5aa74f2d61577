"""The progress bar of the command lines."""

from .text import plain

_LABEL = 40


class Bar:
    """A bar on stderr with the layer, MB/s of input and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.fields[layer]}", justify="left", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", layer=" " * _LABEL, total=None)

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Show the bar."""
        self._bar.update(self._task, total=total_bytes, completed=done_bytes)
        self._bar.start()

    def advance(self, name: str, nbytes: int) -> None:
        """Move the bar, and name the layer that was written."""
        if name:
            self._bar.update(self._task, layer=f"{plain(name)[-_LABEL:]:{_LABEL}}")
        self._bar.advance(self._task, nbytes)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()
