"""Work shared out among threads: each piece is done once, and whatever goes wrong is heard of by who asked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memvm.checkpoint.workers import share_out


def fetch_from(pieces: Iterator[int]) -> Callable[[], int | None]:
    return lambda: next(pieces, None)


def test_each_piece_is_done_once_by_as_many_threads_as_there_are_cpus() -> None:
    done: list[int] = []
    began: list[int] = []
    cpus = len(os.sched_getaffinity(0))
    together = threading.Barrier(cpus)

    def begin() -> Callable[[int], None]:
        together.wait(20)  # none has all the work done before the others are there
        began.append(threading.get_ident())
        return done.append

    share_out(fetch_from(iter(range(1000))), begin, lambda: None, name="test")
    assert sorted(done) == list(range(1000))
    assert len(set(began)) == cpus


def test_who_watches_looks_at_first_and_at_last() -> None:
    """Also if all is done before the first look is over."""
    done: list[int] = []
    seen: list[int] = []

    def watch() -> None:
        seen.append(len(done))
        for thread in threading.enumerate():
            if thread.name == "test":
                thread.join()

    share_out(fetch_from(iter(range(10))), lambda: done.append, watch, name="test")
    assert len(seen) == 2
    assert seen[-1] == 10


@pytest.mark.parametrize(("niceness", "bound"), [(0, False), (3, False), (3, True)])
def test_threads_work_at_the_priority_and_on_the_cpus_that_were_asked_for(niceness: int, bound: bool) -> None:
    seen: list[tuple[int, set[int]]] = []
    allowed = os.sched_getaffinity(0)
    together = threading.Barrier(len(allowed))

    def look(_piece: int) -> None:
        together.wait(20)  # each thread has one piece
        seen.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getaffinity(0)))

    def share_out_from_one_cpu() -> None:
        os.sched_setaffinity(0, {min(allowed)})
        pieces = iter(range(len(allowed)))
        share_out(fetch_from(pieces), lambda: look, lambda: None, name="test", niceness=niceness, bound=bound)

    caller = threading.Thread(target=share_out_from_one_cpu)
    caller.start()
    caller.join()
    assert {priority for priority, _ in seen} == {os.getpriority(os.PRIO_PROCESS, 0) + niceness}
    cpus = [{cpu} for cpu in sorted(allowed)] if bound else [allowed] * len(allowed)
    assert sorted((cpus for _, cpus in seen), key=min) == cpus


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_threads_go_where_there_is_room_just_now(time_scale: float) -> None:
    allowed = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    deadline = time.monotonic() + 20 * time_scale

    def spare() -> set[int]:
        return {max(allowed)} if seen else {min(allowed)}

    def fetch() -> bool | None:
        moved = bool(seen) and seen[-1] == {max(allowed)}
        assert time.monotonic() < deadline, "the threads did not move"
        return None if moved else True

    def look(_piece: bool) -> None:
        seen.append(os.sched_getaffinity(0))
        time.sleep(0.001)

    share_out(fetch, lambda: look, lambda: None, name="test", spare=spare)
    assert {frozenset(cpus) for cpus in seen} == {frozenset({min(allowed)}), frozenset({max(allowed)})}


@pytest.mark.parametrize("where", ["fetch", "begin", "do", "watch"])
def test_an_error_anywhere_ends_the_work_and_is_raised(where: str) -> None:
    pieces = iter(range(1 << 60))

    def fail(place: str) -> None:
        if place == where:
            raise RuntimeError(place)

    def fetch() -> int:
        fail("fetch")
        return next(pieces)

    def begin() -> Callable[[int], None]:
        fail("begin")
        return lambda piece: fail("do")

    with pytest.raises(RuntimeError, match=where):
        share_out(fetch, begin, lambda: fail("watch"), name="test")
