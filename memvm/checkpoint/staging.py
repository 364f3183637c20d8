"""Gathers pages into chunks and compresses them on all cores, on their way into the staging buffer.

Pages come in batches of up to BATCH_PAGES. A batch is one worker thread's affair: it copies the pages into its buffer,
leaves out zero pages, cuts the rest into chunks, compresses them while they are in its CPU's cache, and puts them
into the staging buffer; the interpreter lock is free for most of that. So there is never more under way than a batch a
CPU, and batches are in the file in the order in which they were done.

While a guest is saved live, workers run at low priority, and not on a CPU that it keeps busy: they take the time that
it leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.workers import share_out
from memvm.memory.pages import PageRun
from memvm.memory.snapshot import SLAB_PAGES
from memvm.units import PAGE_SIZE

CHUNK_PAGES = 16
"""As many as the kernel's fault-around: a demand fault brings in its neighbours at the price of one."""
BATCH_PAGES = SLAB_PAGES
"""One slab of kept pages is a batch too."""
_ZEROS = memoryview(bytes(BATCH_PAGES * PAGE_SIZE))
_NICENESS = 19
"""A guest that faults while it is saved is half as fast again with this as with 10, and the save takes no longer."""


Piece = bytes | bytearray | memoryview
"""What zstandard compresses."""


class Batch(NamedTuple):
    """Pages that are to be staged together, BATCH_PAGES at most."""

    fill: Callable[[memoryview], list[tuple[PageRun, int]]]
    """Puts them into a buffer; returns those that are to be staged, with their offsets there. A worker calls it."""
    active: bool = False
    """Whether the guest was seen to use them: they are stored together."""


class Stager:
    """One save's way from pages to the file."""

    def __init__(self, writer: CheckpointWriter, level: int, *, spare: Callable[[], set[int]] | None = None) -> None:
        """`level` is zstd's. `spare` tells which CPUs others leave: workers take only the time there that is left."""
        self._writer = writer
        self._level = level
        self.spare = spare
        self._lock = threading.Lock()
        self.pages_done = 0

    def stage(self, fetch: Callable[[], Batch | None], watch: Callable[[], None]) -> None:
        """Stage all batches that `fetch` gives; see share_out for both, and for what is raised."""
        niceness = 0 if self.spare is None else _NICENESS
        share_out(fetch, self._begin_work, watch, name="compress", niceness=niceness, spare=self.spare)

    def note_done(self, pages: int) -> None:
        """Pages went to the file another way."""
        with self._lock:
            self.pages_done += pages

    def _begin_work(self) -> Callable[[Batch], None]:
        from zstandard import ZstdCompressor

        # Each worker's own: making them costs as much as some chunks do.
        buffer = bytearray(BATCH_PAGES * PAGE_SIZE)
        compressor = ZstdCompressor(level=self._level)

        def compress(pieces: list[Piece]) -> list[bytes]:
            if not pieces:
                return []
            frames = compressor.multi_compress_to_buffer(pieces)
            return [frames[number].tobytes() for number in range(len(frames))]

        return lambda batch: self._stage(batch, buffer, compress)

    def _stage(self, batch: Batch, buffer: bytearray, compress: Callable[[list[Piece]], list[bytes]]) -> None:
        zeros: list[PageRun] = []
        with memoryview(buffer) as view:
            parts = batch.fill(view)
            groups = list(_grouped(_without_zeros(buffer, parts, zeros), CHUNK_PAGES))
            # All in one call: each lets go of the interpreter lock, and threads that ask for it at once cost each other
            # a wake-up. The guest's faults are answered by one of them.
            frames = compress([_contents(view, group) for group in groups])
        checksums = list(map(self._writer.checksum, frames))
        runs = [[run for run, _ in group] for group in groups]
        pages = sum(run.count for part in (*runs, zeros) for run in part)
        for run in zeros:
            self._writer.add_zero(run)
        if frames:
            self._writer.add_chunks(frames, checksums, runs, active=batch.active)
        self.note_done(pages)


def _contents(view: memoryview, group: list[tuple[PageRun, int]]) -> Piece:
    """The bytes of a group's pages, one run after the other; a copy only if they do not lie so in the buffer."""
    start = end = group[0][1]
    for run, offset in group:
        if offset != end:
            return b"".join(view[offset : offset + run.count * PAGE_SIZE] for run, offset in group)
        end += run.count * PAGE_SIZE
    return view[start:end]


def _without_zeros(
    buffer: bytearray, parts: list[tuple[PageRun, int]], zeros: list[PageRun]
) -> Iterator[tuple[PageRun, int]]:
    """The runs of pages that are not zero, with their offsets; the zero ones go into `zeros`."""
    for run, start in parts:
        begun = 0  # pages of the run that are done with
        for zero in _zero_pages(buffer, start, run.count):
            if zero.first > begun:
                yield PageRun(run.first + begun, zero.first - begun), start + begun * PAGE_SIZE
            first = run.first + zero.first
            if zeros and zeros[-1].end == first:
                zeros[-1] = PageRun(zeros[-1].first, zeros[-1].count + zero.count)
            else:
                zeros.append(PageRun(first, zero.count))
            begun = zero.end
        if run.count > begun:
            yield PageRun(run.first + begun, run.count - begun), start + begun * PAGE_SIZE


def _zero_pages(buffer: bytearray, start: int, count: int) -> Iterator[PageRun]:
    """The runs of zero pages among `count` from an offset on, the first of which is page 0."""
    # Most pages that hold something begin with something: only those that do not are looked at, many at once.
    first_bytes = buffer[start : start + count * PAGE_SIZE : PAGE_SIZE]
    page = first_bytes.find(0)
    while page >= 0:
        length = len(first_bytes) - page - len(first_bytes[page:].lstrip(b"\0"))
        while length and not buffer.startswith(_ZEROS[: length * PAGE_SIZE], start + page * PAGE_SIZE):
            length //= 2
        if length:
            yield PageRun(page, length)
        page = first_bytes.find(0, page + max(length, 1))


def _grouped(parts: Iterable[tuple[PageRun, int]], most: int) -> Iterator[list[tuple[PageRun, int]]]:
    """Runs with their offsets, cut and grouped so that each group has `most` pages, the last one perhaps fewer."""
    group: list[tuple[PageRun, int]] = []
    room = most
    for run, start in parts:
        done = 0
        while done < run.count:
            count = min(run.count - done, room)
            group.append((PageRun(run.first + done, count), start + done * PAGE_SIZE))
            done += count
            room -= count
            if not room:
                yield group
                group, room = [], most
    if group:
        yield group


def batches(runs: Iterable[PageRun]) -> Iterator[list[PageRun]]:
    """Runs cut and grouped so that each group fits into one buffer."""
    for group in _grouped(((run, 0) for run in runs), BATCH_PAGES):
        yield [run for run, _ in group]
