"""The life of a manager: take a name, load the guest, serve it, wait for its end, leave nothing behind.

The main thread only waits. What it waits for comes through one pipe: the guest's end (from a thread that
waits for that), signals, and, by the clock, the time limit. While the guest is still being loaded a
signal is an exception in the main thread instead, so that a long eager restore ends at once.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from memvm.errors import HostError, MemvmError, TimeLimitExceeded
from memvm.linux.libc import keep_freed_memory
from memvm.linux.own_threads import Thread
from memvm.machine.config import ExitStatus
from memvm.manager.guest import ManagedGuest, Progress
from memvm.manager.ready import ReadyPipe
from memvm.manager.rundir import RunDir
from memvm.manager.server import ControlServer
from memvm.units import MIB, format_duration

G = TypeVar("G", bound=ManagedGuest)
G_contra = TypeVar("G_contra", bound=ManagedGuest, contravariant=True)

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DYING = 10.0
"""Seconds that a killed guest has to end in."""
_LONGEST_POLL = 86400.0
"""Seconds; poll(2) takes milliseconds that fit an int."""
_GC_THRESHOLD = 100_000
_SWITCH_INTERVAL = 0.0005
_KEPT_FREED = 4 * MIB


class SaveGuest(Protocol[G_contra]):
    """Saves a guest to a file, and returns a frozen dataclass that tells of it."""

    def __call__(
        self,
        guest: G_contra,
        path: Path,
        /,
        *,
        live: bool,
        parent: Path | None,
        level: int,
        block_size: int,
        progress: Progress,
    ) -> Any: ...


class SuspendGuest(Protocol[G_contra]):
    """Saves a guest to a file and ends it; returns a frozen dataclass that tells of it."""

    def __call__(
        self,
        guest: G_contra,
        path: Path,
        /,
        *,
        level: int,
        block_size: int,
        time: float,
        data: int | None,
        progress: Progress,
    ) -> Any: ...


class _Interrupted(BaseException):
    """A signal came while the guest was being loaded."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def run(
    name: str | None,
    program: str,
    load: Callable[[str], G],
    save: SaveGuest[G],
    suspend: SuspendGuest[G],
    ready: ReadyPipe,
    directory: Path | None = None,
) -> ExitStatus:
    """Run one guest to its end, in the main thread of this process.

    `load` makes the guest, not yet started, under the name that it gets; `program` is what it is, for
    people. SIGINT, SIGTERM and SIGHUP (where they are not ignored) reach a guest that handles, ignores or blocks
    them, and end any other, as does the time limit among the guest's settings, counted from its start; the status then
    has the exit code that is usual for it (130, 143, 129; 124) and says so in its reason. `directory`
    is another run-time directory than that of all guests. Raises what `load` raises, and HostError, UsageError or
    GuestStateError about the name and the run-time directory.
    """
    with ExitStack() as cleanup:
        signals = cleanup.enter_context(_Signals())
        entries = cleanup.enter_context(RunDir(directory))
        reservation = entries.reserve(name, program)
        cleanup.callback(reservation.release)
        server = ControlServer(reservation.listener, reservation.name, program)
        # Undone last to first: the files go before the connections end, so that a client that saw its
        # connection end can have the name at once.
        cleanup.callback(server.close)
        cleanup.callback(reservation.release)
        ending = ExitStatus(MemvmError.exit_code, reason="the guest could not be started")
        server.start()
        share_out_resources()
        try:
            guest = signals.raised_during(partial(load, reservation.name))
            cleanup.callback(guest.close)
            server.attach(guest, partial(save, guest), partial(suspend, guest))
            settle_down()
            guest.start()
            ready.started(reservation.name)
            ending = _outlive(guest, signals)
        except _Interrupted as interruption:
            ending = _ended_by(interruption.number)
        finally:
            server.finish(ending)  # before guest.close: no request may meet a closed guest
    ready.ended(ending)
    return ending


def share_out_resources() -> None:
    """Have threads wait little for each other, and for the kernel.

    One that answers faults, or loads pages while the machine is being made, waits for the interpreter lock at most one
    switch interval, 5 ms by default. Saving and loading work through pieces of a megabyte, for which malloc need not go
    to the kernel each time.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    keep_freed_memory(_KEPT_FREED)


def settle_down() -> None:
    """Keep Python's collector out of the fault path: what was made so far lives as long as the guest."""
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 100)


def _outlive(guest: ManagedGuest, signals: _Signals) -> ExitStatus:
    """Wait for the guest's end, or bring it about. Signals that the guest does not die of are its own business."""
    began = time.monotonic()
    end = _End(guest, signals.wake)
    guest.settings.changed = signals.wake
    while True:
        limit = guest.settings.time_limit
        left = None if limit is None else max(0.0, began + limit - time.monotonic())
        number = signals.wait(left)
        if (ending := end.ending()) is not None:
            return ending
        if number is not None and not guest.take_signal(number):
            return _put_to_death(guest, end, signals, _ended_by(number))
        limit = guest.settings.time_limit
        if limit is not None and time.monotonic() >= began + limit:
            break
    reason = f"the guest ran longer than its time limit of {format_duration(limit)}, and was ended"
    return _put_to_death(guest, end, signals, ExitStatus(TimeLimitExceeded.exit_code, reason=reason))


def _put_to_death(guest: ManagedGuest, end: _End, signals: _Signals, ending: ExitStatus) -> ExitStatus:
    guest.kill(ending.reason)
    deadline = time.monotonic() + _DYING
    while end.ending() is None:
        # Another signal changes nothing: the guest is being ended already.
        if signals.wait(deadline - time.monotonic()) is None and time.monotonic() >= deadline:
            raise HostError(f"the guest did not end within {_DYING:.0f} s of being killed")
    return ending


class _End:
    """The guest's end, awaited in a thread of its own; `wake` is called when it has come."""

    def __init__(self, guest: ManagedGuest, wake: Callable[[], None]) -> None:
        self._guest = guest
        self._wake = wake
        self._result: ExitStatus | MemvmError | None = None
        Thread(target=self._wait, name="guest's end", daemon=True).start()

    def ending(self) -> ExitStatus | None:
        """How the guest ended; None as long as it runs. Raises what made waiting for it fail."""
        if isinstance(self._result, MemvmError):
            raise self._result
        return self._result

    def _wait(self) -> None:
        result: ExitStatus | MemvmError = MemvmError("the thread that waits for the guest's end has failed")
        try:
            result = self._guest.wait() or result
        except MemvmError as error:
            result = error
        finally:
            self._result = result
            self._wake()  # whatever happened: the main thread waits for nothing else


def _ended_by(number: signal.Signals) -> ExitStatus:
    return ExitStatus(128 + number, signal=int(number), reason=f"the guest was ended by {number.name}")


class _Signals:
    """The signals that end a manager: bytes in a pipe or, while something is loaded, exceptions.

    The kernel may deliver a signal to any thread; after SIGSTOP and SIGCONT it often is not the main one.
    Python then notes it, and runs the handler when the main thread next does something, which it does not
    while it waits for a lock. So it waits for the pipe into which Python writes each signal's number at
    once, from whichever thread (signal.set_wakeup_fd).

    A signal that was ignored when we came (nohup, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._raise = False
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_fd = -1
        self._waking = threading.Lock()

    def __enter__(self) -> _Signals:
        self._previous_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        with self._waking:
            os.close(self._writing)
            self._writing = -1
        os.close(self._reading)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._raise:
            raise _Interrupted(signal.Signals(number))

    def wake(self) -> None:
        """End the wait, from any thread."""
        with self._waking, suppress(BlockingIOError):  # full: then it is awake
            if self._writing >= 0:
                os.write(self._writing, b"\0")

    def wait(self, timeout: float | None) -> signal.Signals | None:
        """Wait at most `timeout` seconds for a signal or for wake(); the signal, None if there was none."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        while True:
            left = None if deadline is None else max(0.0, min(deadline - time.monotonic(), _LONGEST_POLL))
            if not poll.poll(None if left is None else left * 1000):
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                continue
            numbers = os.read(self._reading, 4096)
            for number in ENDING_SIGNALS:
                if number in numbers and number in self._previous:
                    return number
            if 0 in numbers:
                return None
            # Some other signal that has a handler: it is none of ours.

    def raised_during(self, work: Callable[[], G]) -> G:
        """Do the work; a signal ends it with _Interrupted, one that came before it too.

        In the instant after the work is done the guest that it made may be lost that way. This process is
        about to end then, and the guest ends with it (PTRACE_O_EXITKILL).
        """
        self._raise = True
        try:
            if (earlier := self.wait(0)) is not None:
                raise _Interrupted(earlier)
            return work()
        finally:
            self._raise = False
