"""Work shared out among as many threads as there are CPUs.

Threads fetch their work themselves, each a piece at a time. A pool that is fed through a queue costs a wake-up of
another thread for every piece, which for pieces of a megabyte is a third of the time that the work itself takes.

Threads of low priority still take a busy guest's time: they are let in whenever it waits for an answer, and stay until
they leave the kernel, which for the copy of a megabyte is a while. So who shares work out can say, again and again, on
which CPUs the threads may run just now.

Threads can be bound to a CPU each. Those of low priority count for so little that the scheduler leaves two of them on
one CPU beside an idle one, for as long as one of them wakes the other every now and then: with a guest that sleeps most
of the time, background loading took a quarter longer. But the CPU that the guest has is then never without one of them,
and those that hold locks which the guest's faults wait for must not wait for the guest: savers are not bound.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from memvm.linux.own_threads import Thread

W = TypeVar("W")

_WATCH_INTERVAL = 0.05
"""Seconds between two looks at how far the work is."""


def share_out(
    fetch: Callable[[], W | None],
    begin: Callable[[], Callable[[W], None]],
    watch: Callable[[], None],
    *,
    name: str,
    niceness: int = 0,
    bound: bool = False,
    spare: Callable[[], set[int]] | None = None,
) -> None:
    """Let one thread a CPU do the pieces of work that `fetch` gives, until it gives None to each of them.

    `fetch` is called by one thread at a time. `begin` is called once in each thread, and returns what does a piece
    there. `watch` is called by the caller's thread, at first, then twenty times a second, and at last. What any of them
    raises ends the work, and is raised here once all threads have ended. `niceness` lowers the threads' priority;
    `bound` threads have a CPU each. `spare`, which is asked as often as `watch`, tells where threads that are not bound
    may run from their next piece on.
    """
    # The main thread's: one inherits those of the thread that starts it, which may be the tracer, bound to one CPU.
    cpus = os.sched_getaffinity(os.getpid())
    allowed = cpus if spare is None else spare()
    fetching = threading.Lock()
    failures: list[BaseException] = []

    def work(cpu: int) -> None:
        try:
            here = {cpu} if bound else allowed
            os.sched_setaffinity(0, here)
            os.nice(niceness)  # this thread, on Linux
            do = begin()
            while not failures:
                with fetching:
                    piece = fetch()
                if piece is None:
                    return
                if not bound and allowed != here:
                    here = allowed
                    os.sched_setaffinity(0, here)
                do(piece)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(error)

    def look() -> None:
        nonlocal allowed
        watch()
        if spare is not None:
            allowed = spare()

    threads = [Thread(target=work, args=(cpu,), name=name) for cpu in cpus]
    try:
        for thread in threads:
            thread.start()
        look()
        for thread in threads:
            thread.join(_WATCH_INTERVAL)
            while thread.is_alive():
                look()
                thread.join(_WATCH_INTERVAL)
        look()
    except BaseException as error:
        failures.append(error)
        raise
    finally:
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
