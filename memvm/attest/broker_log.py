"""What a broker gave to whom, and what it refused: a file of JSON lines, written before anybody is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from memvm.attest.ledger import cut_torn_line
from memvm.errors import HostError


class BrokerLog:
    """One such file. A line that is not complete, because the machine went down, was never believed: it is cut off."""

    def __init__(self, path: Path) -> None:
        """Raises HostError if it cannot be read."""
        self.entries: list[dict[str, Any]] = []
        """What it says so far, the oldest first."""
        try:
            path.touch(mode=0o600)
            cut_torn_line(path)
            with path.open("rb") as file:
                self.entries = [json.loads(line) for line in file]
            self._file = path.open("ab", buffering=0)
        except (OSError, ValueError) as error:
            raise HostError(
                f"{path}: the broker's log cannot be read: {error}",
                hint="bring it back from a backup; without it, a broker forgets who has a key",
            ) from None

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line, so that it is there also after a crash. Raises OSError."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """No more is added."""
        self._file.close()
