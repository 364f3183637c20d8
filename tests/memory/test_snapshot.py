"""Snapshots without a guest: phases, room, and what is guarded when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.memory import snapshot as module
from memvm.memory.engine import GuestGone
from memvm.memory.pages import GUARDED, PageRun, count_flag, merged_runs, runs_of
from memvm.memory.ram import GuestRam
from memvm.memory.snapshot import SLAB_PAGES, Snapshot
from memvm.units import PAGE_SIZE
from tests.memory.fake_engine import FakeEngine
from tests.memory.sources import page_of

BASE, PAGES = 0x200000, 4096


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """RAM of 16 MiB."""
    ram = GuestRam(BASE, PAGES * PAGE_SIZE)
    yield ram
    ram.close()


def touch(ram: GuestRam, first: int, count: int, value: int = 1) -> None:
    """Fill pages."""
    ram.copy_in(first, [page_of(value) * count])


def take(snapshot: Snapshot, *runs: PageRun) -> list[PageRun]:
    """Take pages; returns those that were as at the instant."""
    buffer = bytearray(sum(run.count for run in runs) * PAGE_SIZE)
    return [run for run, _ in snapshot.take(list(runs), memoryview(buffer))]


def test_the_pages_of_a_snapshot_are_those_that_held_memory(ram: GuestRam) -> None:
    engine = FakeEngine(ram)
    touch(ram, 5, 3)
    touch(ram, 1000, 1)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    touch(ram, 8, 2)
    touch(ram, 3000, 1)
    assert snapshot.instant() == [(5, 5), (1000, 1), (3000, 1)]
    snapshot.end()


def test_everything_is_guarded_before_the_instant_except_what_changed(ram: GuestRam) -> None:
    engine = FakeEngine(ram)
    touch(ram, 0, 64)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    assert engine.guarded >= set(range(64))
    engine.guest_write(3, page_of(2))
    assert 3 not in engine.guarded
    snapshot.instant()
    assert engine.guarded >= set(range(64))
    snapshot.end()
    assert not engine.guarded


def test_an_engine_that_cannot_guard_while_the_guest_runs_guards_at_the_instant(ram: GuestRam) -> None:
    engine = FakeEngine(ram, guards_while_running=False)
    touch(ram, 0, 64)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    assert not engine.guarded
    engine.standing_still = True
    snapshot.instant()
    assert engine.guarded >= set(range(64))
    snapshot.end()


def test_small_gaps_are_guarded_along_and_large_ones_are_not(ram: GuestRam) -> None:
    engine = FakeEngine(ram)
    touch(ram, 0, 1)
    touch(ram, 400, 1)
    touch(ram, 2000, 1)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    assert engine.guarded == {*range(401), 2000}
    snapshot.end()


def test_taken_pages_are_free_to_be_written(ram: GuestRam) -> None:
    engine = FakeEngine(ram)
    touch(ram, 0, 64)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    snapshot.instant()
    assert take(snapshot, PageRun(0, 32)) == [(0, 32)]
    assert not engine.guarded & set(range(32))
    engine.guest_write(5, page_of(9))
    assert snapshot.drain() == []
    snapshot.end()


def test_kept_pages_are_not_taken_and_neighbours_are_kept_together(ram: GuestRam) -> None:
    engine = FakeEngine(ram)
    touch(ram, 0, 64)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    snapshot.instant()
    engine.guest_write(20, page_of(9))
    (slab,) = snapshot.drain()
    ((run, offset),) = slab.parts
    assert run.first <= 20 < run.end
    assert bytes(slab.memory[offset : offset + run.count * PAGE_SIZE]) == page_of(1) * run.count
    left = take(snapshot, PageRun(0, 64))
    assert sorted([run, *left]) == [(0, run.first), run, (run.end, 64 - run.end)]
    snapshot.end()


@given(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=60))
def test_what_is_kept_around_a_page_has_it_and_fits_into_a_slab(pages: list[int]) -> None:
    ram = GuestRam(BASE, PAGES * PAGE_SIZE)
    snapshot = Snapshot(ram, FakeEngine(ram, grain=16))
    for page in pages:
        run = snapshot.around(page)
        assert 0 <= run.first <= page < run.end <= PAGES
        assert run.count <= SLAB_PAGES
    ram.close()


def test_a_sequential_writer_has_more_and_more_kept_at_once(ram: GuestRam) -> None:
    snapshot = Snapshot(ram, FakeEngine(ram))
    page, counts = 0, []
    for _ in range(8):
        run = snapshot.around(page)
        counts.append(run.count)
        page = run.end
    assert counts == sorted(counts)
    assert counts[-1] == SLAB_PAGES
    assert snapshot.around(2000).count < SLAB_PAGES


@pytest.mark.parametrize("way", ["release", "end", "take"])
def test_who_waits_for_room_goes_on(ram: GuestRam, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(module, "MOST_ROOM", SLAB_PAGES * PAGE_SIZE)
    engine = FakeEngine(ram)
    touch(ram, 0, 3 * SLAB_PAGES)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    snapshot.instant()
    done = threading.Event()

    def change() -> None:
        snapshot.keep(0, 2 * SLAB_PAGES)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    assert not done.wait(0.1)
    match way:
        case "release":
            give_up = time.monotonic() + 20
            while not done.wait(0.01):  # it may come to where it waits only now
                assert time.monotonic() < give_up
                for slab in snapshot.drain():
                    snapshot.release(slab)
        case "end":
            snapshot.end()
        case "take":
            take(snapshot, PageRun(SLAB_PAGES, SLAB_PAGES))
    assert done.wait(10)
    thread.join()
    assert not count_flag(ram.flags, GUARDED, 0, 2 * SLAB_PAGES)
    snapshot.end()


def test_ending_lets_go_of_everything_and_may_be_done_twice(ram: GuestRam) -> None:
    engine = FakeEngine(ram)
    touch(ram, 0, 64)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    snapshot.instant()
    snapshot.end()
    snapshot.end()
    assert (engine.guarded, ram.keeper, count_flag(ram.flags, GUARDED)) == (set(), None, 0)


def test_ending_when_the_guest_has_ended(ram: GuestRam, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise GuestGone

    engine = FakeEngine(ram)
    touch(ram, 0, 64)
    snapshot = Snapshot(ram, engine)
    snapshot.prepare()
    monkeypatch.setattr(engine, "end_guarding", gone)
    snapshot.end()
    assert (ram.keeper, count_flag(ram.flags, GUARDED)) == (None, 0)


@given(st.sets(st.integers(0, 3000), max_size=30))
def test_gaps_and_runs_are_all_there_is(pages: set[int]) -> None:
    runs = runs_of(sorted(pages))
    gaps = list(module._gaps(runs, 3001))
    assert sorted(page for run in [*runs, *gaps] for page in range(run.first, run.end)) == list(range(3001))


@given(st.sets(st.integers(0, 3000), max_size=30))
def test_merging_closes_small_gaps_and_no_others(pages: set[int]) -> None:
    runs = runs_of(sorted(pages))
    merged = merged_runs(runs, module._GAP_PAGES)
    assert all(any(whole.first <= run.first and run.end <= whole.end for whole in merged) for run in runs)
    assert {whole.first for whole in merged} <= {run.first for run in runs}
    assert {whole.end for whole in merged} <= {run.end for run in runs}
    assert all(after.first - before.end >= module._GAP_PAGES for before, after in pairwise(merged))
    assert all(
        inside.first - before.end < module._GAP_PAGES
        for whole in merged
        for members in [[run for run in runs if whole.first <= run.first < whole.end]]
        for before, inside in pairwise(members)
    )
