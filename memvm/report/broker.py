"""A key broker's log, as people read it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from memvm.report.table import printable, table


def log_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each exchange that ended."""
    rows = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"])),
            entry["what"],
            printable(entry["disk"]),
            printable(entry.get("reason") or f"{entry['program']}, instance {entry['instance']}"),
        ]
        for entry in entries
    ]
    return table(("WHEN", "WHAT", "DISK", "WHY, OR TO WHOM"), rows)
