"""How well pages were chosen that were brought before the guest asked for them, and when it was responsive again."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

RESPONSIVE_WINDOW = 0.05
"""Seconds of the window in which a guest has to run for RESPONSIVE_SHARE of the time."""
RESPONSIVE_SHARE = 0.8


class PrefetchScore(NamedTuple):
    """What became of the prefetched pages."""

    prefetched: int
    """Pages brought before anybody asked for them."""
    needed: int
    """Pages that the guest used, of those that have data."""
    used: int
    """Pages that were both."""

    @property
    def precision(self) -> float | None:
        """The share of the prefetched pages that were used; None if there were none."""
        return self.used / self.prefetched if self.prefetched else None

    @property
    def recall(self) -> float | None:
        """The share of the needed pages that were prefetched; None if none was needed."""
        return self.used / self.needed if self.needed else None

    @property
    def pollution(self) -> int:
        """Pages that were brought in vain."""
        return self.prefetched - self.used


def score(prefetched: Set[int], needed: Set[int]) -> PrefetchScore:
    """Compare the pages that were brought early with those that were used."""
    return PrefetchScore(len(prefetched), len(needed), len(prefetched & needed))


class Stall(NamedTuple):
    """The guest waited for a page; seconds, from any one point in time."""

    start: float
    duration: float


def responsive_after(
    stalls: Iterable[Stall],
    start: float,
    end: float,
    window: float = RESPONSIVE_WINDOW,
    share: float = RESPONSIVE_SHARE,
) -> float | None:
    """When the guest was responsive: the start of the first window in which it ran for more than `share` of the time.

    Stalls are in the order of their starts and do not overlap; `start` to `end` is the time that was looked at, in
    seconds like theirs. None if there was no such window before the end. Only windows that begin at the start or at the
    end of a stall are looked at: any other that fits could begin earlier.
    """
    waits = [stall for stall in stalls if stall.duration > 0]
    allowed = (1 - share) * window
    begins = [start, *(stall.start + stall.duration for stall in waits)]
    last = 0  # the first stall that begins behind the window
    inside = 0.0  # seconds of stalls that begin in the window
    for number, begin in enumerate(begins):
        if begin + window > end:
            return None
        while last < len(waits) and waits[last].start < begin + window:
            inside += waits[last].duration
            last += 1
        over = 0.0
        if last > number:  # the last stall may reach out of the window
            over = max(0.0, waits[last - 1].start + waits[last - 1].duration - (begin + window))
        if inside - over < allowed:
            return begin
        if number < len(waits):
            inside -= waits[number].duration  # the next window begins behind it
    return None
