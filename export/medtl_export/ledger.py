"""What a search has measured, on the disk: an interrupted search goes on where it stopped.

It also makes exports repeatable. Times differ from run to run, and the search follows them; with
the same ledger it arrives at the same file, byte by byte.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medtl_runtime.errors import OutputNotWritten
from medtl_runtime.files import write_text

FOLDER = "export"


class Ledger:
    """A JSON file of measurements by name."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, or begin one; None keeps everything in memory.

        A file that is damaged counts as none.
        """
        self._path = path
        self._entries: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                entries = None
            self._entries = entries if isinstance(entries, dict) else {}

    @property
    def found(self) -> int:
        """How many measurements it holds."""
        return len(self._entries)

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a measurement, as JSON values: the one that is written, or a new one."""
        if name not in self._entries:
            # As it would be read again, so that it makes no difference which it was.
            self._entries[name] = json.loads(json.dumps(measure()))
            if self._path is not None:
                text = json.dumps(self._entries, indent=1)
                try:
                    write_text(self._path, text + "\n")
                except OutputNotWritten:
                    self._path = None  # a run that cannot be written to is exported all the same
        return self._entries[name]


def ledger_for(run: Path, facts: Mapping[str, Any]) -> Ledger:
    """Return the ledger of a run's search; it is another one where any of the facts differs."""
    text = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Ledger(run / FOLDER / f"search-{digest}.json")
