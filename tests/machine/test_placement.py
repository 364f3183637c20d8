"""A guest shares one CPU with who answers it, and moves when somebody else takes that CPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memvm
from memvm.machine.placement import Placement, _time_waited

needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs: there is nowhere to move to on one"
)
_SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def _threads_by_cpu(guest: memvm.Guest) -> set[frozenset[int]]:
    """The CPUs that the guest and the manager's threads which answer it may run on."""
    status = guest.status()
    tasks = [int(task.name) for task in Path(f"/proc/{status.manager_pid}/task").iterdir()]
    allowed = {frozenset(os.sched_getaffinity(status.guest_pid))}
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):  # a thread that served one request and ended
            allowed.add(frozenset(os.sched_getaffinity(task)))
    return {cpus for cpus in allowed if len(cpus) == 1}


@needs_two_cpus
@pytest.mark.parametrize("cpu", sorted(os.sched_getaffinity(0))[:2])
def test_stays_on_the_cpu_that_was_asked_for(cpu: int, guests: dict[str, Path]) -> None:
    with memvm.Guest([guests["counter"], "5", "0"], cpu=cpu, stdout=subprocess.DEVNULL) as guest:
        assert _threads_by_cpu(guest) == {frozenset({cpu})}


def test_elsewhere_is_where_the_guest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {3, 5, 6})
    assert Placement(5).elsewhere() == {3, 6}
    placement = Placement(None)
    assert placement.elsewhere() == {3, 5, 6} - {placement.cpu}
    placement.spread(0)
    assert placement.elsewhere() == {3, 5, 6}, "it runs on any"
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {4})
    assert Placement(4).elsewhere() == Placement(None).elsewhere() == set()


@needs_two_cpus
@pytest.mark.parametrize("busy", [True, False])
def test_work_that_can_wait_leaves_a_busy_guest_its_cpu(busy: bool, time_scale: float) -> None:
    allowed = os.sched_getaffinity(0)
    placement = Placement(min(allowed))
    assert placement.spare() == allowed, "there is no guest yet"
    command = [sys.executable, "-c", _SPIN, str(min(allowed))] if busy else ["sleep", "60"]
    with subprocess.Popen(command) as guest:
        try:
            placement.watch(guest.pid)
            expected = allowed - {min(allowed)} if busy else allowed
            deadline = time.monotonic() + 20 * time_scale
            while (found := placement.spare()) != expected and time.monotonic() < deadline:
                time.sleep(0.01)
            assert found == expected
        finally:
            guest.kill()
            placement.stop()


@pytest.mark.parametrize(
    ("waited", "idle_elsewhere", "moves"),
    [(0.5, 0.9, True), (0.5, 0.3, False), (0.1, 0.9, False)],
    ids=["taken, and room elsewhere", "all are taken", "nothing is wrong"],
)
@needs_two_cpus
def test_moves_where_that_helps(waited: float, idle_elsewhere: float, moves: bool) -> None:
    placement = Placement(None)
    here = placement.cpu
    assert here is not None
    there = next(cpu for cpu in sorted(os.sched_getaffinity(0)) if cpu != here)
    with subprocess.Popen(["sleep", "60"]) as thread:
        try:
            placement.join(thread.pid)
            assert os.sched_getaffinity(thread.pid) == {here}
            placement.consider(waited, {here: 0.0, there: idle_elsewhere})
            assert os.sched_getaffinity(thread.pid) == {there if moves else here}
        finally:
            thread.kill()


@pytest.mark.parametrize("cpu", [-1, 100_000])
def test_a_cpu_that_there_is_not_is_a_mistake(cpu: int, guests: dict[str, Path]) -> None:
    with pytest.raises(memvm.UsageError, match=f"CPU {cpu} is none that memvm may run on"):
        memvm.Guest([guests["counter"], "5", "0"], cpu=cpu)


@needs_two_cpus
def test_stays_for_good_where_it_was_told_to() -> None:
    placement = Placement(min(os.sched_getaffinity(0)))
    placement.watch(os.getpid())
    assert placement._watcher is None


def test_sees_that_a_process_waits_for_its_cpu(time_scale: float) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    with contextlib.ExitStack() as stack:
        hogs = [stack.enter_context(subprocess.Popen([sys.executable, "-c", _SPIN, cpu])) for _ in range(2)]
        try:
            deadline = time.monotonic() + 30 * time_scale
            while not all((_time_waited(hog.pid) or 0) > 0.05 for hog in hogs):
                assert time.monotonic() < deadline, "two processes on one CPU, and neither waits"
                time.sleep(0.01)
        finally:
            for hog in hogs:
                hog.kill()


def test_a_process_that_has_gone_waits_for_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert _time_waited(process.pid) is None
