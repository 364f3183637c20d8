"""What `memvm top` works out, and what it shows, however narrow the terminal is."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memvm.machine.config import GuestStatus, RunState
from memvm.manager.rundir import Entry
from memvm.manager.watch import Answer, Sighting
from memvm.report.guests import ProcessFigures, RunningGuest, guests_text, program_of
from memvm.report.rates import GuestActivity, activity, rate
from memvm.report.top import COLUMNS, ViewState, drawing_of, ordered, pressed, screen, table_lines, text_of

MIB = 1 << 20
ENTRY = Entry("hub", 41, "./server", 0.0)
STATUS = GuestStatus(
    name="hub",
    program="./server",
    state=RunState.RUNNING,
    manager_pid=41,
    guest_pid=42,
    engine="fake",
    ram_size=64 * MIB,
    ram_touched=12 * MIB,
    ram_deferred=4 * MIB,
    cpu_time=1.0,
    uptime=75.0,
    hypercalls=1000,
    unknown_calls={},
    faults=50,
)
LATER = STATUS._replace(
    cpu_time=1.5,
    hypercalls=4000,
    faults=51,
    fault_p50=12e-6,
    fault_p99=0.0015,
    dirty_rate=3 * MIB / 2,
    working_set_size=9 * MIB,
    restored_from="/a.ckpt",
)
SEEN = Sighting(ENTRY, Answer(LATER, 12.0), Answer(STATUS, 10.0), answering=True)
HUB = activity(SEEN)
NEW = activity(Sighting(Entry("new", 7, "x\x1b[2J", 0.0), None, None, answering=False))


def test_figures_of_two_looks() -> None:
    assert (HUB.cpu_ratio, HUB.hypercall_rate, HUB.fault_rate) == (0.25, 1500.0, 0.5)
    assert (HUB.loaded_ratio, HUB.ram_deferred, HUB.state) == (0.75, 4 * MIB, "running")
    assert (HUB.fault_p50, HUB.working_set, HUB.dirty_rate) == (12e-6, 9 * MIB, 1.5 * MIB)


def test_what_a_guest_runs_is_what_its_checkpoint_says() -> None:
    """Its manager was started with the file's name."""
    assert program_of(ENTRY, None) == program_of(ENTRY, STATUS) == "./server"
    restored = STATUS._replace(restored_from="/hub.ckpt")
    assert program_of(ENTRY, restored._replace(program="/usr/bin/sort")) == "sort"
    assert program_of(ENTRY, restored._replace(program="/")) == "./server"
    assert HUB.program == "server"
    moving = RunningGuest("hub", "a\x1b[2J", 41, None, ProcessFigures(None, None), ProcessFigures(None, None))
    assert "\x1b" not in guests_text([moving])


def test_a_first_look_has_no_rates() -> None:
    first = activity(Sighting(ENTRY, Answer(STATUS, 1.0), None, answering=True))
    assert (first.cpu_ratio, first.fault_rate, first.loaded_ratio) == (None, None, None)
    assert first.ram_touched == 12 * MIB


def test_a_manager_that_does_not_answer_keeps_sizes_and_has_no_rates() -> None:
    silent = activity(replace(SEEN, answering=False))
    assert (silent.state, silent.cpu_ratio, silent.fault_rate) == ("no answer", None, None)
    assert silent.ram_touched == 12 * MIB
    assert (NEW.state, NEW.ram_size) == ("no answer", None)


@pytest.mark.parametrize(("seconds", "growth"), [(0.0, 5), (0.001, 5), (1.0, -1), (-1.0, 5)])
def test_no_rate_where_there_is_none(seconds: float, growth: int) -> None:
    later = Answer(STATUS._replace(faults=STATUS.faults + growth), 10.0 + seconds)
    assert rate(Answer(STATUS, 10.0), later, "faults") is None


def test_a_wide_screen() -> None:
    title, headings, hub, new, empty, keys = text_of(screen([HUB, NEW], ViewState(), 160, 24)).split("\n")
    assert title == "memvm top  2 guests, 1 running, by name"
    assert re.split(" {2,}", headings) == [column.heading for column in COLUMNS]
    shown = "hub running 25% 12.0M 64.0M 75% 4.0M 1.5M 9.0M 0.5 12µs 1.5ms 1,500 1m15s server"
    assert hub.split() == shown.split()
    assert new.split() == ["new", "no", "answer", *["-"] * 12, "x\\x1b[2J"]
    assert empty == ""
    assert keys == "q quit  p pause  by: n name c cpu t touched d dirty w workset f faults h hypercalls"


def test_a_narrow_screen_has_what_matters_most() -> None:
    long = replace(HUB, name="a-guest-with-quite-a-long-name")
    assert text_of(screen([long, NEW], ViewState(), 40, 24)).split("\n")[:4] == [
        "memvm top  2 guests, 1 running, by name",
        "NAME             STATE      CPU  TOUCHED",
        "a-guest-with-q~  running    25%    12.0M",
        "new              no answer    -        -",
    ]


@given(
    st.lists(st.sampled_from([HUB, NEW, replace(HUB, name="n" * 64, program="/p" * 40)]), max_size=6),
    st.integers(20, 250),
    st.integers(1, 12),
    st.booleans(),
)
def test_nothing_is_ever_too_wide_or_too_high(
    guests: list[GuestActivity], width: int, height: int, paused: bool
) -> None:
    lines = text_of(screen(guests, ViewState("c", paused), width, height)).split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 6)
    if width >= 40 and guests:
        assert lines[1].split()[:4] == ["NAME", "STATE", "CPU", "TOUCHED"]
    console = Console(file=io.StringIO(), width=width, height=height, record=True, force_terminal=True)
    console.print(drawing_of(screen(guests, ViewState("c", paused), width, height)))
    assert [line.rstrip() for line in console.export_text().splitlines()] == [line.rstrip() for line in lines]


def test_more_guests_than_lines() -> None:
    guests = [replace(HUB, name=f"g{number:02}") for number in range(30)]
    lines = text_of(screen(guests, ViewState(), 80, 10)).split("\n")
    assert (len(lines), lines[-3]) == (10, "and 25 more")


def test_nobody_runs() -> None:
    assert "no guest is running" in text_of(screen([], ViewState(), 80, 24))


def test_the_highest_first_and_the_unknown_last() -> None:
    guests = [NEW, HUB, replace(HUB, name="busy", cpu_ratio=0.9), replace(HUB, name="idle", cpu_ratio=0.0)]
    assert [guest.name for guest in ordered(guests, "c")] == ["busy", "hub", "idle", "new"]
    assert [guest.name for guest in ordered(guests, "n")] == ["busy", "hub", "idle", "new"]
    assert [guest.name for guest in ordered([*guests, replace(HUB, name="a")], "t")][:2] == ["a", "busy"]


def test_keys() -> None:
    state = ViewState()
    assert pressed(state, "q") is None
    assert pressed(state, " ") == pressed(state, "p") == ViewState("n", True)
    assert pressed(ViewState("n", True), "p") == state
    assert pressed(state, "f") == ViewState("f")
    assert pressed(state, "x") == state
    assert "paused" in text_of(screen([HUB], ViewState("n", True), 80, 24))


def test_columns_that_nobody_knows_go_first() -> None:
    unknown = replace(HUB, working_set=None, dirty_rate=None, loaded_ratio=None)
    headings = text_of(table_lines([unknown], 100)).split("\n")[0]
    assert "WORKSET" not in headings and "OF RAM" in headings
