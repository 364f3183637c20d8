"""Writing a checkpoint file: chunks through the staging buffer, then index, sections and commit record.

Frames are gathered in the staging buffer, and a full one (the frame that fills it may reach beyond its size) is written
as one storage block. There are two: one for active pages and one for cold ones, so that active chunks have storage
blocks of their own. The kernel is asked to bring each block to the disk at once, so that the sync at the end finds
little left to do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from memvm.checkpoint.file_bytes import OpenOutput, Output
from memvm.checkpoint.format import (
    COMMIT_SIZE,
    HEADER_SIZE,
    VERSION,
    CommitRecord,
    FileHeader,
    chunk_checksum,
    sha256,
)
from memvm.checkpoint.index import PageIndex
from memvm.checkpoint.index_builder import IndexBuilder
from memvm.checkpoint.pending_file import PendingFile, save_error
from memvm.checkpoint.sections import ActivePages, ParentLink
from memvm.faultpoints import FaultPoint, fire
from memvm.memory.pages import PageRun
from memvm.units import MIB

_STATE_LEVEL = 3
_NO_ACTIVE_PAGES = ActivePages()
_MOST_RESERVED = 64 * MIB


class FileTotals(NamedTuple):
    """What a finished file holds; sizes in bytes."""

    file_size: int
    storage_size: int
    """Bytes of all chunks."""
    index_size: int
    state_size: int
    """Bytes of the state in the file, compressed."""
    block_writes: int
    """Storage blocks that were written."""
    chunks: int
    data_pages: int
    zero_pages: int
    inherited_pages: int
    superseded_pages: int
    commit_sha256: bytes
    """The digest of the commit record, which pins the file."""


class _StagingBuffer:
    """What goes into a storage block."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        """In the order in which they came."""
        self.chunks: list[int] = []
        """Numbers of the chunks that end in it."""
        self.size = 0


class CheckpointWriter:
    """Writes a checkpoint file that appears at `path` when it is whole, and not before.

    A context manager: leaving it without `commit` removes everything that was written. Several threads may add
    chunks and zeros; what one of them stages meanwhile does not wait for a block that another one writes. Whatever
    fails raises SaveError, leaves the old file at `path` as it was and nothing beside it; the writer is of no
    further use then.
    """

    def __init__(self, path: Path, header: FileHeader, open_output: OpenOutput | None = None) -> None:
        """`open_output` begins the file, if it shall not be one at `path` with the checkpoint's own bytes.

        Raises SaveError if `path` cannot be written, ValueError for an impossible header."""
        if header.version != VERSION:
            raise ValueError(f"only files of version {VERSION} are written")
        header.check()
        self.path = path
        self.header = header
        self.block_writes = 0
        self.checksum = chunk_checksum(header.version)
        """Of a chunk's frame."""
        self._index = IndexBuilder(header)
        self.parent: ParentLink | None = None
        self._lock = threading.Lock()
        """Held while index and staging buffer are changed."""
        self._writing = threading.RLock()
        """Held while the file is written, or given up."""
        self._cold, self._active = _StagingBuffer(), _StagingBuffer()
        self._full: list[tuple[int, list[bytes]]] = []
        """Storage blocks that are to be written, with their offsets."""
        self._end = 0
        """Bytes of the file that are written, or full blocks to be written."""
        self._reserved = 1
        """Up to where in the file there is space, or none need be asked for."""
        self._open = True
        self._failure: BaseException | None = None
        self._file: Output = PendingFile(path) if open_output is None else open_output(header)
        self._cold.pieces.append(header.pack())
        self._cold.size = HEADER_SIZE

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def size(self) -> int:
        """Bytes of the file so far, with those in the staging buffers."""
        return self._end + self._cold.size + self._active.size

    def add_chunk(self, frame: bytes, runs: Sequence[PageRun]) -> int:
        """Appends one cold chunk, as add_chunks does. Returns its number."""
        return self.add_copies([frame], [runs])

    def add_copies(self, frames: Sequence[bytes], runs: Sequence[Sequence[PageRun]], *, active: bool = False) -> int:
        """Appends chunks whose frames come from another checkpoint file, as add_chunks does."""
        return self.add_chunks(frames, list(map(self.checksum, frames)), runs, active=active)

    def add_chunks(
        self,
        frames: Sequence[bytes],
        checksums: Sequence[int],
        runs: Sequence[Sequence[PageRun]],
        *,
        active: bool = False,
    ) -> int:
        """Appends chunks: a zstd frame each, its checksum, and the runs whose pages it holds, in that order.

        `active` ones go into storage blocks of their own. Returns how many chunks there were before, which is the
        number of the first as long as none is active. The frames have to have their content size in their headers.
        Raises SaveError, and ValueError for runs that make no chunk.
        """
        with self._lock:
            self._require_open()
            first = self._index.add_chunks(list(map(len, frames)), checksums, runs)
            buffer = self._active if active else self._cold
            for chunk, frame in enumerate(frames, first):
                self._stage(buffer, chunk, frame)
            full, self._full = self._full, []
        self._write_blocks(full)
        return first

    def add_zero(self, run: PageRun) -> None:
        """Notes pages that were touched and are zero. Raises ValueError if they are not in RAM."""
        with self._lock:
            self._require_open()
            self._index.add_zero(run)

    def add_inherited(self, run: PageRun) -> None:
        """Notes pages that are as in the parent. Raises ValueError if they are not in RAM."""
        with self._lock:
            self._require_open()
            self._index.add_inherited(run)

    def supersede(self, run: PageRun) -> None:
        """What was given for these pages so far, if anything, counts no more: they may be given again.

        Pages that are not given again are holes. Raises ValueError if they are not in RAM.
        """
        with self._lock:
            self._require_open()
            self._index.supersede(run)

    def set_parent(self, parent: ParentLink) -> None:
        """Says which file has the inherited pages. Raises ValueError for a name that no reader would take."""
        self._require_open()
        parent.pack()
        self.parent = parent

    def commit(self, state: bytes, active: ActivePages = _NO_ACTIVE_PAGES) -> FileTotals:
        """Finishes the file, makes it durable, and gives it its name.

        Raises SaveError, and ValueError if a page was given twice, if index, active list or state are too large or
        make no sense, or if pages are inherited and there is no parent.
        """
        self._require_open()
        import zstandard

        self._close_block(self._cold)
        self._close_block(self._active)
        index = self._index.finish()
        if index.inherited_first and self.parent is None:
            raise ValueError("a file that inherits pages needs a parent")
        parent = b"" if self.parent is None else self.parent.pack()
        active.check(self.header.ram_pages)
        active_frame = active.pack()
        state_frame = zstandard.ZstdCompressor(level=_STATE_LEVEL).compress(state)
        record = self._record(index, parent, active_frame, len(active.pages), state_frame, len(state))
        record.check()
        self._write_blocks(self._full)
        with self._saving(record.file_length - self.size):
            fire(FaultPoint.SAVE_BEFORE_INDEX)
            sections = filter(None, (parent, active_frame, state_frame))
            self._file.write([*index.parts(VERSION), *sections], record.index_offset)
            fire(FaultPoint.SAVE_BEFORE_COMMIT_RECORD)
            self._file.write([record.pack()], record.file_length - COMMIT_SIZE[VERSION])
            self._file.truncate(record.file_length)
            fire(FaultPoint.SAVE_BEFORE_SYNC)
            self._file.publish()
        self._open = False
        return FileTotals(
            file_size=record.file_length,
            storage_size=record.index_offset - HEADER_SIZE,
            index_size=record.index_length,
            state_size=record.state_length,
            block_writes=self.block_writes,
            chunks=index.chunk_count,
            data_pages=index.data_pages,
            zero_pages=index.zero_pages,
            inherited_pages=index.inherited_pages,
            superseded_pages=index.superseded_pages,
            commit_sha256=sha256([record.pack()]),
        )

    def abort(self) -> None:
        """Gives up: nothing is left but the old file. Does nothing after `commit`, or when called again."""
        self._open = False
        with self._writing:
            self._file.discard()

    def _record(
        self,
        index: PageIndex,
        parent: bytes,
        active_frame: bytes,
        active_pages: int,
        state_frame: bytes,
        raw_length: int,
    ) -> CommitRecord:
        index_length = index.counts.index_length(VERSION)
        state_offset = self.size + index_length + len(parent) + len(active_frame)
        return CommitRecord(
            index_offset=self.size,
            index_length=index_length,
            index_sha256=sha256(index.parts(VERSION)),
            state_offset=state_offset,
            state_length=len(state_frame),
            state_raw_length=raw_length,
            state_sha256=sha256([state_frame]),
            header_sha256=sha256([self.header.pack()]),
            file_length=state_offset + len(state_frame) + COMMIT_SIZE[VERSION],
            parent_length=len(parent),
            parent_sha256=sha256([parent]),
            active_length=len(active_frame),
            active_sha256=sha256([active_frame]),
            active_pages=active_pages,
        )

    def _require_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._open:
            raise ValueError(f"the writer of {self.path} is closed")

    @contextmanager
    def _saving(self, more: int) -> Iterator[None]:
        """Turns what the system refuses into a SaveError; any error ends the save.

        `more` is the bytes that are on their way besides `size`.
        """
        needed = self.size + more
        with self._writing:
            self._require_open()
            try:
                yield
            except OSError as error:
                self._failure = save_error(self.path, error, needed)
                self.abort()
                raise self._failure from error
            except BaseException as error:
                self._failure = error
                self.abort()
                raise

    def _stage(self, buffer: _StagingBuffer, chunk: int, frame: bytes) -> None:
        """Puts a frame into a staging buffer, which becomes a storage block when that is full."""
        buffer.pieces.append(frame)
        buffer.chunks.append(chunk)
        buffer.size += len(frame)
        if buffer.size >= self.header.block_size:
            self._close_block(buffer)

    def _close_block(self, buffer: _StagingBuffer) -> None:
        """A staging buffer becomes the next storage block of the file."""
        if not self._end and buffer is not self._cold:
            self._close_block(self._cold)  # the first one has the header
        if buffer.size:
            self._full.append((self._end, buffer.pieces))
            self._index.place(buffer.chunks)
            self._end += buffer.size
            buffer.pieces, buffer.chunks, buffer.size = [], [], 0

    def _write_blocks(self, blocks: list[tuple[int, list[bytes]]]) -> None:
        for offset, pieces in blocks:
            write = self._file.prepare(pieces, offset)  # what is encrypted is so by all threads at once
            with self._saving(0):
                fire(FaultPoint.SAVE_BLOCK_WRITE)
                self._reserve(offset)
                size = write()
                self.block_writes += 1
                self._file.start_writeback(offset, size)

    def _reserve(self, offset: int) -> None:
        """Have space for as much again as there is already, once a second block is written."""
        if self._reserved <= offset:
            self._reserved = offset + min(offset, _MOST_RESERVED)
            self._file.reserve(offset, self._reserved - offset)
