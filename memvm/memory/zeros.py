"""Pages that hold no memory: a first touch gives them zeros, and their neighbours with them."""

from __future__ import annotations

from memvm.memory.engine import FaultEngine
from memvm.memory.pages import TRACE_ACCESS, WRITE_REASONS, PageRun
from memvm.memory.ram import GuestRam

_AROUND = 16
"""Pages that a touch of an untouched page brings in: as many as the kernel's fault-around."""


def give_zeros(ram: GuestRam, engine: FaultEngine, page: int) -> None:
    """Place zeros where the guest touched an untouched page; guarded, if somebody wants to hear of writes."""
    with ram.lock:
        if ram.keeper is not None:
            ram.keeper.keep(page, 1)  # it was discarded after the instant, and what is placed now is not a save's
        reasons = ram.flags[page] & WRITE_REASONS
        run = _untouched_around(ram, page)
        if reasons:
            engine.place_zeros(run, reasons)
        else:
            engine.place_zeros(run)


def _untouched_around(ram: GuestRam, page: int) -> PageRun:
    """The untouched pages around this one that are like it."""
    start = page - page % _AROUND
    there = ram.next_touched(start)
    if there <= page:
        start, there = page, ram.next_touched(page)
    end = max(page + 1, min(start - start % _AROUND + _AROUND, there, ram.page_count))
    flags, mine, rights = ram.flags, ram.flags[page], ram.protection[page]

    def alike(other: int) -> bool:
        return flags[other] == mine and not mine & TRACE_ACCESS and ram.protection[other] == rights

    first = stop = page
    while first > start and alike(first - 1):
        first -= 1
    while stop + 1 < end and alike(stop + 1):
        stop += 1
    return PageRun(first, stop + 1 - first)
