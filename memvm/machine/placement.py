"""Keeps a guest and the threads that answer it together on one CPU, and moves them when that CPU is taken.

A fault or a hypercall is a rendezvous. Within one CPU it costs about 10 µs, across two about 50, whatever the
language. So all of them share one CPU, and the rest of the manager stays where the scheduler puts it. The price of
pinning is that the scheduler cannot help when somebody else works on that CPU: a guest that waits for its CPU for much
of the time, while another CPU is idle, is moved there. Once a guest has had several threads, nothing is pinned.

Work of the manager's that can wait, such as a save, leaves that CPU alone while the guest keeps it busy.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from memvm.errors import UsageError
from memvm.linux.own_threads import Thread

_INTERVAL = 0.5
"""Seconds between looks."""
_WAITED_TOO_MUCH = 0.2
_IDLE_ENOUGH = 0.6
"""Shares of the interval: the guest's time spent waiting for its CPU, and another CPU's idle time."""
_BUSY = 0.5
"""The share of time that a guest runs, or would if it could, from which on its CPU is left to it."""
_SHORTEST = 0.04
"""Seconds over which that share is measured, at least."""


class Placement:
    """The CPU of one guest; None where there is only one, or where the threads may not be pinned."""

    def __init__(self, cpu: int | None) -> None:
        """`cpu` is where to stay for good; None chooses one, and moves when it is taken. Raises UsageError."""
        allowed = sorted(os.sched_getaffinity(0))
        if cpu is not None and cpu not in allowed:
            raise UsageError(f"CPU {cpu} is none that memvm may run on", hint=f"one of {', '.join(map(str, allowed))}")
        self.allowed = set(allowed)
        """The CPUs that there are for the manager and the guest."""
        self._movable = cpu is None and len(allowed) > 1
        self.cpu = allowed[os.getpid() % len(allowed)] if self._movable else cpu
        self._threads: list[int] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None
        self._load: _Load | None = None

    def join(self, thread: int = 0) -> None:
        """Bring a thread (by its kernel id; the calling one if 0) to the guest's CPU, now and after each move."""
        with self._lock:
            self._threads.append(thread or threading.get_native_id())
            self._settle()

    def _settle(self) -> None:
        if self.cpu is None:
            return
        for thread in self._threads:
            with contextlib.suppress(OSError):  # it has ended, or a cpuset changed: it runs on elsewhere
                os.sched_setaffinity(thread, {self.cpu})

    def spread(self, thread: int) -> None:
        """From now on let all run on any CPU, this one too: the guest has several threads, to run at the same time."""
        with self._lock:
            if self._movable:
                new = [thread] if self.cpu is None else [thread, *self._threads]
                self.cpu = None
                for one in new:
                    with contextlib.suppress(OSError):  # as above
                        os.sched_setaffinity(one, self.allowed)

    def watch(self, guest: int) -> None:
        """Begin to look after the guest, whose process this is."""
        self._load = _Load(guest)
        if self._movable:
            self._watcher = Thread(target=self._watch, args=(guest,), name="placement", daemon=True)
            self._watcher.start()

    def _watch(self, guest: int) -> None:
        waited, idle = _time_waited(guest), _idle_times()
        while not self._over.wait(_INTERVAL):
            waited_now, idle_now = _time_waited(guest), _idle_times()
            if waited_now is None or waited is None:
                return
            spare = {cpu: (idle_now[cpu] - idle.get(cpu, 0.0)) / _INTERVAL for cpu in idle_now}
            self.consider((waited_now - waited) / _INTERVAL, spare)
            waited, idle = waited_now, idle_now

    def consider(self, waited: float, spare: dict[int, float]) -> None:
        """Move if that helps, from a thread that may run anywhere.

        `waited` is the share of time that the guest has waited for its CPU, `spare` each CPU's share of idle time.
        """
        best = max(os.sched_getaffinity(0) & spare.keys(), key=spare.__getitem__, default=None)
        if best is None or best == self.cpu or self.cpu is None:
            return
        if waited > _WAITED_TOO_MUCH and spare[best] > _IDLE_ENOUGH:
            with self._lock:
                self.cpu = best
                self._settle()

    def spare(self) -> set[int]:
        """The CPUs for work that can wait: without the guest's, if it keeps that busy. For one thread at a time."""
        busy = self._load is not None and self._load.share() > _BUSY
        cpu = self.cpu
        return self.allowed - {cpu} if busy and cpu is not None and len(self.allowed) > 1 else self.allowed

    def elsewhere(self) -> set[int]:
        """The CPUs for work beside the guest: all but its own, or all if it runs on any; none if there is only one."""
        return self.allowed - {self.cpu} if len(self.allowed) > 1 else set()

    def stop(self) -> None:
        """Look after the guest no more."""
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()


class _Load:
    """How much of a CPU a process wants: the time that it runs, and that it waits for its CPU."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._when, self._time, self._share = time.monotonic(), self._wanted(), 0.0

    def share(self) -> float:
        """The share of time since the last call, or the one before if that was just now."""
        now = time.monotonic()
        if now - self._when >= _SHORTEST:
            wanted = self._wanted()
            self._share = (wanted - self._time) / (now - self._when)
            self._when, self._time = now, wanted
        return self._share

    def _wanted(self) -> float:
        try:
            ran, waited = _contents(f"/proc/{self._process}/schedstat").split()[:2]
            return (int(ran) + int(waited)) / 1e9
        except (OSError, ValueError):  # it has gone
            return 0.0


def _time_waited(process: int) -> float | None:
    """Seconds that a process has waited for a CPU (the second field of /proc/PID/schedstat); None if it has gone."""
    try:
        return int(_contents(f"/proc/{process}/schedstat").split()[1]) / 1e9
    except (OSError, IndexError):
        return None


def _idle_times() -> dict[int, float]:
    """Seconds that each CPU was idle (proc(5), /proc/stat, the fourth column)."""
    tick = os.sysconf("SC_CLK_TCK")
    lines = _contents("/proc/stat").splitlines()
    return {
        int(fields[0][3:]): int(fields[4]) / tick
        for fields in map(bytes.split, lines)
        if fields and fields[0].startswith(b"cpu") and fields[0] != b"cpu"
    }


def _contents(path: str) -> bytes:
    # Twice a second in every manager: bare, it needs half the time of Path.read_text, and touches less memory.
    with open(path, "rb", buffering=0) as file:
        return file.readall()
