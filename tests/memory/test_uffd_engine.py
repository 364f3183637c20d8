"""What the userfaultfd engine alone relies on."""

from __future__ import annotations

import ctypes
import errno
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from memvm.errors import HostError
from memvm.linux.userfaultfd import Userfaultfd
from memvm.memory import uffd_engine
from memvm.memory.dirty import DirtyWatch
from memvm.memory.pages import PageRun
from memvm.memory.traces import Access
from memvm.memory.uffd_engine import UserfaultfdEngine
from tests.memory.sources import FakeSource
from tests.memory.touching import FIRST, Touching


@pytest.mark.parametrize("size", [0, 1, 8, 4096, 65536])
def test_the_contents_of_bytes_are_where_the_engine_takes_them_to_be(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    address_of = ctypes.pythonapi.PyBytes_AsString
    address_of.argtypes, address_of.restype = (ctypes.py_object,), ctypes.c_void_p
    address = id(data) + uffd_engine._BYTES_HEADER
    assert address == address_of(data)
    assert ctypes.string_at(address, size) == data


def test_where_pages_cannot_be_revealed_write_protected_it_is_done_in_two_steps(
    toucher: Path, monkeypatch: pytest.MonkeyPatch, time_scale: float
) -> None:
    """Kernels before Linux 6.4."""
    reveal = Userfaultfd.continue_with

    def of_old(uffd: Userfaultfd, start: int, size: int, *, protected: bool = False, wake: bool = True) -> int:
        if protected:
            raise OSError(errno.EINVAL, "no such mode")
        return reveal(uffd, start, size, wake=wake)

    monkeypatch.setattr(Userfaultfd, "continue_with", of_old)
    with _touching(toucher, time_scale) as guest:
        guest.start()
        guest.fill(0, 1, count=8)
        with guest.machine.traces.add([PageRun(FIRST, 8)], Access.READ | Access.WRITE) as trace:
            for page in range(4):
                assert guest.read(page) == 1
            for page in range(8):
                guest.fill(page, 2)
            assert trace.ring is not None
            heard = [(event.page - FIRST, event.access) for event in trace.ring.take()[0]]
        assert heard == [(page, 1) for page in range(4)] + [(page, 2) for page in range(8)]


def test_memory_is_not_taken_from_who_is_just_letting_go_of_it(
    toucher: Path, monkeypatch: pytest.MonkeyPatch, time_scale: float
) -> None:
    """The kernel refuses memory that another userfaultfd still has."""
    with _touching(toucher, time_scale) as guest:
        deferred = guest.defer(FakeSource(range(FIRST, FIRST + 8)))
        guest.start()
        watches: list[DirtyWatch] = []
        watching = _Thread(lambda: watches.append(guest.machine.dirty.watch()))
        unregister = Userfaultfd.unregister

        def slowly(uffd: Userfaultfd, start: int, size: int) -> None:
            monkeypatch.undo()
            watching.start()
            watching.join(_A_WHILE)
            unregister(uffd, start, size)

        monkeypatch.setattr(Userfaultfd, "unregister", slowly)
        deferred.finish()
        watching.succeed(time_scale)
        guest.fill(3, 1)
        assert FIRST + 3 in [run.first for run in watches[0].look().written]


def test_looks_and_ends_of_guards_do_not_wait_for_each_other(
    toucher: Path, monkeypatch: pytest.MonkeyPatch, time_scale: float
) -> None:
    with _touching(toucher, time_scale) as guest:
        guest.start()
        with guest.machine.traces.add([PageRun(FIRST, 8)], Access.WRITE) as trace:
            watch = guest.machine.dirty.watch()
            snapshot = guest.snapshot()
            trace.close()
            looking = _Thread(watch.look)
            lift = UserfaultfdEngine._unguard_everywhere

            def slowly(engine: UserfaultfdEngine) -> None:
                monkeypatch.undo()
                looking.start()
                looking.join(_A_WHILE)
                lift(engine)

            monkeypatch.setattr(UserfaultfdEngine, "_unguard_everywhere", slowly)
            ending = _Thread(snapshot.end)
            ending.start()
            ending.succeed(time_scale)
            looking.succeed(time_scale)
            guest.machine.dirty.settle()
            guest.wait_for(lambda: watch.means == "noted by the kernel")
            watch.close()


_A_WHILE = 0.2
"""Seconds in which the other thread comes to where it has to wait."""


class _Thread(threading.Thread):
    """Runs something beside the test."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._run_it, self._failure = run, queue.SimpleQueue[BaseException]()

    def run(self) -> None:
        try:
            self._run_it()
        except BaseException as error:  # noqa: BLE001  # raised in `succeed`
            self._failure.put(error)

    def succeed(self, time_scale: float) -> None:
        """It has to end soon, and well."""
        self.join(20 * time_scale)
        assert not self.is_alive(), "it waits for ever"
        if not self._failure.empty():
            raise self._failure.get()


def _touching(toucher: Path, time_scale: float) -> Touching:
    try:
        return Touching(toucher, "userfaultfd", 20 * time_scale)
    except HostError as error:
        pytest.skip(str(error))
