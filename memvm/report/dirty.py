"""What a guest wrote in each interval, as `memvm dirty` shows it: a line an interval."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from memvm.report.table import table
from memvm.units import PAGE_SIZE, format_duration, format_size

if TYPE_CHECKING:
    from memvm.manager.dirty import DirtyLook

_WIDTHS = (10, 11, 9, 13, 11)
_HEADINGS = ("INTERVAL", "WRITTEN", "PAGES", "RATE", "PUNCHED")


def dirty_heading() -> str:
    """The line above the others."""
    return _columns(_HEADINGS, "SEEN BY")


def dirty_line(look: DirtyLook) -> str:
    """One interval."""
    return _columns(
        (
            format_duration(look.seconds),
            format_size(look.bytes_written),
            f"{look.pages_written:,}",
            f"{format_size(look.rate)}/s",
            format_size(look.pages_punched * PAGE_SIZE),
        ),
        look.means,
    )


def _columns(cells: tuple[str, ...], last: str) -> str:
    # Lines are printed one by one, so the columns are as wide as they may have to be.
    aligned = [cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)]
    return "  ".join([*aligned, last])


def pages_text(look: DirtyLook) -> str:
    """Which pages: a line for each run of neighbours, with its guest addresses."""
    from memvm.machine.layout import RAM_BASE

    rows = [
        (what, f"{RAM_BASE + first * PAGE_SIZE:#x}", f"{RAM_BASE + (first + count) * PAGE_SIZE:#x}", f"{count:,}")
        for what, runs in (("written", look.written), ("punched", look.punched))
        for first, count in runs
    ]
    return table(("", "FROM", "TO", "PAGES"), rows, right=("FROM", "TO", "PAGES")) if rows else ""


def dirty_json(look: DirtyLook, *, pages: bool) -> str:
    """One line of JSON; sizes in bytes, runs as [first page, count]."""
    fields: dict[str, object] = {
        "seconds": look.seconds,
        "bytes_written": look.bytes_written,
        "pages_written": look.pages_written,
        "pages_punched": look.pages_punched,
        "bytes_per_second": look.rate,
        "means": look.means,
    }
    if pages:
        fields |= {"written": look.written, "punched": look.punched}
    return json.dumps(fields)
