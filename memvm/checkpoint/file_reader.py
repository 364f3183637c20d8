"""Reading a checkpoint file: nothing in it is believed before it is checked.

Opening checks all but the chunks; a chunk is checked when it is read. Every length is compared with what the file
and its RAM size allow before memory is allocated for it. The file is read with pread, not mapped: if somebody cuts
it meanwhile, that is an error here and no SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from memvm.checkpoint.file_bytes import Input, PlainInput
from memvm.checkpoint.format import (
    COMMIT_SIZE,
    COUNTS,
    HEADER_SIZE,
    CommitRecord,
    Encrypted,
    FileHeader,
    FormatError,
    Incomplete,
    NewerVersion,
    chunk_checksum,
    sha256,
)
from memvm.checkpoint.frames import decompress_exactly, decompress_together
from memvm.checkpoint.index import IndexCounts, PageIndex
from memvm.checkpoint.sections import ActivePages, ParentLink
from memvm.errors import CheckpointError
from memvm.faultpoints import FaultPoint, fire
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE

_HINTS: dict[type[FormatError], str] = {
    Encrypted: "it can only be restored, with --verifier and --key-keeper, and then be saved whole, without a parent",
    NewerVersion: "restore it with the memvm that wrote it, or a newer one",
    Incomplete: "copy it again, or save the guest again",
    FormatError: "take another copy of the file, or another checkpoint",
}


class CheckpointFile:
    """An open checkpoint file. A context manager; its reading methods may be called from any thread.

    Open it with `CheckpointFile.open`.
    """

    def __init__(self, path: Path, source: Input) -> None:
        """Reads all but the chunks of an open file. Raises FormatError and OSError; closes nothing."""
        self.path = path
        self._input = source
        self.size = source.size
        """Bytes of the file."""
        header = self._read(0, min(HEADER_SIZE, self.size))
        self.header: FileHeader = FileHeader.unpack(header)
        version = self.header.version
        tail = min(COMMIT_SIZE[version], self.size - HEADER_SIZE)
        record = CommitRecord.unpack(self._read(self.size - tail, tail), self.size, version)
        if sha256([header]) != record.header_sha256:
            raise FormatError("the header is not the one that was committed")
        self.commit_record: CommitRecord = record
        self._checksum = chunk_checksum(self.header.version)
        self.index: PageIndex = self._read_index()
        self.parent: ParentLink | None = self._read_parent()
        """The file that has the pages which this one inherits."""
        self.active: ActivePages = self._read_active()
        self.state: bytes = self._read_state()

    @property
    def checkpoint_id(self) -> bytes:
        return self.header.checkpoint_id

    @property
    def commit_sha256(self) -> bytes:
        """The digest that pins this file: of its commit record, which has those of all else."""
        return sha256([self.commit_record.pack()])

    @classmethod
    def open(cls, path: Path) -> CheckpointFile:
        """Opens a file and checks everything in it but the chunks' contents. Raises CheckpointError."""
        try:
            # Not blocking: somebody may have given a named pipe.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return cls(path, PlainInput(fd))
            except BaseException:
                os.close(fd)
                raise
        except (FormatError, OSError) as error:
            raise checkpoint_error(str(path), error) from error

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, which no thread may be reading. Header, index and state stay."""
        self._input.close()

    def read_frame(self, chunk: int) -> bytes:
        """The compressed frame of a chunk, checksum compared. Raises CheckpointError."""
        try:
            fire(FaultPoint.LOAD_CHUNKS)
            frame = self._read(self.index.chunk_offset[chunk], self.index.chunk_length[chunk])
        except (FormatError, OSError) as error:
            raise checkpoint_error(f"{self.path}: chunk {chunk}", error) from error
        self._check_frame(chunk, frame)
        return frame

    def read_frames(self, first: int, last: int) -> list[memoryview]:
        """The frames of the chunks `first` to `last`, both included, with one read, checksums compared.

        Takes as much memory as the frames have bytes. Raises CheckpointError if one of them is bad;
        read them one by one then, to know which.
        """
        index = self.index
        start = index.chunk_offset[first]
        try:
            fire(FaultPoint.LOAD_CHUNKS)
            data = memoryview(self._read(start, index.chunk_offset[last] + index.chunk_length[last] - start))
        except (FormatError, OSError) as error:
            raise checkpoint_error(f"{self.path}: chunks {first} to {last}", error) from error
        # Chunks are back to back; opening has checked it.
        cuts = [*(offset - start for offset in index.chunk_offset[first : last + 1]), len(data)]
        frames = [data[begin:end] for begin, end in pairwise(cuts)]
        for chunk, frame in enumerate(frames, first):
            self._check_frame(chunk, frame)
        return frames

    def decompress(self, chunk: int, frame: bytes | memoryview) -> bytes:
        """The pages of a chunk from its frame, as many bytes as it has pages. Raises CheckpointError.

        They are those of `index.runs_of`: what is superseded is left out.
        """
        index = self.index
        try:
            data = decompress_exactly(frame, index.frame_pages(chunk) * self.header.page_size)
        except FormatError as error:
            raise checkpoint_error(f"{self.path}: chunk {chunk}", error) from error
        return cut_out(data, index.places_of(chunk)) if index.superseded else data

    def decompress_together(self, chunks: Sequence[int], frames: Sequence[bytes | memoryview]) -> list[memoryview]:
        """All pages in the frames of some chunks, superseded ones too; at once. Raises CheckpointError."""
        sizes = [self.index.frame_pages(chunk) * self.header.page_size for chunk in chunks]
        try:
            return decompress_together(frames, sizes)
        except FormatError as error:
            for chunk, frame in zip(chunks, frames, strict=True):
                self.decompress(chunk, frame)  # to know which it is
            raise checkpoint_error(f"{self.path}: chunks {chunks[0]} to {chunks[-1]}", error) from error

    def _check_frame(self, chunk: int, frame: bytes | memoryview) -> None:
        """Raises CheckpointError if this is not the frame that was written."""
        if self._checksum(frame) != self.index.chunk_checksum[chunk]:
            error = FormatError("damaged: its checksum is wrong")
            raise checkpoint_error(f"{self.path}: chunk {chunk}", error)

    def _read_index(self) -> PageIndex:
        record = self.commit_record
        offset = record.index_offset
        version = self.header.version
        size = COUNTS[version].size
        counts = IndexCounts.unpack(self._read(offset, size), version)
        counts.check(self.header, record.index_length)
        index = PageIndex(counts)
        offset += size
        for column in filter(None, index.columns):
            with memoryview(column).cast("B") as view:
                self._read_into(offset, view)
                offset += len(view)
        if sha256(index.parts(version)) != record.index_sha256:
            raise FormatError("the index is damaged")
        index.check(self.header, record.index_offset)
        if index.inherited_first and not record.parent_length:
            raise FormatError("it inherits pages, but has no parent")
        return index

    def _read_parent(self) -> ParentLink | None:
        record = self.commit_record
        data = self._read_section("parent section", record.parent_offset, record.parent_length, record.parent_sha256)
        return ParentLink.unpack(data) if data else None

    def _read_active(self) -> ActivePages:
        record = self.commit_record
        frame = self._read_section("active list", record.active_offset, record.active_length, record.active_sha256)
        return ActivePages.unpack(frame, record.active_pages, self.header.ram_pages)

    def _read_state(self) -> bytes:
        record = self.commit_record
        frame = self._read_section("state", record.state_offset, record.state_length, record.state_sha256)
        return decompress_exactly(frame, record.state_raw_length)

    def _read_section(self, name: str, offset: int, length: int, digest: bytes) -> bytes:
        data = self._read(offset, length) if length else b""
        if sha256([data]) != digest:
            raise FormatError(f"the {name} is damaged")
        return data

    def _read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises FormatError if the file is shorter than it was, and OSError."""
        fire(FaultPoint.LOAD_READ)
        data = self._input.pread(length, offset)
        if len(data) == length:
            return data
        rest = bytearray(length)
        rest[: len(data)] = data
        with memoryview(rest)[len(data) :] as view:
            self._read_rest(offset + len(data), view)
        return bytes(rest)

    def _read_into(self, offset: int, view: memoryview) -> None:
        fire(FaultPoint.LOAD_READ)
        self._read_rest(offset, view)

    def _read_rest(self, offset: int, view: memoryview) -> None:
        """Fills `view`. The kernel may give less than was asked for, and gives at most 2 GiB at once."""
        done = 0
        while done < len(view):
            count = self._input.preadv([view[done:]], offset + done)
            if count == 0:
                raise Incomplete("incomplete: the file was cut while it was being read")
            done += count


def cut_out(data: bytes, places: Sequence[tuple[PageRun, int]]) -> bytes:
    """The bytes of some runs, one after the other, each of which begins so many pages into `data`."""
    total = sum(run.count for run, _ in places) * PAGE_SIZE
    if total == len(data):
        return data
    with memoryview(data) as view:
        return b"".join(view[before * PAGE_SIZE : (before + run.count) * PAGE_SIZE] for run, before in places)


def checkpoint_error(where: str, error: FormatError | OSError) -> CheckpointError:
    """The error that tells a person what is wrong with a file, or with reading it."""
    if isinstance(error, FormatError):
        return CheckpointError(f"{where}: {error}", hint=_HINTS[type(error)])
    hint = "is the path right?" if isinstance(error, FileNotFoundError) else ""
    return CheckpointError(f"{where}: cannot read it: {error.strerror or error}", hint=hint)
