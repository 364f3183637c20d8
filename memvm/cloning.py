"""memvm for Python programs: many guests from one checkpoint, which share the memory that they do not touch.

    with memvm.restore_clones("/tmp/worker.ckpt", 8, stdout=subprocess.PIPE) as clones:
        first = [guest.stdout.readline() for guest in clones]

They are started by one process, `memvm restore --clones`, which reads the checkpoint once and forks their managers.
Each of the clones is a Guest like any other.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import overload

from memvm.api import PROMPTLY, Guest, kill_if_paused
from memvm.errors import HostError, UsageError
from memvm.machine.config import ExitStatus
from memvm.managed import ManagedProcess, Stream
from memvm.manager.launch import News, manager_command
from memvm.options import StrPath, manager_options, view_options

_PATIENCE = 15.0
"""Seconds that all managers get to end their guests in, before they are killed."""


class Clones(Sequence[Guest]):
    """Guests that were started together from one checkpoint, in the order of their numbers. A context manager."""

    def __init__(self, guests: Sequence[Guest], parent: subprocess.Popen[bytes]) -> None:
        self._guests = tuple(guests)
        self._parent = parent

    @overload
    def __getitem__(self, index: int) -> Guest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Guest]: ...
    def __getitem__(self, index: int | slice) -> Guest | Sequence[Guest]:
        return self._guests[index]

    def __len__(self) -> int:
        return len(self._guests)

    def __enter__(self) -> Clones:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout: float | None = None) -> list[ExitStatus]:
        """Wait until all have ended, and tell how each did. Raises TimeoutError after `timeout` seconds in all."""
        deadline = None if timeout is None else time.monotonic() + timeout
        endings = [
            guest.wait(None if deadline is None else max(0.0, deadline - time.monotonic())) for guest in self._guests
        ]
        self._parent.wait()
        return endings

    def close(self) -> None:
        """Kill the guests that still run, and release their streams; idempotent."""
        _end(self._parent, self._guests)
        for guest in self:
            guest.close()


def restore_clones(
    path: StrPath,
    count: int,
    *,
    parents: Sequence[StrPath] = (),
    name: str | None = None,
    ro: Sequence[StrPath] = (),
    rw: Sequence[StrPath] = (),
    pass_through: Sequence[StrPath] = (),
    accept_changed_files: bool = False,
    without_disks: bool = False,
    engine: str = "auto",
    output: StrPath | None = None,
    stdout: Stream = None,
    stderr: Stream = None,
    time_limit: float | None = None,
    strict: bool = False,
    strace: bool = False,
    cpu: int | None = None,
    tpm: bool = False,
) -> Clones:
    """Start `count` guests from one checkpoint; returns when all run.

    They are called `name`-1 and so on. Their standard input is empty. With PIPE, each has a stream of its own. What
    goes elsewhere goes there a line at a time, with the guest's name in front; with `output`, it goes to files in
    that directory, NAME.out and NAME.err. Each has files in memory of its own; `ro`, `rw`, `pass_through` and
    `accept_changed_files` are as for `restore`, and hold for all of them. A guest that had disks is an error, unless
    its clones may go on `without_disks`. The file may be removed then: all of it has been read. The other options are
    as for `restore`. Raises CheckpointError if a file is missing, damaged or does not fit this machine, and HostError,
    UsageError or GuestStateError if one of the clones cannot be started; nothing is left running then.
    """
    if output is not None and subprocess.PIPE in (stdout, stderr):
        raise UsageError("output goes to files or to pipes, not to both", hint="leave one of them away")
    options = manager_options(name, engine, time_limit, strict, strace, cpu, tpm)
    options += [f"--parent={os.fspath(parent)}" for parent in parents]
    options += [*view_options(ro, rw, pass_through), *["--accept-changed-files"] * accept_changed_files]
    options += ["--without-disks"] * without_disks
    options += [f"--output={os.fspath(output)}"] if output is not None else []
    with _Pipes() as pipes:
        pipes.make("ready", count)
        streams = {"stdout": stdout, "stderr": stderr}
        for kind, stream in streams.items():
            if stream == subprocess.PIPE:
                pipes.make(kind, count)
                streams[kind] = None
        words = ["restore", f"--clones={count}", *options, *pipes.options(), "--", os.fspath(path)]
        parent = subprocess.Popen(
            manager_command(words),
            stdin=subprocess.DEVNULL,
            stdout=streams["stdout"],
            stderr=streams["stderr"],
            pass_fds=pipes.passed,
        )
        pipes.close_passed()
        guests: list[Guest] = []
        try:
            for number in range(count):
                guests.append(_adopt(parent, pipes, number))  # noqa: PERF401 - those so far matter if one fails
        except BaseException:
            _end(parent, guests)
            for guest in guests:
                guest.close()
            raise
    return Clones(guests, parent)


def _adopt(parent: subprocess.Popen[bytes], pipes: _Pipes, number: int) -> Guest:
    news = News(pipes.take("ready", number))
    try:
        name, pid = news.read_start()
    except EOFError:
        news.close()
        raise HostError(
            f"the manager of clone {number + 1} ended before the guest ran", hint="standard error says why"
        ) from None
    except BaseException:
        news.close()
        raise
    streams = [os.fdopen(pipes.take(kind, number), "rb") if pipes.has(kind) else None for kind in ("stdout", "stderr")]
    return Guest.adopted(name, ManagedProcess(_Process(pid), news, (None, *streams)))


def _end(parent: subprocess.Popen[bytes], guests: Sequence[Guest]) -> None:
    """End the parent of some clones, and with it the managers that still run."""
    parent.send_signal(signal.SIGTERM)  # to a process that has gone it sends nothing
    with suppress(subprocess.TimeoutExpired):
        parent.wait(PROMPTLY)
        return
    for guest in guests:
        kill_if_paused(guest)
    try:
        parent.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        parent.kill()  # the kernel tells the managers
        parent.wait()


class _Process:
    """A manager that is the child of another process: a subprocess.Popen as far as ManagedProcess needs one."""

    returncode = -signal.SIGKILL
    """Only its parent knows how it ended. This is asked for if it did so without a word."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1

    def poll(self) -> int | None:
        return self.returncode if self._has_ended(0) else None

    def wait(self) -> int:
        self._has_ended(None)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return self.returncode

    def _has_ended(self, timeout: int | None) -> bool:
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout))

    def send_signal(self, sig: int, /) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Pipes:
    """A pipe for each clone, of several kinds; those whose ends nobody has taken are closed in the end."""

    def __init__(self) -> None:
        self._reading: dict[str, list[int]] = {}
        self._writing: dict[str, list[int]] = {}

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close_passed()
        for fd in _open_ones(self._reading):
            os.close(fd)

    def make(self, kind: str, count: int) -> None:
        """Pipes of a kind. Raises OSError."""
        reading, writing = self._reading.setdefault(kind, []), self._writing.setdefault(kind, [])
        for _ in range(count):
            pair = os.pipe2(os.O_CLOEXEC)
            reading.append(pair[0])
            writing.append(pair[1])

    def has(self, kind: str) -> bool:
        return kind in self._reading

    def take(self, kind: str, number: int) -> int:
        """The reading end of one, for the caller to close."""
        fd, self._reading[kind][number] = self._reading[kind][number], -1
        return fd

    @property
    def passed(self) -> list[int]:
        """The writing ends."""
        return list(_open_ones(self._writing))

    def options(self) -> list[str]:
        """How the parent of the clones is told of the writing ends."""
        return [f"--{kind}-fds={','.join(map(str, fds))}" for kind, fds in self._writing.items()]

    def close_passed(self) -> None:
        """Close the writing ends, which are somebody else's now."""
        for fd in _open_ones(self._writing):
            os.close(fd)
        self._writing.clear()


def _open_ones(pipes: dict[str, list[int]]) -> Iterator[int]:
    return (fd for fds in pipes.values() for fd in fds if fd >= 0)
