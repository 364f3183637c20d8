"""Nobody waits for a manager that does not answer."""

from __future__ import annotations

import threading
import time

import pytest

from memvm.errors import ControlError, GuestStateError, NoSuchGuest
from memvm.machine.config import GuestStatus
from memvm.manager.rundir import Entry
from memvm.manager.watch import Sighting, Watcher
from tests.manager.fakes import FakeGuest


class Managers:
    """Managers that answer, or do not."""

    def __init__(self) -> None:
        self.entries = [Entry("a", 1, "./a", 0.0), Entry("b", 2, "./b", 0.0)]
        self.hanging: set[str] = set()
        self.failing: dict[str, Exception] = {}
        self.released = threading.Event()
        self.faults = 0

    def ask(self, entry: Entry) -> GuestStatus:
        if entry.name in self.hanging:
            self.released.wait(60)
        if entry.name in self.failing:
            raise self.failing[entry.name]
        self.faults += 1
        return FakeGuest(("sleep",), entry.name).status()._replace(faults=self.faults)


@pytest.fixture
def managers() -> Managers:
    return Managers()


@pytest.fixture
def watcher(managers: Managers) -> Watcher:
    """Its looks last until all have answered, so its time is for a manager that never does."""
    return Watcher(lambda: managers.entries, managers.ask, look_time=60)


def faults(sighting: Sighting) -> tuple[int | None, int | None]:
    return tuple(  # type: ignore[return-value]  # there are two
        None if answer is None else answer.status.faults for answer in (sighting.before, sighting.latest)
    )


def test_two_looks_have_two_answers(watcher: Watcher) -> None:
    assert [(seen.entry.name, seen.answering, seen.before) for seen in watcher.look()] == [
        ("a", True, None),
        ("b", True, None),
    ]
    for seen in watcher.look():
        before, latest = faults(seen)
        assert before is not None and latest is not None and latest > before


def test_a_guest_that_ended_is_not_seen(watcher: Watcher, managers: Managers) -> None:
    watcher.look()
    managers.failing["a"] = NoSuchGuest("it ended")
    managers.failing["b"] = GuestStateError("it ends")
    assert watcher.look() == []
    managers.entries = []
    assert watcher.look() == []


def test_a_manager_that_hangs_stalls_nobody(watcher: Watcher, managers: Managers, time_scale: float) -> None:
    watcher.look()
    watcher._look_time = 0.2
    managers.hanging.add("a")
    before = threading.active_count()
    answered = managers.faults
    deadline = time.monotonic() + 20 * time_scale
    while managers.faults < answered + 3:  # the other one answers look after look; how many that takes is its matter
        hanging, other = watcher.look()
        assert (hanging.entry.name, hanging.answering) == ("a", False)
        assert hanging.latest is not None
        assert time.monotonic() < deadline
    while not other.answering:
        hanging, other = watcher.look()
        assert not hanging.answering
        assert time.monotonic() < deadline
    while threading.active_count() > before + 1:  # it is asked once; who has answered may still be ending
        assert time.monotonic() < deadline
        time.sleep(0.01)
    managers.hanging.clear()
    managers.released.set()
    while not watcher.look()[0].answering:
        assert time.monotonic() < deadline


def test_a_manager_that_talks_nonsense_does_not_answer(watcher: Watcher, managers: Managers) -> None:
    managers.failing["a"] = ControlError("nonsense")
    assert [seen.answering for seen in watcher.look()] == [False, True]


def test_a_guest_restarted_under_its_name_is_another(watcher: Watcher, managers: Managers) -> None:
    watcher.look()
    managers.entries = [Entry("a", 9, "./a", 1.0)]
    (seen,) = watcher.look()
    assert seen.before is None


def test_what_nobody_foresaw_is_raised(watcher: Watcher, managers: Managers) -> None:
    managers.failing["a"] = ZeroDivisionError("by zero")
    with pytest.raises(ZeroDivisionError):
        watcher.look()
