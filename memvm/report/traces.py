"""Trace events as text for people."""

from __future__ import annotations

from memvm.machine.layout import RAM_BASE
from memvm.memory.events import Access, TraceEvent
from memvm.units import PAGE_SIZE

_WORDS = {Access.READ: "read", Access.WRITE: "write"}


def event_text(event: TraceEvent, began: int) -> str:
    """One line: seconds since `began` (nanoseconds of CLOCK_MONOTONIC), access, page, address, and who it was."""
    who = f"thread {event.vcpu}" if event.vcpu else "manager"
    where = f"  at {event.instruction:#x}" if event.instruction else ""
    address = RAM_BASE + event.page * PAGE_SIZE
    seconds = (event.time - began) / 1e9
    return f"{seconds:12.6f}  {_WORDS[Access(event.access)]:5}  page {event.page:<8} {address:#012x}  {who}{where}"


def dropped_text(count: int) -> str:
    """That events were lost."""
    return f"{count:,} events were lost: they came faster than they were read"


def summary_text(events: int, dropped: int) -> str:
    """What a trace has heard of in all."""
    lost = f", {dropped:,} lost" if dropped else ""
    return f"{events:,} accesses{lost}"
