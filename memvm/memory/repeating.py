"""Things that are to be done again and again, each at its own interval, on one thread that starts with the first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from memvm.linux.own_threads import Thread
from memvm.memory.engine import GuestGone

T = TypeVar("T")


class Repeating(Generic[T]):
    """Does one function for each thing that was added, until the guest has gone or `stop`."""

    def __init__(self, function: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        """`function` may raise GuestGone: then nothing is done any more. `failed` hears of anything else."""
        self._function, self._failed = function, failed
        self._due: dict[T, float] = {}
        self._interval: dict[T, float] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._over = False

    def add(self, thing: T, interval: float) -> None:
        """Do it for this every `interval` seconds from now on."""
        with self._changed:
            self._interval[thing] = interval
            self._due[thing] = time.monotonic() + interval
            if self._thread is None:
                self._thread = Thread(target=self._run, name="repeating", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, thing: T) -> None:
        """Not for this any more; the function may be at it once more, now."""
        with self._changed:
            self._due.pop(thing, None)
            self._interval.pop(thing, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._over and not (due := self._take_due()):
                    self._changed.wait(self._until_next())
                if self._over:
                    return
            try:
                for thing in due:
                    self._function(thing)
            except GuestGone:
                return
            except BaseException as error:  # noqa: BLE001  # the manager ends the guest and reports it
                self._failed(error)
                return

    def _take_due(self) -> list[T]:
        now = time.monotonic()
        due = [thing for thing, when in self._due.items() if when <= now]
        for thing in due:
            self._due[thing] = now + self._interval[thing]
        return due

    def _until_next(self) -> float | None:
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
