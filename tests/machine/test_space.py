"""The address space against a model that knows nothing but a dictionary of pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memvm.machine.layout import RAM_BASE, STACK_GUARD
from memvm.machine.space import AddressSpace, OutOfMemory, Region, RegionKind, page_up
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import MIB, PAGE_SIZE

PAGES = 4 * MIB // PAGE_SIZE
STACK_PAGES = 32
HEAP = 16
"""The page at which the heap begins."""
GUARD = STACK_GUARD // PAGE_SIZE

page_numbers = st.integers(0, PAGES - 1)
counts = st.one_of(st.integers(1, 8), st.integers(1, PAGES))
protections = st.integers(0, 7).map(Prot)


def address(page: int) -> int:
    return RAM_BASE + page * PAGE_SIZE


@contextmanager
def small_space() -> Iterator[tuple[GuestRam, AddressSpace, dict[int, int]]]:
    """RAM, an address space of it, and what the kernel was told, by page."""
    ram = GuestRam(RAM_BASE, PAGES * PAGE_SIZE)
    kernel: dict[int, int] = {}

    def apply(start: int, size: int, protection: Prot) -> None:
        assert start % PAGE_SIZE == size % PAGE_SIZE == 0
        assert size > 0
        first = (start - RAM_BASE) // PAGE_SIZE
        kernel.update(dict.fromkeys(range(first, first + size // PAGE_SIZE), int(protection)))

    space = AddressSpace(ram, apply)
    space.heap_start = space.heap_end = address(HEAP)
    space.map(Region(address(0), address(4), Prot.READ | Prot.EXEC, RegionKind.IMAGE))
    space.map(Region(address(PAGES - STACK_PAGES), ram.end, Prot.READ | Prot.WRITE, RegionKind.STACK))
    try:
        yield ram, space, kernel
    finally:
        ram.close()


class SpaceModel(RuleBasedStateMachine):
    """Regions as a dictionary from page number to what the page is."""

    def __init__(self) -> None:
        super().__init__()
        self._context = small_space()
        self.ram, self.space, self.kernel = self._context.__enter__()
        self.model: dict[int, tuple[Prot, RegionKind]] = {}
        self.written: set[int] = set()
        """Allocated pages with contents."""
        for region in self.space:
            self._note(region)

    def teardown(self) -> None:
        self._context.__exit__(None, None, None)

    def _note(self, region: Region) -> None:
        for page in self._pages(region.start, region.end):
            self.model[page] = region.protection, region.kind

    @staticmethod
    def _pages(start: int, end: int) -> range:
        return range((start - RAM_BASE) // PAGE_SIZE, (end - RAM_BASE) // PAGE_SIZE)

    @rule(page=page_numbers, count=counts, protection=protections)
    def map_fixed(self, page: int, count: int, protection: Prot) -> None:
        start, end = address(page), address(min(page + count, PAGES))
        assert self.space.overlaps(start, end) == any(page in self.model for page in self._pages(start, end))
        self.unmap(page, count)
        region = Region(start, end, protection, RegionKind.ANONYMOUS)
        self.space.map(region)
        self._note(region)

    @rule(page=page_numbers, count=counts)
    def unmap(self, page: int, count: int) -> None:
        start, end = address(page), address(min(page + count, PAGES))
        self.space.unmap(start, end)
        for page in self._pages(start, end):
            self.model.pop(page, None)
            self.written.discard(page)

    @rule(page=page_numbers, count=counts, protection=protections)
    def protect(self, page: int, count: int, protection: Prot) -> None:
        start, end = address(page), address(min(page + count, PAGES))
        held = all(page in self.model for page in self._pages(start, end))
        assert self.space.holds(start, end - start) == held
        if held:
            self.space.protect(start, end, protection)
            for page in self._pages(start, end):
                self.model[page] = protection, self.model[page][1]

    @rule(page=page_numbers)
    def write(self, page: int) -> None:
        if page in self.model:
            self.ram.write(address(page) + page % PAGE_SIZE, b"x")
            self.written.add(page)

    @rule(count=counts)
    def find_room(self, count: int) -> None:
        size = count * PAGE_SIZE
        stacks = [page for page, (_, kind) in self.model.items() if kind is RegionKind.STACK]
        ceiling = (min(stacks) if stacks else PAGES) - GUARD
        floor = (page_up(self.space.heap_end) - RAM_BASE) // PAGE_SIZE
        rooms = (
            start
            for start in range(ceiling - count, floor - 1, -1)
            if not any(page in self.model for page in range(start, start + count))
        )
        expected = next(rooms, None)
        if expected is None:
            with pytest.raises(OutOfMemory):
                self.space.find_room(size)
        else:
            assert self.space.find_room(size) == address(expected)

    @rule(size=st.integers(-4 * PAGE_SIZE, 3 * MIB))
    def set_break(self, size: int) -> None:
        wanted, before = address(HEAP) + size, self.space.heap_end
        old, new = page_up(before), page_up(wanted)
        room = size >= 0 and new <= self.ram.end
        if new > old:
            room = room and not any(page in self.model for page in self._pages(old, new + STACK_GUARD))
        assert self.space.set_break(wanted) == room
        assert self.space.heap_end == (wanted if room else before)
        if room and new > old:
            self._note(Region(old, new, Prot.READ | Prot.WRITE, RegionKind.HEAP))
        elif room:
            for page in self._pages(new, old):
                self.model.pop(page, None)
                self.written.discard(page)

    @invariant()
    def the_regions_are_the_model(self) -> None:
        found = {}
        for region in self.space:
            assert region.start < region.end
            for page in self._pages(region.start, region.end):
                assert page not in found, "regions overlap"
                found[page] = region.protection, region.kind
        assert found == self.model

    @invariant()
    def neighbours_that_are_alike_are_one(self) -> None:
        regions = list(self.space)
        assert regions == sorted(regions, key=lambda region: region.start)
        for first, second in itertools.pairwise(regions):
            alike = (first.protection, first.kind) == (second.protection, second.kind)
            assert first.end < second.start or not alike

    @invariant()
    def page_metadata_and_the_kernel_know_the_same(self) -> None:
        expected = bytearray(PAGES)
        for page, (protection, _) in self.model.items():
            expected[page] = protection
        assert self.ram.protection == expected
        assert bytes(self.kernel.get(page, 0) for page in range(PAGES)) == expected

    @invariant()
    def what_is_not_allocated_holds_no_memory(self) -> None:
        held = {page for run in self.ram.touched() for page in range(run.first, run.end)}
        assert held <= set(self.model)
        assert held == self.written


SpaceModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSpaceModel = SpaceModel.TestCase


def test_region_at_is_the_region_of_an_address() -> None:
    with small_space() as (ram, space, _):
        assert space.region_at(address(0)) == space.region_at(address(4) - 1) == next(iter(space))
        assert space.region_at(address(4)) is None
        assert space.region_at(RAM_BASE - 1) is None
        assert space.region_at(ram.end) is None
        assert space.in_ram(RAM_BASE, ram.size)
        assert not space.in_ram(RAM_BASE - 1, 10)
        assert not space.in_ram(ram.end - 1, 2)


def test_nothing_changes_when_the_kernel_refuses() -> None:
    """As when vm.max_map_count is reached."""
    with small_space() as (ram, space, _):
        before, protection = list(space), bytes(ram.protection)
        ram.write(address(0), b"kept")

        def refuse(_start: int, _size: int, _protection: Prot) -> None:
            raise OutOfMemory

        space._apply = refuse
        for change in (
            lambda: space.map(Region(address(8), address(9), Prot.READ, RegionKind.ANONYMOUS)),
            lambda: space.unmap(address(0), address(2)),
            lambda: space.protect(address(0), address(2), Prot.READ | Prot.WRITE),
            lambda: space.set_break(address(HEAP + 4)),
        ):
            with pytest.raises(OutOfMemory):
                change()
        assert list(space) == before
        assert bytes(ram.protection) == protection
        assert ram.read(address(0), 4) == b"kept"
        assert space.heap_end == address(HEAP)
