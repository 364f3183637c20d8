"""The process that starts the managers of several clones, hands on what they write, and waits for them.

Each manager is forked from it, so that what they have in common is in memory once: the interpreter, the modules, and
what the caller has loaded (the template). A manager is then like any other one, and does not need its parent.

    memvm restore --clones 3      reads the checkpoint, forks, copies lines, waits
     ├─ manager of hub-1 ── guest
     ├─ manager of hub-2 ── guest
     └─ manager of hub-3 ── guest

What a clone is told by fork(2) is seen to here: standard input is /dev/null; its output is a pipe to this process, a
file, or what it was given; none of the parent's signal handlers and pipes remain. Randomness cannot be shared by
accident, since memvm keeps none: whoever needs some asks the kernel (os.urandom).

SIGINT, SIGTERM and SIGHUP are handed on to the managers, which end their guests. If this process dies without a word,
they get SIGTERM from the kernel.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

from memvm.errors import GuestStateError, HostError, UsageError
from memvm.linux.prctl import signal_at_parents_end
from memvm.manager.process import ENDING_SIGNALS
from memvm.manager.relay import LineRelay
from memvm.manager.rundir import RunDir, check_name, stem_for

MAX_CLONES = 256
"""Each costs this process three descriptors, of the usual limit of 1024."""
_STREAMS = (1, 2)


class Clone(NamedTuple):
    """One member of a family."""

    number: int
    name: str
    ready: int | None = None
    """The descriptor for its ready messages (memvm.manager.ready)."""
    stdout: int | None = None
    stderr: int | None = None
    """Descriptors for its output; None copies it to this process's own, a line at a time."""


def names_for(prefix: str | None, program: str, count: int) -> list[str]:
    """PREFIX-1 to PREFIX-count; without a prefix, one that is made from the program's name, and gives free names.

    Raises UsageError for an impossible count or prefix, GuestStateError if one of the names is taken.
    """
    if not 1 <= count <= MAX_CLONES:
        raise UsageError(f"{count} clones at once: it must be 1 to {MAX_CLONES}")
    with RunDir() as directory:
        taken = {entry.name for entry in directory.entries()}
    stem = stem_for(program)
    prefixes = [prefix] if prefix is not None else [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    clashing = ""
    for candidate in prefixes:
        names = [check_name(f"{candidate}-{number}") for number in range(1, count + 1)]
        if taken.isdisjoint(names):
            return names
        clashing = next(name for name in names if name in taken)
    raise GuestStateError(f"a guest called {clashing!r} is running already", hint="choose another --name")


class Family:
    """Some managers, from their start to their end. Make it, and fork, in a process that has one thread only."""

    def __init__(self, clones: Sequence[Clone]) -> None:
        """Takes over the descriptors of the clones."""
        self._clones = clones
        self._pid = os.getpid()
        self._relays = {stream: LineRelay(stream) for stream in _STREAMS}
        self._running: dict[int, int] = {}
        """Managers that have not ended: the pidfd of each, and its process."""
        self._statuses: list[int] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def fork(self) -> Clone | None:
        """Make all the processes. Returns in each of them with the clone that it is to manage, and here with None.

        Raises HostError if there cannot be so many; none is left then.
        """
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        # Blocked until each process has handlers of its own: a clone must not hand signals on to its siblings.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            for number in ENDING_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._hand_on)
            for clone in self._clones:
                if self._fork_one(clone):
                    return clone
        except OSError as error:
            if os.getpid() != self._pid:
                raise
            started = len(self._running)
            self._end()
            raise HostError(
                f"only {started} of {len(self._clones)} managers could be started: {error.strerror}",
                hint="ulimit -u and ulimit -n say how many processes and descriptors there may be",
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._close_given()
        return None

    def _fork_one(self, clone: Clone) -> bool:
        """True in the new process."""
        ends = {}
        for stream, given in zip(_STREAMS, (clone.stdout, clone.stderr), strict=True):
            if given is None:
                reading, ends[stream] = os.pipe2(os.O_CLOEXEC)
                self._relays[stream].add(reading, clone.name)
            else:
                ends[stream] = given
        pid = os.fork()
        if not pid:
            self._become(clone, ends)
            return True
        for stream, given in zip(_STREAMS, (clone.stdout, clone.stderr), strict=True):
            if given is None:
                os.close(ends[stream])
        self._running[os.pidfd_open(pid)] = pid
        return False

    def _become(self, clone: Clone, ends: Mapping[int, int]) -> None:
        """In the new process: keep nothing of the parent's but what belongs to this clone."""
        signal.set_wakeup_fd(-1)
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
        signal_at_parents_end(signal.SIGTERM)
        if os.getppid() != self._pid:
            signal.raise_signal(signal.SIGTERM)  # it has ended already
        for stream, end in ends.items():
            os.dup2(end, stream)
            if end not in (clone.stdout, clone.stderr):
                os.close(end)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.close(nothing)
        for fd in (self._wake, self._wake_end, *self._running):
            os.close(fd)
        for relay in self._relays.values():
            relay.close()
        self._close_given(except_for=clone.ready)

    def _close_given(self, except_for: int | None = None) -> None:
        for clone in self._clones:
            for fd in (clone.ready, clone.stdout, clone.stderr):
                if fd is not None and fd != except_for:
                    os.close(fd)

    def _hand_on(self, number: int, _frame: FrameType | None = None) -> None:
        for pidfd in self._running:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)

    def wait(self) -> int:
        """Copy lines until all managers have ended; the highest of their exit statuses. Raises OSError."""
        try:
            while self._running or any(relay.pipes for relay in self._relays.values()):
                self._step()
        finally:
            self._end()
        return max(self._statuses, default=0)

    def _step(self) -> None:
        poll = select.poll()
        readers = {pipe: relay for relay in self._relays.values() for pipe in relay.pipes}
        for fd in (*readers, *self._running, self._wake):
            poll.register(fd, select.POLLIN)
        for fd, _events in poll.poll():
            if fd in self._running:
                _, status = os.waitpid(self._running.pop(fd), 0)
                os.close(fd)
                code = os.waitstatus_to_exitcode(status)
                self._statuses.append(code if code >= 0 else 128 - code)
            elif fd == self._wake:
                os.read(fd, 4096)  # the handler has been called
            elif fd in readers[fd].pipes:
                readers[fd].ready(fd)

    def _end(self) -> None:
        """Leave no manager and nothing open, whatever has happened."""
        self._hand_on(signal.SIGTERM)
        for pidfd, pid in self._running.items():
            os.waitpid(pid, 0)
            os.close(pidfd)
        self._running.clear()
        for relay in self._relays.values():
            relay.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._wake_end)
