"""Page metadata: what memvm knows of each page of guest RAM.

Pages are numbered from 0 at RAM_BASE. Two bytes a page: `protection` is what the guest asked for (Prot), and
`flags` says why a page must not be touched without asking first:

    bit 0  DEFERRED     contents are still in the checkpoint; nobody may read the page before it is loaded
    bit 1  GUARDED      a save still needs the contents as they are; nobody may change them before it has them
    bit 2  BAD          contents could not be verified; the page is an error for whoever touches it
    bit 3  HIDDEN       (mprotect engine) the guest's mapping has no rights, whatever `protection` says
    bit 4  READONLY     (mprotect engine) the guest's mapping lacks the right to write
    bit 5  TRACE_ACCESS  somebody wants to hear of the next access of any kind
    bit 6  TRACE_WRITE   somebody wants to hear of the next write
    bit 7  CLEAN         the page holds memory, and was not written since somebody last looked what was: the next
                         write is to be noted

A page may have many reasons at once. Each is cleared by who set it or has heard, and what the guest's mapping forbids
is given back only as far as no reason is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntFlag
from typing import NamedTuple

from memvm.units import PAGE_SIZE


class PageFlag(IntFlag):
    """One byte of page metadata."""

    NONE = 0
    DEFERRED = 1
    GUARDED = 2
    BAD = 4
    HIDDEN = 8
    READONLY = 16
    TRACE_ACCESS = 32
    TRACE_WRITE = 64
    CLEAN = 128


# Plain integers, because an attribute of an enum costs a tenth of the whole fault path.
DEFERRED, GUARDED, BAD, HIDDEN, READONLY, TRACE_ACCESS, TRACE_WRITE, CLEAN = (
    int(flag) for flag in list(PageFlag) if flag
)
TRACED = TRACE_ACCESS | TRACE_WRITE
WRITE_REASONS = GUARDED | TRACE_WRITE | CLEAN
"""Why the next write to a page must be a fault."""


class PageRun(NamedTuple):
    """`count` pages from page number `first`."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a run

    @property
    def end(self) -> int:
        """The number of the page behind the last one."""
        return self.first + self.count


_MASKS = (*(1 << bit for bit in range(8)), TRACED, WRITE_REASONS, DEFERRED | BAD | TRACE_ACCESS)
_SET = {mask: bytes(value | mask for value in range(256)) for mask in _MASKS}
_CLEAR = {mask: bytes(value & ~mask & 255 for value in range(256)) for mask in _MASKS}
_ONLY = {mask: bytes(int(bool(value & mask)) for value in range(256)) for mask in _MASKS}


_STEP = 1 << 13
"""Pages whose metadata is copied at once. Copies as large as all of it would stay with malloc when they are freed, and
in many clones that is more than the metadata itself."""


def set_flag(flags: bytearray, first: int, count: int, mask: int) -> None:
    """Set one flag (or TRACED, or WRITE_REASONS: here and below that is any of them) for a run of pages."""
    end = first + count
    while end - first > _STEP:
        set_flag(flags, first, _STEP, mask)
        first += _STEP
    flags[first:end] = flags[first:end].translate(_SET[mask])


def set_all(values: bytearray, first: int, count: int, value: int) -> None:
    """Give a run of pages the same metadata byte."""
    end = first + count
    while end - first > _STEP:
        values[first : first + _STEP] = bytes((value,)) * _STEP
        first += _STEP
    values[first:end] = bytes((value,)) * (end - first)


def clear_flag(flags: bytearray, first: int, count: int, mask: int) -> None:
    """Clear one flag for a run of pages."""
    flags[first : first + count] = flags[first : first + count].translate(_CLEAR[mask])


def count_flag(flags: bytearray, mask: int, first: int = 0, count: int | None = None) -> int:
    """How many pages of a run have the flag."""
    end = len(flags) if count is None else first + count
    return flags[first:end].translate(_ONLY[mask]).count(1)


def flagged_runs(flags: bytearray, first: int, count: int, mask: int) -> Iterator[PageRun]:
    """The maximal runs of pages with the flag, among `count` pages from `first`."""
    return _runs(flags[first : first + count].translate(_ONLY[mask]), first, 1)


def unflagged_runs(flags: bytearray, first: int, count: int, mask: int) -> Iterator[PageRun]:
    """The maximal runs of pages without the flag, among `count` pages from `first`."""
    return _runs(flags[first : first + count].translate(_ONLY[mask]), first, 0)


def _runs(selected: bytearray, first: int, wanted: int) -> Iterator[PageRun]:
    position = selected.find(wanted)
    while position >= 0:
        end = selected.find(1 - wanted, position)
        if end < 0:
            end = len(selected)
        yield PageRun(first + position, end - position)
        position = selected.find(wanted, end)


def equal_runs(values: bytearray, first: int, count: int) -> Iterator[tuple[PageRun, int]]:
    """The maximal runs of pages with the same metadata byte, and that byte."""
    position, end = first, first + count
    while position < end:
        value = values[position]
        # lstrip finds the end of the run at the speed of C
        rest = len(values[position:end].lstrip(bytes((value,))))
        yield PageRun(position, end - rest - position), value
        position = end - rest


def runs_of(pages: list[int]) -> list[PageRun]:
    """Sorted, distinct page numbers as runs."""
    runs: list[PageRun] = []
    for page in pages:
        if runs and runs[-1].end == page:
            runs[-1] = PageRun(runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(PageRun(page, 1))
    return runs


def united_runs(runs: Iterable[PageRun]) -> list[PageRun]:
    """All pages of some runs, which may overlap, as ascending runs as long as can be."""
    united: list[PageRun] = []
    first = end = -1
    for start, count in sorted(runs):
        if start > end:
            if end > first:
                united.append(PageRun(first, end - first))
            first, end = start, start + count
        else:
            end = max(end, start + count)
    if end > first:
        united.append(PageRun(first, end - first))
    return united


def merged_runs(runs: Iterable[PageRun], gap: int) -> list[PageRun]:
    """Ascending runs, with gaps of less than `gap` pages between them closed."""
    merged: list[PageRun] = []
    for run in runs:
        if merged and run.first - merged[-1].end < gap:
            merged[-1] = PageRun(merged[-1].first, run.end - merged[-1].first)
        else:
            merged.append(run)
    return merged


def common(runs: Iterable[PageRun], others: Sequence[PageRun]) -> Iterator[PageRun]:
    """The pages that are in both; each is ascending and without overlap, and so is the result."""
    place = 0
    for run in runs:
        while place < len(others) and others[place].end <= run.first:
            place += 1
        for other in range(place, len(others)):
            first, end = max(run.first, others[other].first), min(run.end, others[other].end)
            if first >= end:
                break
            yield PageRun(first, end - first)


def without(runs: Iterable[PageRun], others: Sequence[PageRun]) -> Iterator[PageRun]:
    """The pages of `runs` that are not in `others`; each is ascending and without overlap, and so is the result."""
    edges = [0, *(edge for run in others for edge in (run.first, run.end)), 1 << 33]
    gaps = [PageRun(first, end - first) for first, end in zip(edges[::2], edges[1::2], strict=True) if first < end]
    return common(runs, gaps)


def pages_in(runs: Iterable[PageRun]) -> int:
    """How many pages runs have that do not overlap."""
    return sum(run.count for run in runs)


def page_span(address: int, size: int, base: int) -> tuple[int, int]:
    """The first page and the count of pages that `size` bytes (at least 1) at `address` touch."""
    first = (address - base) // PAGE_SIZE
    last = (address + size - 1 - base) // PAGE_SIZE
    return first, last - first + 1
