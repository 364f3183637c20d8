"""Each access is in one cell, whatever is left out; and a survey counts what there is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.errors import UsageError
from memvm.memory.events import Access, TraceEvent
from memvm.recording.heatmap import HeatMap, heat_map, row_runs
from memvm.recording.reader import Recording
from memvm.recording.survey import Survey, survey
from memvm.units import PAGE_SIZE
from tests.recording.samples import BASE, EVENTS, HEADER, event, record

ALL = Access.READ | Access.WRITE


def mapped(events: list[TraceEvent], columns: int = 10, rows: int = 10, access: Access = ALL) -> HeatMap:
    with tempfile.TemporaryDirectory() as directory, Recording.open(record(Path(directory) / "a", events)) as recording:
        return heat_map(recording, columns, rows, access)


def test_a_survey(tmp_path: Path) -> None:
    with Recording.open(record(tmp_path / "a")) as recording:
        assert survey(recording) == Survey(
            events=4,
            dropped=0,
            reads=3,
            writes=2,
            first_time=EVENTS[0].time,
            last_time=EVENTS[-1].time,
            page_events={5: 2, 6: 1, 1023: 1},
            finished=True,
            flaw="",
        )


def test_cells() -> None:
    heat = mapped([event(0, 1, 1.0), event(1, 2, 1.9), event(1, 2, 1.95), event(3, 3, 2.0)], columns=2, rows=2)
    assert [(row.address, row.pages, row.counts) for row in heat.rows] == [
        (BASE, 2, (1, 2)),
        (BASE + 2 * PAGE_SIZE, 2, (0, 1)),
    ]
    assert (heat.peak, heat.columns, heat.row_pages, heat.start_seconds) == (2, 2, 2, 1.0)
    assert heat.column_seconds == pytest.approx(0.5)
    assert [row.region for row in heat.rows] == ["image", "image"]


def test_only_reads_or_only_writes() -> None:
    events = [event(0, 1, 1.0), event(0, 2, 2.0), event(0, 3, 3.0)]
    assert mapped(events, columns=3, access=Access.READ).rows[0].counts == (1, 0, 1)
    assert mapped(events, columns=3, access=Access.WRITE).rows[0].counts == (0, 1, 1)


def test_wide_gaps_are_left_out() -> None:
    heat = mapped([event(page, 1, page / 1000) for page in (*range(10), *range(1000, 1010))], rows=10)
    assert [(row.pages, row.gap_below) for row in heat.rows] == [(2, number == 5) for number in range(10)]


def test_one_event_and_none() -> None:
    assert mapped([event(7, 2, 0.5)]).rows[0].counts == (1, *[0] * 9)
    heat = mapped([])
    assert (heat.rows, heat.columns, heat.peak) == ((), 0, 0)


@pytest.mark.parametrize(("columns", "rows"), [(0, 5), (5, 0), (2001, 5), (5, -1)])
def test_impossible_shapes(columns: int, rows: int) -> None:
    with pytest.raises(UsageError, match="no heat map has"):
        mapped([], columns, rows)


@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(1, 50))
def test_rows_cover_every_page_once(pages: set[int], rows: int) -> None:
    runs = row_runs(pages, rows)
    assert len(runs) <= rows
    covered = [page for run in runs for page in range(run.first, run.end)]
    assert covered == sorted(set(covered)) and pages <= set(covered)
    assert len(covered) <= max(pages) - min(pages) + 1


@given(
    st.lists(st.tuples(st.integers(0, HEADER.ram_pages - 1), st.integers(1, 3), st.integers(0, 10**10))),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_each_access_is_in_one_cell(accesses: list[tuple[int, int, int]], columns: int, rows: int) -> None:
    events = [TraceEvent(page, how, 1, time, 0) for page, how, time in accesses]
    heat = mapped(events, columns, rows)
    assert sum(sum(row.counts) for row in heat.rows) == heat.events == len(events)
    assert all(len(row.counts) == columns for row in heat.rows)
