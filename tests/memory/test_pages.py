"""Page metadata: each fast function against a slow one that looks at one page at a time."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.memory import pages as module
from memvm.memory.pages import (
    PageFlag,
    PageRun,
    clear_flag,
    count_flag,
    equal_runs,
    flagged_runs,
    page_span,
    runs_of,
    set_flag,
    united_runs,
)
from memvm.units import PAGE_SIZE

FLAGS = [int(flag) for flag in PageFlag if flag]

metadata = st.lists(st.sampled_from([0, 1, 2, 3, 5, 9, 17, 31]), min_size=1, max_size=80).map(bytearray)
flag = st.sampled_from(FLAGS)


@st.composite
def metadata_and_run(draw: st.DrawFn) -> tuple[bytearray, int, int]:
    """Some metadata, and a run of pages in it, perhaps empty."""
    flags = draw(metadata)
    first = draw(st.integers(0, len(flags) - 1))
    return flags, first, draw(st.integers(0, len(flags) - first))


@given(metadata_and_run(), flag)
def test_setting_and_clearing_change_one_flag_of_the_run_and_nothing_else(
    given: tuple[bytearray, int, int], mask: int
) -> None:
    flags, first, count = given
    inside = range(first, first + count)
    expected = [value | mask if page in inside else value for page, value in enumerate(flags)]
    cleared = [value & ~mask if page in inside else value for page, value in enumerate(flags)]
    other = bytearray(flags)
    set_flag(flags, first, count, mask)
    clear_flag(other, first, count, mask)
    assert list(flags) == expected
    assert list(other) == cleared


@given(metadata_and_run(), flag)
def test_counting(given: tuple[bytearray, int, int], mask: int) -> None:
    flags, first, count = given
    assert count_flag(flags, mask, first, count) == sum(bool(v & mask) for v in flags[first : first + count])
    assert count_flag(flags, mask) == sum(bool(v & mask) for v in flags)


@given(metadata_and_run(), flag)
def test_flagged_runs(given: tuple[bytearray, int, int], mask: int) -> None:
    flags, first, count = given
    flagged = [page for page in range(first, first + count) if flags[page] & mask]
    assert list(flagged_runs(flags, first, count, mask)) == runs_of(flagged)


@given(metadata_and_run(), flag)
def test_flags_may_be_changed_while_their_runs_are_looked_at(given: tuple[bytearray, int, int], mask: int) -> None:
    flags, first, count = given
    before = list(flagged_runs(flags, first, count, mask))
    seen = []
    for run in flagged_runs(flags, first, count, mask):
        clear_flag(flags, 0, len(flags), mask)
        seen.append(run)
    assert seen == before


@given(metadata_and_run())
def test_equal_runs(given: tuple[bytearray, int, int]) -> None:
    values, first, count = given
    expected = []
    for value, group in groupby(range(first, first + count), key=lambda page: values[page]):
        members = list(group)
        expected.append((PageRun(members[0], len(members)), value))
    assert list(equal_runs(values, first, count)) == expected


@given(st.sets(st.integers(0, 60)))
def test_runs_of_pages(pages: set[int]) -> None:
    runs = runs_of(sorted(pages))
    assert [page for run in runs for page in range(run.first, run.end)] == sorted(pages)
    assert all(before.end < after.first for before, after in pairwise(runs))


@given(st.lists(st.builds(PageRun, st.integers(0, 50), st.integers(1, 9))))
def test_united_runs(runs: list[PageRun]) -> None:
    pages = {page for run in runs for page in range(run.first, run.end)}
    assert united_runs(runs) == runs_of(sorted(pages))


@given(st.integers(0, 5 * PAGE_SIZE), st.integers(1, 5 * PAGE_SIZE))
def test_page_span(offset: int, size: int) -> None:
    base = 0x200000
    first, count = page_span(base + offset, size, base)
    touched = {byte // PAGE_SIZE for byte in (offset, offset + size - 1)}
    assert (first, first + count - 1) == (min(touched), max(touched))


@pytest.mark.parametrize("flag", [flag for flag in PageFlag if flag])
def test_the_plain_numbers_are_the_flags(flag: PageFlag) -> None:
    assert getattr(module, str(flag.name)) == flag


def test_the_end_of_a_run() -> None:
    assert PageRun(3, 4).end == 7
