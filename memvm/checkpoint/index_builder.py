"""The index while a file is being written: what was said of a page last is what counts.

Chunks are given in one order, in which a later one counts, and may be in the file in another: `place` says in which.
A page is given once, or else said to be superseded in between. Which entries that takes away is worked out at the end,
when all are known: each superseded page remembers how long the columns were, and only entries before that lose it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from operator import ne

from memvm.checkpoint.format import HEADER_SIZE, FileHeader
from memvm.checkpoint.index import IndexCounts, PageIndex
from memvm.memory.pages import PageRun

_U32_MAX = (1 << 32) - 1
_Lengths = tuple[int, int, int]


class IndexBuilder:
    """Takes entries as they are made; `finish` makes the index of them."""

    def __init__(self, header: FileHeader) -> None:
        self._header = header
        self.index = PageIndex(IndexCounts(0, 0, 0))
        self._placed = array("I")
        """The chunks in the order in which the file has them."""
        self._superseded: dict[int, _Lengths] = {}
        """Pages with the lengths of the columns of runs, zero runs and inherited runs at that time."""
        self._fixed: _Lengths = (0, 0, 0)
        """Entries before these may not grow any more: they may have lost pages."""

    def add_chunks(self, lengths: Sequence[int], checksums: Sequence[int], runs: Sequence[Sequence[PageRun]]) -> int:
        """Notes the next chunks, an item each in all three. Returns the number of the first.

        Raises ValueError, having noted nothing, if a file may not have such chunks.
        """
        for length, chunk_runs in zip(lengths, runs, strict=True):
            pages = sum(run.count for run in chunk_runs)
            if not 1 <= pages <= self._header.chunk_pages or not all(map(self._in_ram, chunk_runs)):
                raise ValueError(f"a chunk of the pages {list(chunk_runs)!r}")
            if not 0 < length <= self._header.max_frame_size:
                raise ValueError(f"a chunk of {length} bytes for {pages} pages")
        index, first = self.index, len(self.index.run_end)
        for chunk_runs in runs:
            for run in chunk_runs:
                index.run_first.append(run.first)
                index.run_count.append(run.count)
            index.run_end.append(len(index.run_first))
        index.chunk_length.extend(lengths)
        index.chunk_checksum.extend(checksums)
        return first

    def place(self, chunks: Sequence[int]) -> None:
        """The file has these chunks next."""
        self._placed.extend(chunks)

    def add_zero(self, run: PageRun) -> None:
        """Notes zero pages, in one run with those just before. Raises ValueError if they are not in RAM."""
        self._add(self.index.zero_first, self.index.zero_count, run, self._fixed[1])

    def add_inherited(self, run: PageRun) -> None:
        """Notes pages that are as in the parent, likewise."""
        self._add(self.index.inherited_first, self.index.inherited_count, run, self._fixed[2])

    def supersede(self, run: PageRun) -> None:
        """What was said of these pages so far, if anything, counts no more. Raises ValueError likewise."""
        self._require_in_ram(run)
        index = self.index
        self._fixed = (len(index.run_first), len(index.zero_first), len(index.inherited_first))
        self._superseded.update(dict.fromkeys(range(run.first, run.end), self._fixed))

    def finish(self) -> PageIndex:
        """The index, checked as a reader checks it. Raises FormatError if a page was given twice.

        All chunks must have been placed.
        """
        index = self.index
        if self._superseded:
            self._take_away()
        if any(map(ne, self._placed, count())):
            self._put_in_order()
        *offsets, end = accumulate(index.chunk_length, initial=HEADER_SIZE)
        index.chunk_offset = array("Q", offsets)
        index.check(self._header, end)
        return index

    def _add(self, firsts: array[int], counts: array[int], run: PageRun, fixed: int) -> None:
        self._require_in_ram(run)
        grows = len(firsts) > fixed and firsts[-1] + counts[-1] == run.first
        if grows and counts[-1] + run.count <= _U32_MAX:
            counts[-1] += run.count
            return
        # The largest RAM there can be has one page more than a u32 counts.
        for start in range(run.first, run.end, _U32_MAX):
            firsts.append(start)
            counts.append(min(_U32_MAX, run.end - start))

    def _require_in_ram(self, run: PageRun) -> None:
        if not self._in_ram(run):
            raise ValueError(f"no pages of RAM: {run!r}")

    def _in_ram(self, run: PageRun) -> bool:
        return run.count > 0 and 0 <= run.first <= self._header.ram_pages - run.count

    def _take_away(self) -> None:
        """Runs in chunks are cut at superseded pages, and those numbered; other runs just lose them."""
        index = self.index
        pages = array("Q", sorted(self._superseded))
        firsts, counts, ends, dead = array("I"), array("H"), array("I"), array("I")
        run = 0
        for end in index.run_end:
            while run < end:
                for piece, lost in self._pieces(pages, 0, run, PageRun(index.run_first[run], index.run_count[run])):
                    if lost:
                        dead.append(len(firsts))
                    firsts.append(piece.first)
                    counts.append(piece.count)
                run += 1
            ends.append(len(firsts))
        index.run_first, index.run_count, index.run_end, index.superseded = firsts, counts, ends, dead
        index.zero_first, index.zero_count = self._left_of(pages, 1, index.zero_first, index.zero_count)
        index.inherited_first, index.inherited_count = self._left_of(
            pages, 2, index.inherited_first, index.inherited_count
        )

    def _put_in_order(self) -> None:
        """Chunks, and with them their runs, as they are in the file."""
        index, placed = self.index, self._placed
        firsts, counts, ends, dead = array("I"), array("H"), array("I"), array("I")
        for chunk in placed:
            runs = slice(index.run_end[chunk - 1] if chunk else 0, index.run_end[chunk])
            begin, end = (bisect_left(index.superseded, run) for run in (runs.start, runs.stop))
            dead.extend(len(firsts) + run - runs.start for run in index.superseded[begin:end])
            firsts.extend(index.run_first[runs])
            counts.extend(index.run_count[runs])
            ends.append(len(firsts))
        index.run_first, index.run_count, index.run_end, index.superseded = firsts, counts, ends, dead
        index.chunk_length = array("I", map(index.chunk_length.__getitem__, placed))
        index.chunk_checksum = array("I", map(index.chunk_checksum.__getitem__, placed))

    def _left_of(
        self, pages: array[int], column: int, firsts: array[int], counts: array[int]
    ) -> tuple[array[int], array[int]]:
        left_first, left_count = array("I"), array("I")
        for number, run in enumerate(map(PageRun, firsts, counts)):
            for piece, lost in self._pieces(pages, column, number, run):
                if not lost:
                    left_first.append(piece.first)
                    left_count.append(piece.count)
        return left_first, left_count

    def _pieces(self, pages: array[int], column: int, number: int, run: PageRun) -> Iterator[tuple[PageRun, bool]]:
        """An entry cut where it has lost pages: the pieces, and whether each is lost."""
        begin, end = bisect_left(pages, run.first), bisect_left(pages, run.end)
        lost = [page for page in pages[begin:end] if number < self._superseded[page][column]]
        done = run.first
        place = 0
        while place < len(lost):
            first = lost[place]
            if first > done:
                yield PageRun(done, first - done), False
            done = first
            while place < len(lost) and lost[place] == done:
                place, done = place + 1, done + 1
            yield PageRun(first, done - first), True
        if done < run.end:
            yield PageRun(done, run.end - done), False
