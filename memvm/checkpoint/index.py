"""Which pages are in which chunk: columns of fixed-width numbers, read and checked at C speed.

A gigabyte of guest RAM has 16,384 chunks, and up to 262,144 runs if it is badly scattered. So the index
is kept as array.array, as it is in the file, and the checks go over whole columns with map and operator
instead of looking at a run at a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, chain, compress, islice, repeat
from operator import add, le, lt, ne, sub
from typing import NamedTuple

from memvm.checkpoint.format import COUNTS, HEADER_SIZE, FileHeader, FormatError
from memvm.memory.pages import PageRun

_LOOKED_AT_TOGETHER = 256
"""Runs: most of those that a save did not see used lie where no page was."""


class IndexCounts(NamedTuple):
    """How long the columns are."""

    chunks: int
    runs: int
    zero_runs: int
    inherited_runs: int = 0
    superseded_runs: int = 0

    @classmethod
    def unpack(cls, data: bytes, version: int) -> IndexCounts:
        """The first bytes of an index."""
        return cls(*COUNTS[version].unpack(data))

    def pack(self, version: int) -> bytes:
        layout = COUNTS[version]
        return layout.pack(*self[: layout.size // 8])

    def index_length(self, version: int) -> int:
        """Bytes of an index with these counts."""
        columns = self.chunks * 20 + self.runs * 6 + self.zero_runs * 8
        return COUNTS[version].size + columns + self.inherited_runs * 8 + self.superseded_runs * 4

    def check(self, header: FileHeader, index_length: int) -> None:
        """Raises FormatError unless such an index has `index_length` bytes and RAM has enough pages."""
        if self.index_length(header.version) != index_length:
            raise FormatError("the index is not as long as its counts say")
        if self.superseded_runs > self.runs:
            raise FormatError("the index has more superseded runs than runs")
        current = self.runs - self.superseded_runs + self.zero_runs + self.inherited_runs
        if self.chunks > self.runs or current > header.ram_pages:
            raise FormatError("the index has more chunks or runs than RAM has pages")


class PageIndex:
    """Where each page is. The arrays are for reading only.

    chunk_offset, chunk_length, chunk_checksum, run_end have an item a chunk; run_first, run_count an item a
    run of pages in chunks, in storage order; zero_first, zero_count an item a run of zero pages;
    inherited_first, inherited_count an item a run of pages that are as in the parent; superseded has the
    numbers of those runs in chunks whose pages are something else by now. Except in these arrays, a
    chunk's pages are those that are not superseded.
    """

    def __init__(self, counts: IndexCounts) -> None:
        # array's native numbers are the file's: memvm runs on x86-64 only, which is little endian.
        self.chunk_offset = array("Q", [0]) * counts.chunks
        self.chunk_length = array("I", [0]) * counts.chunks
        self.chunk_checksum = array("I", [0]) * counts.chunks
        self.run_end = array("I", [0]) * counts.chunks
        self.run_first = array("I", [0]) * counts.runs
        self.zero_first = array("I", [0]) * counts.zero_runs
        self.zero_count = array("I", [0]) * counts.zero_runs
        self.inherited_first = array("I", [0]) * counts.inherited_runs
        self.inherited_count = array("I", [0]) * counts.inherited_runs
        self.superseded = array("I", [0]) * counts.superseded_runs
        self.run_count = array("H", [0]) * counts.runs
        self._sorted_first = self.run_first
        self._order: array[int] | None = None

    @property
    def columns(self) -> tuple[array[int], ...]:
        """The arrays in the order in which the file has them: wide numbers first, so that all are aligned."""
        return (
            self.chunk_offset,
            self.chunk_length,
            self.chunk_checksum,
            self.run_end,
            self.run_first,
            self.zero_first,
            self.zero_count,
            self.inherited_first,
            self.inherited_count,
            self.superseded,
            self.run_count,
        )

    @property
    def counts(self) -> IndexCounts:
        columns = (self.chunk_offset, self.run_first, self.zero_first, self.inherited_first, self.superseded)
        return IndexCounts(*map(len, columns))

    def parts(self, version: int) -> Iterator[bytes | memoryview]:
        """The bytes of the index, in order."""
        yield self.counts.pack(version)
        for column in self.columns:
            if column:  # memoryview casts nothing that is empty
                yield memoryview(column).cast("B")

    @property
    def chunk_count(self) -> int:
        return len(self.chunk_offset)

    @property
    def data_pages(self) -> int:
        """Pages whose contents are in a chunk of this file."""
        return sum(self.run_count) - self.superseded_pages

    @property
    def zero_pages(self) -> int:
        return sum(self.zero_count)

    @property
    def inherited_pages(self) -> int:
        """Pages that are as in the parent."""
        return sum(self.inherited_count)

    @property
    def superseded_pages(self) -> int:
        """How many pages' worth of bytes in chunks is of no use any more."""
        return sum(map(self.run_count.__getitem__, self.superseded))

    def chunk_of(self, page: int) -> int | None:
        """The chunk that holds a page; None if no chunk of this file does."""
        place = bisect_right(self._sorted_first, page) - 1
        if place < 0:
            return None
        run = place if self._order is None else self._order[place]
        if page >= self.run_first[run] + self.run_count[run]:
            return None
        return bisect_right(self.run_end, run)

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The pages of a chunk, in the order in which its frame holds them."""
        if self.superseded:
            return [run for run, _ in self.places_of(chunk)]
        runs = self._runs_slice(chunk)
        return list(map(PageRun, self.run_first[runs], self.run_count[runs]))

    def places_of(self, chunk: int) -> list[tuple[PageRun, int]]:
        """The pages of a chunk, each run with how many pages its frame holds before it."""
        runs = self._runs_slice(chunk)
        if not self.superseded:  # at the speed of C: a badly scattered working set has a run for every page or two
            counts = self.run_count[runs]
            return list(zip(map(PageRun, self.run_first[runs], counts), accumulate(counts, initial=0), strict=False))
        begin, end = (bisect_left(self.superseded, number) for number in (runs.start, runs.stop))
        superseded = self.superseded[begin:end]
        places, before = [], 0
        for number in range(runs.start, runs.stop):
            count = self.run_count[number]
            if number not in superseded:
                places.append((PageRun(self.run_first[number], count), before))
            before += count
        return places

    def chunks_with(self, marked: bytes | bytearray) -> list[int]:
        """The chunks with any of the pages that have a 1 in `marked`, which has a byte for each page of RAM."""
        find = marked.find
        hits: list[int] = []
        for start in range(0, len(self.run_first), _LOOKED_AT_TOGETHER):
            firsts, counts = (
                column[start : start + _LOOKED_AT_TOGETHER] for column in (self.run_first, self.run_count)
            )
            if find(1, min(firsts), max(firsts) + max(counts)) < 0:
                continue
            runs = enumerate(zip(firsts, counts, strict=True), start)
            hits += [number for number, (first, count) in runs if find(1, first, first + count) >= 0]
        if self.superseded:
            superseded = set(self.superseded)
            hits = [number for number in hits if number not in superseded]
        if len(self.run_end) == len(self.run_first):
            return hits
        return sorted(set(map(bisect_right, repeat(self.run_end), hits)))

    def frame_pages(self, chunk: int) -> int:
        """How many pages a chunk's frame holds, superseded ones too."""
        return sum(self.run_count[self._runs_slice(chunk)])

    def pages_of(self, chunk: int) -> int:
        """How many pages a chunk has."""
        return sum(run.count for run in self.runs_of(chunk)) if self.superseded else self.frame_pages(chunk)

    def sorted_runs(self) -> Iterator[tuple[PageRun, int]]:
        """All runs of data pages, ascending, each with its chunk."""
        numbers = range(len(self.run_first)) if self._order is None else self._order
        counts = map(self.run_count.__getitem__, numbers)
        if len(self.run_end) == len(self.run_first):
            return zip(map(PageRun, self._sorted_first, counts), numbers, strict=True)
        chunks = (bisect_right(self.run_end, number) for number in numbers)
        return zip(map(PageRun, self._sorted_first, counts), chunks, strict=True)

    def united_runs(self) -> list[PageRun]:
        """All data pages, as ascending runs as long as can be."""
        first = self._sorted_first
        counts = self.run_count if self._order is None else array("H", map(self.run_count.__getitem__, self._order))
        if not first:
            return []
        ends = list(map(add, first, counts))
        breaks = list(compress(range(1, len(ends)), map(ne, ends, islice(first, 1, None))))
        starts = [0, *breaks]
        lasts = [*breaks, len(ends)]
        return [PageRun(first[start], ends[last - 1] - first[start]) for start, last in zip(starts, lasts, strict=True)]

    def iter_zero_runs(self) -> Iterator[PageRun]:
        return map(PageRun, self.zero_first, self.zero_count)

    def iter_inherited_runs(self) -> Iterator[PageRun]:
        return map(PageRun, self.inherited_first, self.inherited_count)

    def _runs_slice(self, chunk: int) -> slice:
        return slice(self.run_end[chunk - 1] if chunk > 0 else 0, self.run_end[chunk])

    def check(self, header: FileHeader, storage_end: int) -> None:
        """Checks all that the columns say, and prepares `chunk_of`. Raises FormatError.

        `storage_end` is the offset in the file at which the last chunk has to end. Needed once after
        the columns were filled, and before anything else is asked.
        """
        self._check_chunks(header, storage_end)
        self._check_runs(header)
        self._sort_runs()
        self._check_disjoint()

    def _check_chunks(self, header: FileHeader, storage_end: int) -> None:
        if sum(self.chunk_length) != storage_end - HEADER_SIZE:
            raise FormatError("the chunks do not fill the storage blocks")
        if not self.chunk_length:
            return
        if min(self.chunk_length) == 0 or max(self.chunk_length) > header.max_frame_size:
            raise FormatError("a chunk has an impossible length")
        # The sum is right, so no partial sum is too large for a u64.
        offsets = accumulate(islice(self.chunk_length, self.chunk_count - 1), initial=HEADER_SIZE)
        if array("Q", offsets) != self.chunk_offset:
            raise FormatError("the chunks are not back to back")

    def _check_runs(self, header: FileHeader) -> None:
        if not _ascend(self.run_end) or (self.run_end[-1:] or [0])[0] != len(self.run_first):
            raise FormatError("the chunks' runs do not follow one another")
        if self.run_end and self.run_end[0] == 0:
            raise FormatError("chunk 0 has no pages")
        columns = (
            (self.run_first, self.run_count),
            (self.zero_first, self.zero_count),
            (self.inherited_first, self.inherited_count),
        )
        for first, count in columns:
            if not count:
                continue
            if min(count) == 0:
                raise FormatError("a run has no pages")
            if max(map(add, first, count)) > header.ram_pages:
                raise FormatError("a run is not in RAM")
        if len(self.run_end) == len(self.run_first):  # one run a chunk, as in most files
            most_pages = max(self.run_count, default=0)
        else:
            pages_before_run = list(accumulate(self.run_count, initial=0))
            pages_to_chunk_end = [0, *map(pages_before_run.__getitem__, self.run_end)]
            most_pages = max(map(sub, islice(pages_to_chunk_end, 1, None), pages_to_chunk_end))
        if most_pages > header.chunk_pages:
            raise FormatError(f"a chunk has {most_pages} pages, more than {header.chunk_pages}")
        if self.superseded and (not _ascend(self.superseded) or self.superseded[-1] >= len(self.run_first)):
            raise FormatError("the superseded runs do not ascend, or are none")

    def _sort_runs(self) -> None:
        if not self.superseded and _ascend(self.run_first):
            self._sorted_first, self._order = self.run_first, None
            return
        current = bytearray(b"\1") * len(self.run_first)
        for run in self.superseded:
            current[run] = 0
        order = sorted(compress(range(len(self.run_first)), current), key=self.run_first.__getitem__)
        self._sorted_first = array("I", map(self.run_first.__getitem__, order))
        self._order = array("I", order)

    def _check_disjoint(self) -> None:
        """No page is in two runs, superseded ones apart.

        Runs are disjoint exactly if, with all starts sorted and all ends sorted apart from them, the
        i-th end is not after start i + 1: then, of the runs that start at or before any page, all but one
        have ended there. What is in order already, or in a few such pieces, is sorted in linear time.
        """
        counts = self.run_count if self._order is None else map(self.run_count.__getitem__, self._order)
        starts = sorted(chain(self._sorted_first, self.zero_first, self.inherited_first))
        ends = sorted(
            chain(
                map(add, self._sorted_first, counts),
                map(add, self.zero_first, self.zero_count),
                map(add, self.inherited_first, self.inherited_count),
            )
        )
        if not all(map(le, ends, islice(starts, 1, None))):
            raise FormatError("a page is in two runs")


def _ascend(column: array[int]) -> bool:
    return all(map(lt, column, islice(column, 1, None)))
