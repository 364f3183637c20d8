"""What traces tell: events, and the ring that holds them until somebody takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntFlag
from typing import NamedTuple


class Access(IntFlag):
    """What a trace waits for, and what an event says."""

    READ = 1
    WRITE = 2


class TraceEvent(NamedTuple):
    """One access to one page."""

    page: int
    access: int
    """Access.READ or Access.WRITE, as a plain integer."""
    vcpu: int
    """The guest's thread, by its kernel id; 0 for the manager, in a hypercall, and in events of a polled trace."""
    time: int
    """Nanoseconds of the host's CLOCK_MONOTONIC; of a polled trace, when somebody looked."""
    instruction: int
    """The guest's instruction pointer; 0 where the trace did not ask for it, or nobody knows."""


Handler = Callable[[list[TraceEvent]], None]
"""Hears of the events of one access: more than one only if the trace takes pages around it along."""


class Ring:
    """The last events of a trace: when it is full, the oldest give way and are counted."""

    def __init__(self, room: int) -> None:
        self._events: deque[TraceEvent] = deque(maxlen=room)
        self._lock = threading.Lock()
        self._dropped = 0

    def put(self, events: list[TraceEvent]) -> None:
        """Add events; a handler."""
        with self._lock:
            room = self._events.maxlen or 0
            self._dropped += max(0, len(self._events) + len(events) - room)
            self._events.extend(events)

    def take(self) -> tuple[list[TraceEvent], int]:
        """The events since the last call, oldest first, and how many were dropped before them."""
        with self._lock:
            events, dropped = list(self._events), self._dropped
            self._events.clear()
            self._dropped = 0
        return events, dropped
