"""Converting inside a node: progress in ComfyUI's bar, and its cancel button."""

from pathlib import Path
from typing import Any


class NodeProgress:
    """A conversion's progress in the bar of the node that runs; stops when the person cancels."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Begin the bar, at what an interrupted run had done."""
        from comfy.utils import ProgressBar

        self._bar, self._done = ProgressBar(total_bytes), done_bytes

    def advance(self, name: str, nbytes: int) -> None:
        """Move the bar; raises ComfyUI's own exception when the person has cancelled."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        self._done += nbytes
        self._bar.update_absolute(self._done)

    def stop(self) -> None:
        """Do nothing: ComfyUI ends the bar with the node."""


def converted(source: Path, target: Path, options: dict[str, Any]) -> str:
    """Convert `source` to `target`; return the report's one line. ConversionError as the converter."""
    from convert_to_quant.converter.convert.run import convert
    from convert_to_quant.converter.options.settings import Settings

    settings = Settings(input_file=str(source), output_file=str(target), **options)
    return convert(settings, NodeProgress()).summary()
