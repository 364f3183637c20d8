"""Deferred pages without a guest: what is placed, how much, and what becomes of what cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memvm.errors import BadPage
from memvm.memory.deferred import DeferredPages
from memvm.memory.pages import BAD, DEFERRED, HIDDEN, PageRun, count_flag, set_flag
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE
from tests.memory.fake_engine import FakeEngine, Poisoned
from tests.memory.sources import FakeSource, page_of, saved_value

BASE, PAGES = 0x200000, 128
ZERO = bytes(PAGE_SIZE)


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """RAM that the guest may read and write."""
    ram = GuestRam(BASE, PAGES * PAGE_SIZE)
    ram.protection[:] = b"\3" * PAGES
    yield ram
    ram.close()


def defer(ram: GuestRam, source: FakeSource, *, poisons: bool = True) -> tuple[DeferredPages, FakeEngine]:
    """A source behind the RAM."""
    engine = FakeEngine(ram, poisons=poisons)
    deferred = DeferredPages(ram, engine, source)
    deferred.begin(source.runs)
    return deferred, engine


def test_a_fault_brings_the_whole_chunk_and_no_more(ram: GuestRam) -> None:
    source = FakeSource(range(8, 40))
    deferred, engine = defer(ram, source)
    assert engine.guest_read(13) == page_of(saved_value(13))
    assert list(ram.touched()) == [(12, 4)]
    assert deferred.remaining == 28
    assert source.loads == {1: 1}


def test_alone_a_page_comes_without_the_rest_of_its_chunk(ram: GuestRam) -> None:
    source = FakeSource(range(8, 40))
    deferred, engine = defer(ram, source)
    deferred.instead = deferred.demand_alone
    for page in (13, 12, 39):
        assert engine.guest_read(page) == page_of(saved_value(page))
    assert list(ram.touched()) == [(12, 2), (39, 1)]
    assert deferred.remaining == 29
    deferred.bring(8, 32)
    assert [engine.guest_read(page) for page in range(8, 40)] == [page_of(saved_value(page)) for page in range(8, 40)]


def test_alone_a_page_that_cannot_be_loaded_spoils_its_chunk(ram: GuestRam) -> None:
    source = FakeSource(range(8, 40), bad=[17])
    deferred, engine = defer(ram, source)
    deferred.instead = deferred.demand_alone
    reported: list[BadPage] = []
    deferred.report_bad = reported.append
    for page in (17, 18):
        with pytest.raises(Poisoned):
            engine.guest_read(page)
    assert len(reported) == 1
    assert count_flag(ram.flags, BAD) == 4


@pytest.mark.parametrize("page", [20, 16, 31, 127])
def test_a_fault_on_an_untouched_page_brings_zeros_around_it(ram: GuestRam, page: int) -> None:
    _, engine = defer(ram, FakeSource([0]))
    assert engine.guest_read(page) == ZERO
    assert list(ram.touched()) == [(page & -16, 16)]


def test_zeros_end_where_pages_are_deferred_or_there_or_have_other_rights(ram: GuestRam) -> None:
    _, engine = defer(ram, FakeSource([18]))
    ram.copy_in(27, [page_of(5)])
    ram.protection[25] = 1
    assert engine.guest_read(22) == ZERO
    assert list(ram.touched()) == [(19, 6), (27, 1)]
    assert [engine.guest_read(page) for page in (18, 25, 26, 27)] == [page_of(saved_value(18)), ZERO, ZERO, page_of(5)]


def test_zeros_below_and_above_a_page_that_is_there(ram: GuestRam) -> None:
    _, engine = defer(ram, FakeSource([0]))
    ram.copy_in(20, [page_of(5)])
    assert engine.guest_read(18) == engine.guest_read(22) == ZERO
    assert list(ram.touched()) == [(16, 5), (22, 10)]
    assert [engine.guest_read(20), engine.guest_read(21)] == [page_of(5), ZERO]


def test_zeros_at_the_end_of_ram() -> None:
    ram = GuestRam(BASE, 19 * PAGE_SIZE)
    ram.protection[:] = b"\3" * 19
    _, engine = defer(ram, FakeSource([0]))
    assert engine.guest_read(17) == ZERO
    assert list(ram.touched()) == [(16, 3)]
    ram.close()


def test_a_chunk_is_placed_once(ram: GuestRam) -> None:
    source = FakeSource(range(8))
    deferred, _ = defer(ram, source)
    chunk = source.load(0)
    assert deferred.deliver(chunk) == 4
    assert deferred.deliver(chunk) == 0
    assert deferred.remaining == 4


def test_a_page_with_other_flags_is_placed_too(ram: GuestRam) -> None:
    source = FakeSource(range(8))
    deferred, engine = defer(ram, source)
    set_flag(ram.flags, 0, 3, HIDDEN)
    assert deferred.deliver(source.load(0)) == 4
    assert list(ram.flags[:5]) == [HIDDEN, HIDDEN, HIDDEN, 0, DEFERRED]
    assert [engine.guest_read(page) for page in range(4)] == [page_of(saved_value(page)) for page in range(4)]


def test_of_a_chunk_only_what_was_not_thrown_away_is_placed(ram: GuestRam) -> None:
    source = FakeSource([0, 1, 2, 3, 9, 10, 30, 40], chunk_pages=8)
    deferred, engine = defer(ram, source)
    chunk = source.load(0)
    ram.discard(1, 2)
    ram.discard(10, 21)
    assert deferred.deliver(chunk) == 4
    assert [page for run in ram.touched() for page in range(run.first, run.end)] == [0, 3, 9, 40]
    assert [engine.guest_read(page) for page in (0, 3, 9, 40)] == [page_of(saved_value(page)) for page in (0, 3, 9, 40)]
    assert engine.guest_read(1) == ZERO


def test_bringing_loads_each_chunk_of_the_range_once(ram: GuestRam) -> None:
    source = FakeSource(range(10, 100))
    deferred, _ = defer(ram, source)
    deferred.bring(0, 30)
    assert source.loads == dict.fromkeys(range(5), 1)
    deferred.bring(0, PAGES)
    assert set(source.loads.values()) == {1}
    assert deferred.remaining == 0


def test_bringing_more_than_is_looked_through_at_once() -> None:
    pages = 3000
    ram = GuestRam(BASE, pages * PAGE_SIZE)
    deferred, _ = defer(ram, FakeSource([1000, 1023, 1024, 2047, 2048, 2999], chunk_pages=1))
    deferred.bring(1001, 1999)
    assert list(ram.touched()) == [(1023, 2), (2047, 2), (2999, 1)]
    assert deferred.remaining == 1
    ram.close()


@pytest.mark.parametrize("poisons", [True, False])
def test_a_chunk_that_cannot_be_loaded_is_reported_once_and_bad_for_ever(ram: GuestRam, poisons: bool) -> None:
    source = FakeSource(range(12), bad=[6])
    deferred, engine = defer(ram, source, poisons=poisons)
    reported: list[BadPage] = []
    deferred.report_bad = reported.append
    for page in (5, 6, 5):
        with pytest.raises(Poisoned if poisons else BadPage):
            engine.guest_read(page)
    deferred.bring(0, PAGES)
    with pytest.raises(BadPage):
        ram.read(BASE + 7 * PAGE_SIZE, 1)
    assert [error.page for error in reported] == [6]
    assert source.loads[1] == 1
    assert deferred.remaining == 0
    assert count_flag(ram.flags, BAD) == 4


def test_what_was_thrown_away_does_not_become_bad(ram: GuestRam) -> None:
    source = FakeSource(range(12), bad=[6])
    deferred, engine = defer(ram, source)
    ram.discard(5, 2)
    deferred.demand(1)
    assert [page for page in range(PAGES) if ram.flags[page]] == [*range(4), 4, 7, *range(8, 12)]
    assert engine.guest_read(6) == ZERO


def test_nothing_is_reported_of_a_chunk_that_nobody_needs_any_more(ram: GuestRam) -> None:
    source = FakeSource(range(12), bad=[6])
    deferred, _ = defer(ram, source)
    reported: list[BadPage] = []
    deferred.report_bad = reported.append
    ram.discard(4, 4)
    deferred.demand(1)
    assert not reported


@pytest.mark.parametrize("poisons", [True, False])
def test_finishing_loads_the_rest_and_ends_missing_faults(ram: GuestRam, poisons: bool) -> None:
    deferred, engine = defer(ram, FakeSource(range(20)), poisons=poisons)
    deferred.finish()
    assert list(ram.touched()) == [(0, 20)]
    assert not engine.missing


@pytest.mark.parametrize(("poisons", "missing"), [(True, False), (False, True)])
def test_bad_pages_stay_missing_where_the_kernel_cannot_poison_them(
    ram: GuestRam, poisons: bool, missing: bool
) -> None:
    deferred, engine = defer(ram, FakeSource(range(20), bad=[3]), poisons=poisons)
    deferred.finish()
    assert engine.missing is missing
    with pytest.raises(Poisoned if poisons else BadPage):
        engine.guest_read(3)


def test_one_place_for_zeros_is_told_to_who_saves(ram: GuestRam) -> None:
    _, engine = defer(ram, FakeSource([0]))
    told: list[tuple[int, int]] = []

    class Keeper:
        def keep(self, first: int, count: int) -> None:
            assert ram.next_touched(first) >= first + count, "told too late"
            told.append((first, count))

        def around(self, page: int) -> PageRun:
            return PageRun(page, 1)

    ram.keeper = Keeper()
    engine.guest_read(40)
    assert told == [(40, 1)]
