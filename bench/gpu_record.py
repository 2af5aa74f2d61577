"""The record of a session on a card: what is measured, within its time, and never twice."""

import json
import time
from collections.abc import Callable
from pathlib import Path


class Session:
    """What one command does: its device, its time, and the record that it continues."""

    def __init__(self, out: Path, device: str, budget: float, tiny: bool):
        self.out, self.device, self.tiny = out, device, tiny
        self._stop = time.monotonic() + budget
        out.mkdir(parents=True, exist_ok=True)
        self._record = out / "session.jsonl"
        self._known = {_name(row) for row in self.rows() if "error" not in row}

    def rows(self) -> list[dict]:
        """Return the record's lines; one cut off in the middle is left out."""
        rows = []
        if self._record.exists():
            for line in self._record.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
        return rows

    def left(self) -> float:
        """Return the seconds left to this command."""
        return self._stop - time.monotonic()

    def measure(self, stage: str, what: str, call: Callable[[], dict], seconds: float = 5.0) -> bool:
        """Add the line of one measurement, unless the record has it; False when no time is left for it.

        An error is a line too, and is tried again by the next command.
        """
        head = {"stage": stage, "what": what}
        if _name(head) in self._known:
            return True
        if self.left() < seconds:
            self.say({"stage": stage, "cut": what})
            return False
        begun = time.monotonic()
        try:
            found = call()
        except Exception as error:  # whatever a card has in store: noted, and the next one measured
            found = {"error": f"{type(error).__name__}: {error}"[:400]}
        self.say({**head, **found, "took": round(time.monotonic() - begun, 2)})
        if "error" not in found:
            self._known.add(_name(head))
        return True

    def say(self, row: dict) -> None:
        """Write one line, at once."""
        line = json.dumps(row, default=str)
        with open(self._record, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def _name(row: dict) -> tuple:
    return row.get("stage"), row.get("what")
