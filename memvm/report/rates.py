"""What a guest does a second, from two looks at its counters."""

from __future__ import annotations

from dataclasses import dataclass

from memvm.machine.config import GuestStatus
from memvm.manager.watch import Answer, Sighting
from memvm.report.guests import program_of

SHORTEST = 0.01
"""Seconds: what lies closer together gives no rate worth showing."""


@dataclass(frozen=True)
class GuestActivity:
    """A guest as `memvm top` shows it; None is what is not known."""

    name: str
    program: str
    manager_pid: int
    state: str
    """A RunState, or "no answer"."""
    uptime: float | None
    """Seconds."""
    cpu_ratio: float | None
    """Seconds of CPU time a second."""
    ram_size: int | None
    ram_touched: int | None
    ram_deferred: int | None
    loaded_ratio: float | None
    """The share of a restored guest's memory that is there; None for one that was not restored."""
    dirty_rate: float | None
    """Bytes a second."""
    working_set: int | None
    """Bytes."""
    fault_rate: float | None
    """Page faults that the manager answered, a second."""
    hypercall_rate: float | None
    """Hypercalls a second."""
    fault_p50: float | None
    """Seconds."""
    fault_p99: float | None


def activity(sighting: Sighting) -> GuestActivity:
    """The figures of a guest; one whose manager does not answer keeps its sizes, and has no rates."""
    latest = sighting.latest
    status = None if latest is None else latest.status
    before = sighting.before if sighting.answering else None
    return GuestActivity(
        name=sighting.entry.name,
        program=program_of(sighting.entry, status),
        manager_pid=sighting.entry.pid,
        state=status.state.value if status is not None and sighting.answering else "no answer",
        uptime=None if status is None else status.uptime,
        cpu_ratio=rate(before, latest, "cpu_time"),
        ram_size=None if status is None else status.ram_size,
        ram_touched=None if status is None else status.ram_touched,
        ram_deferred=None if status is None else status.ram_deferred,
        loaded_ratio=None if status is None else _loaded(status),
        dirty_rate=None if status is None else status.dirty_rate,
        working_set=None if status is None else status.working_set_size,
        fault_rate=rate(before, latest, "faults"),
        hypercall_rate=rate(before, latest, "hypercalls"),
        fault_p50=None if status is None else status.fault_p50,
        fault_p99=None if status is None else status.fault_p99,
    )


def rate(before: Answer | None, latest: Answer | None, counter: str) -> float | None:
    """How much a counter grew a second; None if there are no two answers, or it began again between them."""
    if before is None or latest is None:
        return None
    seconds = latest.taken - before.taken
    growth: float = getattr(latest.status, counter) - getattr(before.status, counter)
    return growth / seconds if seconds >= SHORTEST and growth >= 0 else None


def _loaded(status: GuestStatus) -> float | None:
    everything = status.ram_touched + status.ram_deferred
    return status.ram_touched / everything if status.restored_from and everything else None
