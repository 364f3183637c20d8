"""Address against time: how often each part of guest RAM was accessed in each span of time.

Guest RAM is mostly empty: a program sits at its bottom, a stack at its top. So the rows of a heat map cover what was
accessed, in equal steps, and leave wide gaps out; a row that comes behind a gap says so.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter

from memvm.errors import UsageError
from memvm.memory.events import Access
from memvm.memory.pages import PageRun, runs_of
from memvm.recording.format import NamedRegion
from memvm.recording.reader import Recording
from memvm.recording.survey import survey
from memvm.units import PAGE_SIZE

MAX_COLUMNS, MAX_ROWS = 2000, 2000
_ROWS_A_GAP = 5
"""One gap is left out for so many rows at most: a map of gaps shows nothing."""


@dataclass(frozen=True)
class HeatRow:
    """A row: `pages` pages of guest RAM from guest address `address`."""

    address: int
    pages: int
    region: str
    """What most of it is for; empty if that is not known."""
    gap_below: bool
    """Pages that nobody accessed are left out between the row before, which is at lower addresses, and this one."""
    counts: tuple[int, ...]
    """Accesses in each column."""


@dataclass(frozen=True)
class HeatMap:
    """A recording as rows of addresses, ascending, and columns of time; times in seconds."""

    name: str
    """The guest's."""
    access: Access
    """The accesses that are counted."""
    events: int
    """How many there are."""
    reads: int
    writes: int
    pages: int
    """Pages that were accessed."""
    dropped: int
    """Events that are known to have been lost."""
    flaw: str
    """Why the recording could not be read to its end; empty if it could."""
    start_seconds: float
    """When the first column begins, since the recording began."""
    column_seconds: float
    """What a column covers."""
    row_pages: int
    """What a row covers; one before a gap may cover less."""
    rows: tuple[HeatRow, ...]

    @property
    def peak(self) -> int:
        """The highest count of all."""
        return max((max(row.counts) for row in self.rows), default=0)

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return len(self.rows[0].counts) if self.rows else 0


def heat_map(recording: Recording, columns: int, rows: int, access: Access = Access.READ | Access.WRITE) -> HeatMap:
    """The heat map of a recording, with so many columns and not more than so many rows. Raises UsageError."""
    if not (1 <= columns <= MAX_COLUMNS and 1 <= rows <= MAX_ROWS):
        raise UsageError(f"no heat map has {columns} columns and {rows} rows", hint=f"1 to {MAX_COLUMNS} of each")
    found = survey(recording)
    header = recording.header
    layout = row_runs(found.page_events, rows)
    firsts = [run.first for run in layout]
    span = max(1, found.last_time - found.first_time + 1)
    counts = [array("Q", bytes(8 * columns)) for _ in layout]
    wanted = int(access)
    events = 0
    for block in recording.blocks():
        for page, how, time in zip(block.pages, block.accesses, block.times, strict=True):
            # a file that still grows may have more by now
            if how & wanted and found.first_time <= time <= found.last_time and page in found.page_events:
                counts[bisect_right(firsts, page) - 1][(time - found.first_time) * columns // span] += 1
                events += 1
    regions = sorted(recording.regions, key=attrgetter("start"))
    return HeatMap(
        header.name,
        access,
        events,
        found.reads,
        found.writes,
        len(found.page_events),
        found.dropped,
        found.flaw,
        (found.first_time - header.started) / 1e9,
        span / columns / 1e9,
        max((run.count for run in layout), default=0),
        tuple(
            HeatRow(
                header.ram_base + run.first * PAGE_SIZE,
                run.count,
                _region_of(header.ram_base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, regions),
                number > 0 and layout[number - 1].end < run.first,
                tuple(counts[number]),
            )
            for number, run in enumerate(layout)
        ),
    )


def row_runs(pages: Collection[int], rows: int) -> list[PageRun]:
    """The pages of each row, ascending: all of these pages, in equal steps, without the widest gaps."""
    if not pages:
        return []
    spans = _spans(runs_of(sorted(pages)), rows)
    covered = sum(span.count for span in spans)
    step = -(-covered // rows)
    # each span may end with a row that is not full
    while sum(-(-span.count // step) for span in spans) > rows:
        step += 1
    return [
        PageRun(first, min(step, span.end - first)) for span in spans for first in range(span.first, span.end, step)
    ]


def _spans(runs: Sequence[PageRun], rows: int) -> list[PageRun]:
    """The runs with all gaps filled but those that are wide for this many rows."""
    covered = runs[-1].end - runs[0].first
    gaps = sorted(((runs[i + 1].first - runs[i].end, i) for i in range(len(runs) - 1)), reverse=True)
    left_out = set()
    for width, place in gaps[: rows // _ROWS_A_GAP]:
        if width <= 2 * covered / rows:
            break
        left_out.add(place)
        covered -= width
    spans = []
    first = runs[0].first
    for place, run in enumerate(runs):
        if place in left_out or run is runs[-1]:
            spans.append(PageRun(first, run.end - first))
            first = runs[place + 1].first if run is not runs[-1] else 0
    return spans


def _region_of(start: int, size: int, regions: Sequence[NamedRegion]) -> str:
    """The name of the region that covers most of a range."""
    best, name = 0, ""
    for region in regions:
        common = min(start + size, region.end) - max(start, region.start)
        if common > best:
            best, name = common, region.name
    return name
