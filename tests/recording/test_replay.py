"""What a policy would have done, on recordings short enough to be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.memory.events import TraceEvent
from memvm.memory.pages import PageRun
from memvm.recording.format import EventBlock
from memvm.recording.policies import BUILT_IN, ActivePage, load_policy
from memvm.recording.replay import CostModel, Cut, Replayed, facts_from, replay
from tests.recording.samples import HEADER, event

CUT = Cut(HEADER.started + 1_000_000_000, 500_000_000)
COSTS = CostModel(fault=0.01, page=0.001)
SAVED = [event(10, 1, 0.1), event(11, 2, 0.2), event(10, 2, 0.3), event(40, 1, 0.4)]
RUN = [event(10, 1, 1.1), event(20, 1, 1.2), event(21, 2, 1.3), event(10, 2, 1.4), event(900, 1, 3.0)]
DATA = [PageRun(0, 32), PageRun(40, 1)]


def tried(name: str, events: Sequence[TraceEvent] = (*SAVED, *RUN)) -> Replayed:
    def blocks() -> list[EventBlock]:
        return [EventBlock.of(events[:3]), EventBlock.of(events[3:])]

    return replay(blocks, CUT, facts_from(blocks, CUT, 1024, DATA), load_policy(name), COSTS)


def test_what_a_policy_knows() -> None:
    def blocks() -> list[EventBlock]:
        return [EventBlock.of([*SAVED, *RUN])]

    facts = facts_from(blocks, CUT, 1024)
    assert list(facts.active) == [ActivePage(10, 3), ActivePage(11, 2), ActivePage(40, 1)]
    assert facts.recorded == [10, 20, 21]
    assert facts.data_runs == [PageRun(10, 2), PageRun(20, 2), PageRun(40, 1), PageRun(900, 1)]
    assert facts_from(blocks, CUT, 1024, DATA, [7]).recorded == [7]


def test_demand_waits_for_every_page_once_and_page_900_has_no_data() -> None:
    found = tried("demand")
    assert (found.demand_faults, found.pages_loaded, found.pages_prefetched) == (3, 3, 0)
    assert (found.precision, found.recall, found.pollution) == (None, 0.0, 0)
    assert (found.start_seconds, found.responsive_seconds) == (0.0, 0.0)
    assert found.stall_seconds == pytest.approx(3 * 0.011)


def test_sequential_brings_what_is_around() -> None:
    found = tried("sequential")
    assert (found.demand_faults, found.pages_loaded, found.pages_prefetched) == (1, 33, 32)
    assert found.precision == pytest.approx(2 / 32)  # pages 20 and 21
    assert found.stall_seconds == pytest.approx(0.01 + 33 * 0.001)


def test_active_brings_what_the_save_saw() -> None:
    found = tried("active")
    assert (found.demand_faults, found.pages_loaded, found.pages_prefetched, found.pollution) == (2, 5, 3, 2)
    assert found.precision == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(1 / 3)
    assert found.start_seconds == pytest.approx(0.003)


def test_recorded_knows_what_comes() -> None:
    found = tried("recorded")
    assert (found.demand_faults, found.precision, found.recall, found.pollution) == (0, 1.0, 1.0, 0)


def test_eager_brings_everything() -> None:
    found = tried("eager")
    assert (found.demand_faults, found.pages_loaded, found.recall) == (0, 33, 1.0)
    assert found.start_seconds == found.stall_seconds == pytest.approx(0.033)


def test_nothing_after_the_cut() -> None:
    found = tried("active", SAVED)
    assert (found.demand_faults, found.recall, found.responsive_seconds) == (0, None, None)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=40), st.sampled_from(sorted(BUILT_IN)))
def test_what_holds_for_every_policy(accesses: list[tuple[int, int]], name: str) -> None:
    events = [event(page, 1, tenth / 10) for page, tenth in sorted(accesses, key=lambda access: access[1])]
    found = tried(name, events)
    data = {page for run in DATA for page in range(run.first, run.end)}
    needed = {seen.page for seen in events if seen.time >= CUT.at} & data
    assert found.pages_loaded == found.demand_faults + found.pages_prefetched
    assert found.demand_faults == round(len(needed) * (1 - (found.recall or 0)))
    assert needed.issubset(data) and len(needed) <= found.pages_loaded <= len(data)
    assert found.stall_seconds >= found.start_seconds
    assert found.demand_faults <= tried("demand", events).demand_faults
