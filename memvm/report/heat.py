"""What every picture of a heat map needs: levels of heat, round marks on its axes, and its words."""

from __future__ import annotations

import math

from memvm.memory.events import Access
from memvm.recording.heatmap import HeatMap
from memvm.report.table import printable
from memvm.units import PAGE_SIZE, format_duration, format_size

_WHAT = {Access.READ: "reads", Access.WRITE: "writes"}


def level_starts(peak: int, levels: int) -> list[int]:
    """The lowest count of each level: 1, then about equal factors up to the peak. Fewer levels if the peak is low."""
    starts = {1, *(math.ceil(peak ** (level / levels)) for level in range(levels))} if peak else set()
    return sorted(start for start in starts if start <= peak)


def level_names(starts: list[int], peak: int) -> list[str]:
    """What each level stands for: "1", "2-9", "10-80"."""
    ends = [start - 1 for start in starts[1:]] + [peak]
    return [f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in zip(starts, ends, strict=True)]


def time_marks(start: float, end: float, most: int) -> list[float]:
    """At most so many round times from start to end, in seconds, in equal steps of 1, 2 or 5 times a power of ten."""
    if end <= start or most < 1:
        return []
    rough = (end - start) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power, 20 * power) if step >= rough)
    first = math.ceil(start / step - 1e-9)
    last = math.floor(end / step + 1e-9)
    return [number * step for number in range(first, last + 1)][:most]


def mark_text(mark: float, step: float) -> str:
    """A time with as many digits as its neighbours need."""
    if step >= 1:
        return f"{mark:.0f} s"
    if step >= 1e-3:
        return f"{mark * 1e3:.0f} ms" if mark < 1 else f"{mark:.{-math.floor(math.log10(step) + 1e-9)}f} s"
    return f"{mark * 1e6:,.0f} µs"


def title(heat: HeatMap) -> str:
    """What the picture is of."""
    return f"{printable(heat.name)}: {_WHAT.get(heat.access, 'accesses')} by address and time"


def facts(heat: HeatMap) -> list[str]:
    """What the recording has, and what it lacks."""
    seconds = heat.column_seconds * heat.columns
    lines = [
        f"{heat.reads:,} reads and {heat.writes:,} writes of {heat.pages:,} pages "
        f"({format_size(heat.pages * PAGE_SIZE)}) in {format_duration(seconds)}"
    ]
    if heat.dropped:
        lines.append(f"{heat.dropped:,} more were lost while it was recorded")
    if heat.flaw:
        lines.append(printable(heat.flaw))
    return lines


def scale(heat: HeatMap) -> str:
    """What a row and a column are."""
    pages = f"{heat.row_pages:,} pages" if heat.row_pages > 1 else "1 page"
    return (
        f"a row is {pages} ({format_size(heat.row_pages * PAGE_SIZE)}), a column {format_duration(heat.column_seconds)}"
    )
