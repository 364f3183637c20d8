"""Loads the chunks of a checkpoint into guest RAM: all at once, or in the background while the guest runs.

Chunks are read in groups that lie next to each other in the file, with one read a group, by as many threads as
there are CPUs; reading, decompressing and placing all happen outside the interpreter lock. Before the guest runs,
pages are written straight into the memory file; afterwards only through DeferredPages, which places each page at once
and only once. Background loading follows the guest: what lies behind the chunk that it waited for last comes first.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Protocol

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.workers import share_out
from memvm.errors import BadPage, CheckpointError, GuestStateError
from memvm.linux.own_threads import Thread
from memvm.memory.deferred import Chunk, DeferredPages
from memvm.memory.engine import GuestGone
from memvm.memory.pages import DEFERRED, PageRun, count_flag, pages_in, runs_of
from memvm.units import KIB, MIB, PAGE_SIZE

Progress = Callable[[int, int], None]


class EmptyPages(Protocol):
    """Where pages are put that nobody uses yet: guest RAM, or a template."""

    def copy_in(self, first: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Fill neighbouring pages."""


GROUP_BYTES = 1 * MIB + 64 * KIB
"""Room for sixteen chunks of sixteen pages, none of which could be compressed."""
_MOST_HELD = 512
"""Pages that are decompressed before they are written to guest RAM."""
_AHEAD = 3
"""Groups behind the one where somebody waits that are loaded first."""
_NICENESS = 10


class CheckpointSource:
    """A checkpoint as the source of deferred pages."""

    def __init__(self, file: Chain) -> None:
        self.file = file
        self.last_asked_for = -1
        """The chunk that somebody waited for last: what lies behind it is likely needed next."""

    def chunk_of(self, page: int) -> int:
        """The chunk that has a page."""
        chunk = self.file.index.chunk_of(page)
        if chunk is None:
            raise BadPage(page, f"{self.file.path}: page {page} is deferred, but in no chunk")
        return chunk

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The pages that a chunk has."""
        return self.file.index.runs_of(chunk)

    def load(self, chunk: int) -> Chunk:
        """Read, check and decompress one chunk. Raises BadPage."""
        self.last_asked_for = chunk
        runs = self.file.index.runs_of(chunk)
        try:
            return Chunk(runs, self.file.decompress(chunk, self.file.read_frame(chunk)))
        except CheckpointError as error:
            message = f"{pages_text(runs)} of guest RAM could not be verified: {error.message}"
            raise BadPage(runs[0].first, message, hint=error.hint) from error


def pages_text(runs: Iterable[PageRun]) -> str:
    """The pages of a chunk in words, ascending: "pages 3, 7 to 9"."""
    pages = sorted(page for run in runs for page in range(run.first, run.end))
    shown = [f"{run.first} to {run.end - 1}" if run.count > 1 else str(run.first) for run in runs_of(pages)]
    return ("pages " if len(pages) > 1 else "page ") + ", ".join(shown)


def chunk_groups(file: Chain) -> list[range]:
    """All chunks, in groups that lie next to each other and are to be read at once.

    A group begins and ends with a chunk that has pages; where none has, there is no group.
    """
    size = max(1, GROUP_BYTES // file.header.max_frame_size)
    alive = file.index.alive
    groups = []
    for of_one_file in file.index.files:
        for start in range(of_one_file.start, of_one_file.stop, size):
            stop = min(start + size, of_one_file.stop)
            first = alive.find(1, start, stop)
            if first >= 0:
                groups.append(range(first, alive.rfind(1, first, stop) + 1))
    return groups


class _Groups:
    """Groups to be handed out: each once, in order, but first those that are about to be needed."""

    def __init__(self, groups: list[range]) -> None:
        self._groups = groups
        self._starts = [group.start for group in groups]
        self._taken = bytearray(len(groups))

    def next(self, wanted: int = -1) -> range | None:
        """The next group: one of those behind that of chunk `wanted`, if they are still there.

        The group itself comes later: whoever asked for the chunk is working through it already. Not for several
        threads at once.
        """
        place = -1
        if wanted >= 0:
            behind = bisect_right(self._starts, wanted)
            place = self._taken.find(0, behind, behind + _AHEAD)
        if place < 0:
            place = self._taken.find(0)
        if place < 0:
            return None
        self._taken[place] = 1
        return self._groups[place]


def load_all(file: Chain, ram: EmptyPages, progress: Progress) -> None:
    """Load every chunk, before the guest runs. Raises CheckpointError, and what `progress` raises."""
    total = file.index.data_pages * PAGE_SIZE
    done = [0]

    def load(group: range) -> None:
        done[0] += pages_in(_load_group(file, ram, group)) * PAGE_SIZE

    groups = iter(chunk_groups(file))
    share_out(lambda: next(groups, None), lambda: load, lambda: progress(done[0], total), name="load")
    progress(total, total)


def load_ahead(file: Chain, ram: EmptyPages, fetch: Callable[[], range | None]) -> list[PageRun]:
    """Load the groups of chunks that `fetch` gives, each with one read; returns the pages that are there now.

    Before the guest runs. Where a chunk is damaged its group stays away too: it is left to whoever touches it.
    """
    there: list[PageRun] = []

    def load(group: range) -> None:
        try:
            there.extend(_load_group(file, ram, group))
        except CheckpointError:  # told to whoever needs the page, and only then
            return

    share_out(fetch, lambda: load, lambda: None, name="load")
    return there


def _load_group(file: Chain, ram: EmptyPages, group: range) -> list[PageRun]:
    """Load some chunks; neighbouring pages of several chunks are written at once. Returns their pages."""
    frames = file.read_frames(group[0], group[-1])
    alive = [chunk for chunk in group if file.index.alive[chunk]]
    step = max(1, _MOST_HELD // file.header.chunk_pages)
    there: list[PageRun] = []
    for start in range(0, len(alive), step):
        chunks = alive[start : start + step]
        contents = file.decompress_together(chunks, [frames[chunk - group[0]] for chunk in chunks])
        there += _write(ram, chain.from_iterable(contents))
    return there


def _write(ram: EmptyPages, contents: Iterable[tuple[PageRun, memoryview]]) -> list[PageRun]:
    """Put runs of pages where they belong, with one call for neighbours. Returns the runs, neighbours united."""
    there: list[PageRun] = []
    pieces: list[bytes | memoryview] = []
    start = end = 0
    for (first, count), pages in contents:
        if pieces and first != end:
            ram.copy_in(start, pieces)
            there.append(PageRun(start, end - start))
            pieces = []
        if not pieces:
            start = first
        pieces.append(pages)
        end = first + count
    if pieces:
        ram.copy_in(start, pieces)
        there.append(PageRun(start, end - start))
    return there


class BackgroundLoader:
    """Loads deferred pages while the guest runs, at low priority: what the guest touches goes ahead."""

    def __init__(
        self, source: CheckpointSource, deferred: DeferredPages, failed: Callable[[BaseException], None]
    ) -> None:
        self._source = source
        self._deferred = deferred
        self._failed = failed
        self._groups = _Groups(chunk_groups(source.file))
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin loading."""
        self._thread = Thread(target=self._run, name="load")
        self._thread.start()

    def _run(self) -> None:
        try:
            share_out(self._next, lambda: self._load, lambda: None, name="load", niceness=_NICENESS, bound=True)
            if not self._stopping:
                self._deferred.finish()
        except (GuestGone, GuestStateError):
            return
        except BaseException as error:  # noqa: BLE001 - the machine ends the guest and reports it
            self._failed(error)

    def _next(self) -> range | None:
        return None if self._stopping else self._groups.next(self._source.last_asked_for)

    def _load(self, group: range) -> None:
        flags = self._deferred.ram.flags
        index = self._source.file.index
        wanted = [chunk for chunk in group if any(count_flag(flags, DEFERRED, *run) for run in index.runs_of(chunk))]
        if not wanted:
            return
        try:
            frames = self._source.file.read_frames(group[0], group[-1])
        except CheckpointError:  # one of them is bad: find out which
            for chunk in wanted:
                self._deferred.demand(chunk)
            return
        for chunk in wanted:
            try:
                data = self._source.file.decompress(chunk, frames[chunk - group[0]])
            except CheckpointError:
                self._deferred.demand(chunk)
                continue
            self._deferred.deliver(Chunk(index.runs_of(chunk), data))

    def stop(self) -> None:
        """End the threads. The file is closed later: whoever answers faults may still be reading it."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
