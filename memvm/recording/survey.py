"""The first look at a recording: how much there is, from when to when, and whether it is whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memvm.recording.reader import Recording


@dataclass(frozen=True)
class Survey:
    """What a recording has; times in nanoseconds of the host's CLOCK_MONOTONIC."""

    events: int
    dropped: int
    """Events that are known to have been lost."""
    reads: int
    """Events that were reads, or reads and writes."""
    writes: int
    """Events that were writes, or reads and writes."""
    first_time: int
    last_time: int
    """Those of the earliest and the latest event; the start of the recording, if there is none."""
    page_events: dict[int, int]
    """How many events each page has."""
    finished: bool
    flaw: str
    """Why it could not be read to its end; empty if it could."""


def survey(recording: Recording) -> Survey:
    """Go through a recording once."""
    pages: Counter[int] = Counter()
    accesses: Counter[int] = Counter()
    first, last = None, recording.header.started
    dropped = 0
    for block in recording.blocks():
        dropped += block.dropped
        if block.pages:
            pages.update(block.pages)
            accesses.update(block.accesses)
            earliest = min(block.times)
            first = earliest if first is None else min(first, earliest)
            last = max(last, max(block.times))  # noqa: PLW3301 - they are many
    ending = recording.ending
    assert ending is not None, "blocks() was gone through"
    return Survey(
        sum(pages.values()),
        dropped,
        accesses[1] + accesses[3],
        accesses[2] + accesses[3],
        recording.header.started if first is None else first,
        last,
        dict(pages),
        ending.finished,
        ending.flaw,
    )
