"""A checkpoint file taken apart, to be changed and put together again; and all that can be read of one."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.format import COMMIT_SIZE, HEADER_SIZE, CommitRecord, FileHeader, chunk_checksum, sha256
from memvm.checkpoint.index import IndexCounts
from memvm.checkpoint.prefetch import chunks_of, facts_of, read_groups
from memvm.errors import CheckpointError
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE

_MOST_MARKED = 1 << 20
"""Pages of RAM for which prefetching, which has a byte for each page, is tried too."""
OFFSET, LENGTH, CRC, RUN_END, RUN_FIRST = range(5)
ZERO_FIRST, ZERO_COUNT, INHERITED_FIRST, INHERITED_COUNT, SUPERSEDED, RUN_COUNT = range(5, 11)
"""Columns of the index, as Parts numbers them."""


@dataclass
class Parts:
    """A checkpoint file taken apart, so that each part can be changed and all put together again."""

    header: FileHeader
    frames: list[bytes]
    columns: list[array[int]]
    state_frame: bytes
    state_length: int
    parent: bytes = b""
    active_frame: bytes = b""
    active_pages: int = 0
    counts: list[int] | None = None
    """What the index says of its columns, if not the truth."""
    record: dict[str, int] = field(default_factory=dict)
    """Fields of the commit record that are to be wrong."""

    def assemble(self) -> bytes:
        """The file, with every checksum right."""
        storage = b"".join(self.frames)
        index = IndexCounts(*(self.counts or self.true_counts())).pack(self.header.version)
        index += b"".join(column.tobytes() for column in self.columns)
        header = self.header.pack()
        sections = index + self.parent + self.active_frame
        body = header + storage + sections + self.state_frame
        record = CommitRecord(
            index_offset=HEADER_SIZE + len(storage),
            index_length=len(index),
            index_sha256=sha256([index]),
            state_offset=HEADER_SIZE + len(storage) + len(sections),
            state_length=len(self.state_frame),
            state_raw_length=self.state_length,
            state_sha256=sha256([self.state_frame]),
            header_sha256=sha256([header]),
            file_length=len(body) + COMMIT_SIZE[self.header.version],
            parent_length=len(self.parent),
            parent_sha256=sha256([self.parent]),
            active_length=len(self.active_frame),
            active_sha256=sha256([self.active_frame]),
            active_pages=self.active_pages,
            version=self.header.version,
        )
        return body + record._replace(**self.record).pack()  # type: ignore[arg-type]

    def true_counts(self) -> list[int]:
        """How long the columns are."""
        return [len(self.columns[place]) for place in (OFFSET, RUN_FIRST, ZERO_FIRST, INHERITED_FIRST, SUPERSEDED)]

    def fit_chunks(self) -> None:
        """Makes offset, length and checksum of every chunk true of the frames."""
        offset = HEADER_SIZE
        chunks = min(map(len, self.columns[:3]))  # another change may have cut a column
        for chunk, frame in enumerate(self.frames[:chunks]):
            self.columns[0][chunk] = offset
            self.columns[1][chunk] = len(frame)
            self.columns[2][chunk] = chunk_checksum(self.header.version)(frame)
            offset += len(frame)


def take_apart(path: Path) -> Parts:
    """The parts of a valid file."""
    with CheckpointFile.open(path) as file:
        frames = [file.read_frame(chunk) for chunk in range(file.index.chunk_count)]
        record = file.commit_record
        data = path.read_bytes()
        state_frame = data[record.state_offset : record.state_offset + record.state_length]
        columns = [array(column.typecode, column) for column in file.index.columns]
        return Parts(
            file.header,
            frames,
            columns,
            state_frame,
            record.state_raw_length,
            data[record.parent_offset : record.active_offset],
            data[record.active_offset : record.state_offset],
            record.active_pages,
        )


def read_everything(path: Path) -> tuple[FileHeader, bytes, list[PageRun], dict[int, bytes], list[int]]:
    """Header, state, zero runs, the pages of all good chunks, and the numbers of the bad chunks.

    Parents are read too. Raises CheckpointError if a file cannot be opened, AssertionError if the reader
    contradicts itself.
    """
    with Chain.open(path) as file:
        pages: dict[int, bytes] = {}
        bad = []
        index = file.index
        for chunk in range(index.chunk_count):
            assert bool(index.alive[chunk]) == bool(index.runs_of(chunk))
            try:
                data = file.decompress(chunk, file.read_frame(chunk))
            except CheckpointError:
                bad.append(chunk)
                continue
            numbers = list(chain.from_iterable(range(run.first, run.first + run.count) for run in index.runs_of(chunk)))
            assert len(data) == len(numbers) * PAGE_SIZE
            assert list(map(itemgetter(0), index.places_of(chunk))) == index.runs_of(chunk)
            for place, page in enumerate(numbers):
                assert page not in pages and page < file.header.ram_pages
                assert index.chunk_of(page) == chunk
                pages[page] = data[place * PAGE_SIZE : (place + 1) * PAGE_SIZE]
        for chunks in filter(None, index.files if not bad else []):
            together = file.read_frames(chunks[0], chunks[-1])
            assert [bytes(frame) for frame in together] == list(map(file.read_frame, chunks))
        united = index.united_runs()
        assert index.data_pages == sum(run.count for run in united)
        if not bad:
            assert sorted(pages) == [page for run in united for page in range(run.first, run.end)]
        pages_used = facts_of(file, ()).active.pages
        if file.header.ram_pages <= _MOST_MARKED:
            wanted = chunks_of(file, pages_used)
            chunks_read = list(chain.from_iterable(read_groups(file, wanted)))
            assert chunks_read == list(chain.from_iterable(wanted))
            assert set(chunks_read) == {index.chunk_of(page) for page in pages_used} - {None}
        zero_runs = index.zero_runs()
        for run in zero_runs:
            assert run.first + run.count <= file.header.ram_pages and index.chunk_of(run.first) is None
        return file.header, file.state, zero_runs, pages, bad
