"""Hints over several restores: the latest first, bounded whatever comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memvm.recording.hints import MAX_AGE, MAX_HITS, PageHint, merge, pages

TOUCHED = st.lists(st.integers(0, 30), max_size=20)


def test_the_latest_restore_comes_first() -> None:
    hints = merge(merge([], [5, 6, 7, 5]), [7, 1])
    assert hints == [PageHint(7, 2, 0), PageHint(1, 1, 0), PageHint(5, 1, 1), PageHint(6, 1, 1)]
    assert pages(hints) == [7, 1, 5, 6]


def test_a_page_that_nobody_touches_is_forgotten() -> None:
    hints = merge([], [5])
    for _ in range(MAX_AGE - 1):
        hints = merge(hints, [1])
        assert 5 in pages(hints)
    assert 5 not in pages(merge(hints, [1]))


def test_what_is_old_goes_first_then_what_is_rare() -> None:
    hints = [PageHint(1, 9, 2), PageHint(2, 1, 0), PageHint(3, 5, 0)]
    assert pages(merge(hints, [4], most=3)) == [4, 2, 3]
    assert pages(merge(hints, [4], most=2)) == [4, 3]
    assert pages(merge(hints, [], most=1)) == [3]


def test_hits_fit_in_a_byte() -> None:
    assert merge([PageHint(1, MAX_HITS, 0)], [1]) == [PageHint(1, MAX_HITS, 0)]


@given(st.lists(TOUCHED, min_size=1, max_size=12), st.integers(0, 25))
def test_a_hint_is_bounded_and_has_what_was_touched(restores: list[list[int]], most: int) -> None:
    hints: list[PageHint] = []
    for touched in restores:
        hints = merge(hints, touched, most)
        assert len(hints) <= most
        assert len(set(pages(hints))) == len(hints)
        assert all(1 <= hint.hits <= MAX_HITS and 0 <= hint.age < MAX_AGE for hint in hints)
        latest = list(dict.fromkeys(touched))
        kept = [hint.page for hint in hints if hint.age == 0]
        assert kept == [page for page in latest if page in kept]
        assert len(kept) == min(most, len(latest))
        assert [hint.age == 0 for hint in hints] == [True] * len(kept) + [False] * (len(hints) - len(kept))
