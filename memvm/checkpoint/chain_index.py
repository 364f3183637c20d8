"""Which chunk of which file has each page, when a checkpoint inherits pages from its parents.

Chunks are numbered through all files of the chain, the youngest file first. A page is in the youngest file that says
anything of it but "inherited". So of a parent's chunks only some pages may be wanted, and those alone count as theirs
here; a chunk of which nothing is wanted is not *alive*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from memvm.checkpoint.index import PageIndex
from memvm.memory.pages import PageRun, common, runs_of, united_runs

_end_of = attrgetter("end")


class _Member:
    """One file's part of the chain."""

    def __init__(self, index: PageIndex, base: int, wanted: list[PageRun] | None) -> None:
        self.index = index
        self.chunks = range(base, base + index.chunk_count)
        """Its chunks' numbers in the chain."""
        self.wanted = wanted
        """The pages that younger files take from here, ascending; None if that is all of them."""
        self.inherited = united_runs(index.iter_inherited_runs())
        self._inherited_first = [run.first for run in self.inherited]
        self._wanted_end = [] if wanted is None else list(map(_end_of, wanted))

    def inherits(self, page: int) -> bool:
        place = bisect_right(self._inherited_first, page) - 1
        return place >= 0 and page < self.inherited[place].end

    def among_wanted(self, runs: Iterable[PageRun]) -> Iterator[PageRun]:
        """What of some ascending runs is wanted."""
        return iter(runs) if self.wanted is None else common(runs, self.wanted)

    def places_of(self, chunk: int) -> list[tuple[PageRun, int]]:
        """The wanted runs of a chunk (numbered in this file), each with the chunk's pages that come before it."""
        places: list[tuple[PageRun, int]] = []
        before = 0
        for run in self.index.runs_of(chunk):
            pieces = [run] if self.wanted is None else self._wanted_of(run, self.wanted)
            places.extend((piece, before + piece.first - run.first) for piece in pieces)
            before += run.count
        return places

    def frame_places_of(self, chunk: int) -> list[tuple[PageRun, int]]:
        """The same, with how many of the frame's pages come before each, superseded ones too."""
        places = self.index.places_of(chunk)
        if self.wanted is None:
            return places
        return [
            (piece, before + piece.first - run.first)
            for run, before in places
            for piece in self._wanted_of(run, self.wanted)
        ]

    def _wanted_of(self, run: PageRun, wanted: list[PageRun]) -> Iterator[PageRun]:
        for place in range(bisect_right(self._wanted_end, run.first), len(wanted)):
            first, end = max(run.first, wanted[place].first), min(run.end, wanted[place].end)
            if first >= end:
                return
            yield PageRun(first, end - first)

    def alive(self) -> bytes:
        """A byte a chunk: 1 if any of its pages is wanted."""
        if self.wanted is None and not self.index.superseded:
            return b"\1" * len(self.chunks)
        alive = bytearray(len(self.chunks))
        place, wanted = 0, [PageRun(0, 1 << 32)] if self.wanted is None else self.wanted
        for run, chunk in self.index.sorted_runs():
            while place < len(wanted) and wanted[place].end <= run.first:
                place += 1
            if place == len(wanted):
                break
            if wanted[place].first < run.end:
                alive[chunk] = 1
        return bytes(alive)


class ChainIndex:
    """Where each page is, over all files of a chain. For reading only."""

    def __init__(self, indexes: Sequence[PageIndex]) -> None:
        """`indexes` of the files, the youngest first."""
        self._members: list[_Member] = []
        wanted: list[PageRun] | None = None
        base = 0
        for index in indexes:
            member = _Member(index, base, wanted)
            wanted = list(member.among_wanted(member.inherited))
            base += index.chunk_count
            self._members.append(member)
        self.chunk_count = base
        """Chunks of all files, also of those that are not alive."""
        self.alive = b"".join(member.alive() for member in self._members)
        """A byte a chunk: whether any page is in it."""
        self._last_chunks = [member.chunks.stop - 1 for member in self._members]

    @property
    def files(self) -> list[range]:
        """The chunks of each file."""
        return [member.chunks for member in self._members]

    def place_of(self, chunk: int) -> tuple[int, int]:
        """Which file has a chunk, and what its number is there."""
        file = bisect_right(self._last_chunks, chunk - 1)
        return file, chunk - self._members[file].chunks.start

    def chunk_of(self, page: int) -> int | None:
        """The chunk that holds a page; None if the page is zero or a hole."""
        for member in self._members:
            chunk = member.index.chunk_of(page)
            if chunk is not None:
                return member.chunks.start + chunk
            if not member.inherits(page):
                break
        return None

    def chunks_with(self, marked: bytes | bytearray) -> list[range]:
        """The chunks with any of the pages that have a 1 in `marked` (a byte for each page of RAM), ascending.

        Those of one range lie next to each other in one file.
        """
        ranges: list[range] = []
        for member in self._members:
            here = marked if member.wanted is None else _only(marked, member.wanted)
            base = member.chunks.start
            ranges += [range(base + run.first, base + run.end) for run in runs_of(member.index.chunks_with(here))]
        return ranges

    def places_of(self, chunk: int) -> list[tuple[PageRun, int]]:
        """The pages of a chunk, each run with how many of its file's pages of that chunk come before it."""
        file, number = self.place_of(chunk)
        return self._members[file].places_of(number)

    def frame_places_of(self, chunk: int) -> list[tuple[PageRun, int]]:
        """The pages of a chunk, each run with how many pages its frame holds before it."""
        file, number = self.place_of(chunk)
        return self._members[file].frame_places_of(number)

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The pages of a chunk, in the order in which its frame holds them."""
        file, number = self.place_of(chunk)
        member = self._members[file]
        if member.wanted is None:
            return member.index.runs_of(number)
        return [run for run, _ in member.places_of(number)]

    def pages_from(self, file: int) -> list[PageRun]:
        """The data pages that come from one of the files, as ascending runs as long as can be."""
        member = self._members[file]
        return list(member.among_wanted(member.index.united_runs()))

    def is_cut(self, chunk: int) -> bool:
        """Whether a chunk's frame holds pages that are not the chain's."""
        file, number = self.place_of(chunk)
        pages = sum(run.count for run in self.runs_of(chunk))
        return pages != self._members[file].index.frame_pages(number)

    def united_runs(self) -> list[PageRun]:
        """All data pages, as ascending runs as long as can be."""
        return united_runs(run for member in self._members for run in member.among_wanted(member.index.united_runs()))

    def zero_runs(self) -> list[PageRun]:
        """All pages that were touched and are zero, likewise."""
        return united_runs(
            run for member in self._members for run in member.among_wanted(united_runs(member.index.iter_zero_runs()))
        )

    @property
    def data_pages(self) -> int:
        """Pages whose contents are in a chunk."""
        if len(self._members) == 1:
            return self._members[0].index.data_pages
        return sum(run.count for run in self.united_runs())


def _only(marked: bytes | bytearray, runs: Iterable[PageRun]) -> bytearray:
    """The marks of these pages, and no others."""
    only = bytearray(len(marked))
    for run in runs:
        only[run.first : run.end] = marked[run.first : run.end]
    return only
