"""The most memory that a part of a process held."""

import re
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Measures from its making on: of a GPU what torch held, else the process's memory where Linux tells."""

    def __init__(self, device: str) -> None:
        self._device = device if device.startswith("cuda") else ""
        self._told = True
        if self._device:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _RESET.write_text("5")  # the peak begins anew; see proc(5)
        except OSError:
            self._told = False

    def bytes(self) -> int | None:
        """Return the peak so far, None where it cannot be known."""
        if self._device:
            return torch.cuda.max_memory_allocated(self._device)
        if not self._told:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return int(found[1]) * 1024 if found else None
