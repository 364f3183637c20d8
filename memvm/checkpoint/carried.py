"""Pages that a guest has not got yet, for it is still being restored: they go from file to file.

A deferred page holds what the checkpoint has that it comes from, whatever happens to it after the instant of the save.
So it is neither loaded nor guarded. Chunks all of whose pages are wanted are copied as they are, their checksums
compared, and the wanted pages of others are put into new chunks. A chunk that is damaged ends the save: no file is made
that would lack its pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

from memvm.checkpoint.active import active_pages
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.loading import GROUP_BYTES, CheckpointSource, pages_text
from memvm.checkpoint.staging import BATCH_PAGES, Batch, Stager
from memvm.errors import CheckpointError, SaveError
from memvm.machine.machine import Machine
from memvm.memory.deferred import DeferredPages
from memvm.memory.pages import PageRun, common, flagged_runs, pages_in, united_runs
from memvm.units import PAGE_SIZE


class _Piece(NamedTuple):
    """Pages of one chunk that are wanted."""

    chunk: int
    runs: list[PageRun]
    whole: bool
    """Whether its frame can be copied."""


def source_of(machine: Machine) -> Chain | None:
    """The checkpoint that deferred pages of a guest come from; None if it was not restored lazily."""
    loader = machine.ram.loader
    if isinstance(loader, DeferredPages) and isinstance(loader.source, CheckpointSource):
        return loader.source.file
    return None


def shared_pages(one: Chain, other: Chain) -> list[PageRun]:
    """Pages that two chains have from the same place in the same file, ascending: they hold the same."""
    places = {file.commit_sha256: number for number, file in enumerate(other.files)}
    shared: list[PageRun] = []
    for number, file in enumerate(one.files):
        if (place := places.get(file.commit_sha256)) is not None:
            shared += common(one.index.pages_from(number), other.index.pages_from(place))
    return united_runs(shared)


class CarriedPages:
    """The way of some deferred pages from the checkpoint that they are in to the one that is being written."""

    def __init__(self, source: Chain, writer: CheckpointWriter, stager: Stager, runs: list[PageRun]) -> None:
        """`runs` are the wanted pages, all in the source."""
        self._source = source
        self._writer = writer
        self._stager = stager
        self._wanted = bytearray(writer.header.ram_pages)
        for run in runs:
            self._wanted[run.first : run.end] = b"\1" * run.count

    def carry(self, watch: Callable[[], None]) -> None:
        """Write them all; `watch` is as Stager.stage has it. Raises SaveError, and what `watch` raises."""
        index = self._source.index
        used = {chunk for page in active_pages(self._source).pages if (chunk := index.chunk_of(page)) is not None}
        batches = self._batches(used)
        self._stager.stage(lambda: next(batches, None), watch)

    def _batches(self, used: set[int]) -> Iterator[Batch]:
        """Groups of neighbouring chunks that are copied with one read, and batches of what is wanted of others."""
        chunks = range(self._source.index.chunk_count)
        for active, group in groupby(self._pieces(chunks), lambda piece: piece.chunk in used):
            left: list[_Piece] = []
            whole: list[_Piece] = []
            for piece in group:
                to = whole if piece.whole else left
                if to and not self._fits(to, piece):
                    yield self._batch(to, active)
                    to.clear()
                to.append(piece)
            for rest in filter(None, (whole, left)):
                yield self._batch(rest, active)

    def _pieces(self, chunks: Iterable[int]) -> Iterator[_Piece]:
        index = self._source.index
        for chunk in chunks:
            if not index.alive[chunk]:
                continue
            runs = index.runs_of(chunk)
            wanted = sum(self._wanted.count(1, run.first, run.end) for run in runs)
            if wanted:
                whole = wanted == pages_in(runs) and not index.is_cut(chunk)
                yield _Piece(chunk, runs, whole)

    def _fits(self, pieces: list[_Piece], piece: _Piece) -> bool:
        if not piece.whole:
            return sum(pages_in(each.runs) for each in [*pieces, piece]) <= BATCH_PAGES
        most = max(1, GROUP_BYTES // self._source.header.max_frame_size)
        one_file = self._source.index.place_of(pieces[0].chunk)[0] == self._source.index.place_of(piece.chunk)[0]
        return one_file and pieces[-1].chunk + 1 == piece.chunk and len(pieces) < most

    def _batch(self, pieces: list[_Piece], active: bool) -> Batch:
        if pieces[0].whole:
            return Batch(partial(self._copy, list(pieces), active))
        return Batch(partial(self._fill, list(pieces)), active)

    def _copy(self, pieces: list[_Piece], active: bool, _buffer: memoryview) -> list[tuple[PageRun, int]]:
        """Copy whole chunks, which leaves nothing to be staged."""
        try:
            frames = list(map(bytes, self._source.read_frames(pieces[0].chunk, pieces[-1].chunk)))
        except CheckpointError:  # one of them is bad: find out which
            frames = [self._read(piece) for piece in pieces]
        self._writer.add_copies(frames, [piece.runs for piece in pieces], active=active)
        self._stager.note_done(sum(pages_in(piece.runs) for piece in pieces))
        return []

    def _fill(self, pieces: list[_Piece], buffer: memoryview) -> list[tuple[PageRun, int]]:
        """Put what is wanted of some chunks into a buffer, each with its other pages, which are not staged."""
        parts, offset = [], 0
        for piece in pieces:
            data = self._decompress(piece)
            buffer[offset : offset + len(data)] = data
            for run in piece.runs:
                wanted = flagged_runs(self._wanted, run.first, run.count, 1)
                parts += [(part, offset + (part.first - run.first) * PAGE_SIZE) for part in wanted]
                offset += run.count * PAGE_SIZE
        return parts

    def _read(self, piece: _Piece) -> bytes:
        try:
            return self._source.read_frame(piece.chunk)
        except CheckpointError as error:
            raise _lost(piece, error) from error

    def _decompress(self, piece: _Piece) -> bytes:
        frame = self._read(piece)
        try:
            return self._source.decompress(piece.chunk, frame)
        except CheckpointError as error:
            raise _lost(piece, error) from error


def _lost(piece: _Piece, error: CheckpointError) -> SaveError:
    return SaveError(
        f"{pages_text(piece.runs)} of guest RAM are not loaded yet, and cannot be: {error.message}", hint=error.hint
    )
