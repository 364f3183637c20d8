"""The guest's address space: which parts of guest RAM are allocated, to what end, with what protection.

Regions are what mmap, brk and the loader made; they do not overlap, and neighbours that are alike are one. The
protection of each page is also kept in the page metadata, where every access by the manager looks it up. The kernel's
view is changed through `apply`, by whoever can make the guest call mprotect.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from memvm.machine.layout import STACK_GUARD
from memvm.memory.pages import set_all
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import MIB, PAGE_SIZE

LARGE = 8 * MIB
"""Bytes of new memory from which on it may be worth watching how the guest goes through it (preallocating.py)."""


class RegionKind(StrEnum):
    """What a region is for."""

    IMAGE = "image"
    HEAP = "heap"
    STACK = "stack"
    ANONYMOUS = "anonymous"
    FILE = "file"
    VDSO = "vdso"


class Region(NamedTuple):
    """Guest addresses [start, end), page-aligned."""

    start: int
    end: int
    protection: Prot
    kind: RegionKind

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class OutOfMemory(Exception):
    """No room in guest RAM for what was asked, or too many pieces of memory for the kernel."""

    def __init__(self, size: int = 0) -> None:
        """`size`: the bytes that there was no room for; 0 if it was not for lack of room."""
        self.size = size


Apply = Callable[[int, int, Prot], None]
"""Gives `size` bytes at an address their protection in the guest's page tables."""


def page_up(value: int) -> int:
    """The next page border at or above an address or size."""
    return (value + PAGE_SIZE - 1) & -PAGE_SIZE


class AddressSpace:
    """The regions of one guest. Addresses and sizes given to it are page-aligned and checked by the callers."""

    def __init__(self, ram: GuestRam, apply: Apply) -> None:
        self.ram = ram
        self._apply = apply
        self._regions: list[Region] = []
        self.leaving: Callable[[int, int], None] = lambda start, end: None
        """Told of a range that is about to be freed, allocated or declared anew, while all is there still."""
        self.changed: Callable[[int, int, Region | None], None] = lambda start, end, region: None
        """Told of a range that has been freed, or given other rights (None), or that has just been allocated."""
        self.changes = 0
        """How often memory was allocated, freed or given other rights; `redeclare` does not count."""
        self.limit: int | None = None
        """Bytes that may be allocated; None if there is no limit but RAM."""
        self.heap_start = 0
        self.heap_end = 0
        """The program break, to the byte."""

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def adopt(self, regions: list[Region], heap_start: int, heap_end: int) -> None:
        """Take over the regions of a checkpoint, and give the guest's page tables their protections."""
        self._regions = list(regions)
        self.heap_start, self.heap_end = heap_start, heap_end
        for region in regions:
            self._protect(region.start, region.end, region.protection)

    def region_at(self, address: int) -> Region | None:
        """The region that an address lies in."""
        index = bisect_right(self._regions, address, key=lambda region: region.start) - 1
        if index >= 0 and address < self._regions[index].end:
            return self._regions[index]
        return None

    @property
    def allocated(self) -> int:
        """Bytes of all regions."""
        return sum(region.size for region in self._regions)

    def writable_and_executable(self) -> Region | None:
        """A region that is both, if there is one."""
        both = Prot.WRITE | Prot.EXEC
        return next((region for region in self._regions if region.protection & both == both), None)

    def holds(self, start: int, size: int) -> bool:
        """Whether every byte of the range is allocated."""
        end = start + size
        while start < end:
            region = self.region_at(start)
            if region is None:
                return False
            start = region.end
        return True

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any byte of [start, end) is allocated."""
        return bool(self._touching(start, end))

    def in_ram(self, start: int, size: int) -> bool:
        """Whether the range lies in guest RAM, allocated or not."""
        return self.ram.base <= start and start + size <= self.ram.end

    def find_room(self, size: int, align: int = PAGE_SIZE) -> int:
        """The highest free range of `size` bytes below the stack. Raises OutOfMemory."""
        stack = next((region for region in self._regions if region.kind is RegionKind.STACK), None)
        ceiling = (stack.start if stack else self.ram.end) - STACK_GUARD
        floor = max(self.heap_end, self.ram.base)
        for region in reversed(self._regions):
            if region.start >= ceiling:
                continue
            start = (ceiling - size) & -align
            if start >= max(region.end, floor) and start + size <= ceiling:
                return start
            ceiling = min(ceiling, region.start)
        start = (ceiling - size) & -align
        if start >= floor:
            return start
        raise OutOfMemory(size)

    # The kernel's view is changed first: if it refuses (OutOfMemory), nothing has changed.

    def map(self, region: Region) -> None:
        """Allocate a range that must be empty of data: fresh, or unmapped before. Raises OutOfMemory."""
        self._require_room(region)
        self._protect(region.start, region.end, region.protection)
        self._cut(region.start, region.end)
        self._insert(region)
        self.changed(*region[:2], region)

    def replace(self, region: Region) -> None:
        """Allocate a range, with zeros in it, in place of whatever was there. Raises OutOfMemory."""
        self._require_room(region)
        self._protect(region.start, region.end, region.protection)
        self.leaving(region.start, region.end)
        for piece in self._cut(region.start, region.end):
            self.ram.discard((piece.start - self.ram.base) // PAGE_SIZE, piece.size // PAGE_SIZE)
        self._insert(region)
        self.changed(*region[:2], region)

    def redeclare(self, region: Region) -> None:
        """Say anew what an allocated range is for, and give it its rights; its contents stay. Raises OutOfMemory."""
        changes = self.changes
        self._protect(region.start, region.end, region.protection)
        self.leaving(region.start, region.end)
        self._cut(region.start, region.end)
        self._insert(region)
        self.changes = changes
        self.changed(*region[:2], None)

    def unmap(self, start: int, end: int) -> None:
        """Free a range: no access, no memory, zeros when it is allocated again. Raises OutOfMemory."""
        pieces = self._touching(start, end)
        if not pieces:
            return
        start, end = max(start, pieces[0].start), min(end, pieces[-1].end)
        self._protect(start, end, Prot.NONE)
        self.leaving(start, end)
        for piece in self._cut(start, end):
            self.ram.discard((piece.start - self.ram.base) // PAGE_SIZE, piece.size // PAGE_SIZE)
        self.changed(start, end, None)

    def protect(self, start: int, end: int, protection: Prot) -> None:
        """Change the protection of an allocated range. Raises OutOfMemory."""
        self._protect(start, end, protection)
        for region in self._cut(start, end):
            self._insert(region._replace(protection=protection))
        self.changed(start, end, None)

    def set_break(self, address: int) -> bool:
        """Move the end of the heap; False if there is no room."""
        old, new = page_up(self.heap_end), page_up(address)
        if address < self.heap_start or not self.in_ram(self.heap_start, new - self.heap_start):
            return False
        if new > old:
            if self.overlaps(old, new + STACK_GUARD):
                return False
            self.map(Region(old, new, Prot.READ | Prot.WRITE, RegionKind.HEAP))
        elif new < old:
            self.unmap(new, old)
        self.heap_end = address
        return True

    def _require_room(self, region: Region) -> None:
        if self.limit is None:
            return
        pieces = self._touching(region.start, region.end)
        there = sum(min(piece.end, region.end) - max(piece.start, region.start) for piece in pieces)
        if self.allocated - there + region.size > self.limit:
            raise OutOfMemory(region.size)

    def _protect(self, start: int, end: int, protection: Prot) -> None:
        first, last = (start - self.ram.base) // PAGE_SIZE, (end - self.ram.base) // PAGE_SIZE
        if self.ram.protection.count(protection, first, last) != last - first:
            if protection & Prot.WRITE and self.ram.unmeasured is not None:
                self.ram.unmeasured.about_to_change(first, last - first)
            self._apply(start, end - start, protection)
            set_all(self.ram.protection, first, last - first, protection)

    def _touching(self, start: int, end: int) -> list[Region]:
        """The regions that have a part in [start, end)."""
        first = bisect_right(self._regions, start, key=lambda region: region.end)
        last = bisect_left(self._regions, end, key=lambda region: region.start)
        return self._regions[first:last]

    def _cut(self, start: int, end: int) -> list[Region]:
        """Take [start, end) out of the regions; returns the pieces taken."""
        self.changes += 1
        whole = self._touching(start, end)
        if not whole:
            return []
        first = bisect_right(self._regions, start, key=lambda region: region.end)
        left = [whole[0]._replace(end=start)] if whole[0].start < start else []
        right = [whole[-1]._replace(start=end)] if whole[-1].end > end else []
        self._regions[first : first + len(whole)] = left + right
        return [part._replace(start=max(part.start, start), end=min(part.end, end)) for part in whole]

    def _insert(self, region: Region) -> None:
        index = bisect_right(self._regions, region.start, key=lambda other: other.start)
        self._regions.insert(index, region)
        for at in (index, index - 1):
            if 0 <= at < len(self._regions) - 1:
                first, second = self._regions[at : at + 2]
                alike = (first.protection, first.kind) == (second.protection, second.kind)
                if alike and first.end == second.start:
                    self._regions[at : at + 2] = [first._replace(end=second.end)]
