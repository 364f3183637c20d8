"""Precision, recall and pollution; and the moment from which a guest is responsive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.recording.metrics import PrefetchScore, Stall, responsive_after, score

PAGES = st.frozensets(st.integers(0, 40))


def test_a_score() -> None:
    found = score({1, 2, 3, 4}, {3, 4, 5})
    assert found == PrefetchScore(prefetched=4, needed=3, used=2)
    assert (found.precision, found.recall, found.pollution) == (0.5, 2 / 3, 2)
    nothing = score(set(), set())
    assert (nothing.precision, nothing.recall, nothing.pollution) == (None, None, 0)


@given(PAGES, PAGES)
def test_scores_are_shares(prefetched: frozenset[int], needed: frozenset[int]) -> None:
    found = score(prefetched, needed)
    assert found.pollution == len(prefetched - needed)
    assert (found.precision or 0) * len(prefetched) == pytest.approx(len(prefetched & needed))
    assert (found.recall or 0) * len(needed) == pytest.approx(len(prefetched & needed))
    assert found.recall == 1 or not needed <= prefetched or not needed


def test_a_guest_that_never_waits_is_responsive_at_once() -> None:
    assert responsive_after([], 5.0, 6.0, 0.1, 0.9) == 5.0


def test_a_guest_is_responsive_behind_its_waiting() -> None:
    stalls = [Stall(0.0, 0.5), Stall(0.51, 0.2), Stall(0.9, 0.001)]
    assert responsive_after(stalls, 0.0, 2.0, 0.1, 0.9) == pytest.approx(0.71)


def test_what_was_not_looked_at_for_long_enough_is_not_known() -> None:
    assert responsive_after([Stall(0.0, 0.95)], 0.0, 1.0, 0.1, 0.9) is None


def _waited(stalls: list[Stall], begin: float, window: float) -> float:
    """How long the guest waited in a window, the slow way."""
    end = begin + window
    return sum(max(0.0, min(end, stall.start + stall.duration) - max(begin, stall.start)) for stall in stalls)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=30), st.integers(1, 50))
def test_it_is_the_first_window_that_fits(gaps: list[tuple[int, int]], window: int) -> None:
    stalls, now = [], 0
    for gap, duration in gaps:
        stalls.append(Stall(now + gap, duration))
        now += gap + duration
    end = now + 20
    begins = [0, *(int(stall.start + stall.duration) for stall in stalls)]
    fits = [b for b in begins if b + window <= end and _waited(stalls, b, window) < 0.5 * window]
    assert responsive_after(stalls, 0, end, window, 0.5) == (fits[0] if fits else None)
