"""Makes one file of a checkpoint and its parents: with every page, and without a parent.

Chunks all of whose pages are still wanted are copied as they are; what is left of the others is gathered into new
chunks. The active pages come first, in their order, as in any save.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memvm.checkpoint.active import active_pages
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.format import MAX_CHUNK_PAGES, VERSION
from memvm.checkpoint.staging import BATCH_PAGES, CHUNK_PAGES, Batch, Stager
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE

Progress = Callable[[int, int], None]
"""Told bytes done and bytes in all; may raise to give the merge up."""

_LEVEL = 3
assert MAX_CHUNK_PAGES <= BATCH_PAGES, "what is left of any one chunk fits into a batch"


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. Sizes in bytes."""

    path: str
    files: tuple[str, ...]
    """What was merged, the youngest file first."""
    bytes_before: int
    """Of all those files."""
    bytes_file: int
    pages_data: int
    pages_zero: int
    chunks_copied: int
    chunks_rebuilt: int
    """New chunks, of what was left of others."""
    seconds: float


def merge(path: Path, target: Path, progress: Progress, parents: Sequence[Path] = ()) -> MergeReport:
    """Make one file of a checkpoint and its parents; `parents` are where they may be, as Chain.open takes them.

    The file at `target` is the old one until the new one is whole. Raises CheckpointError if anything that is needed is
    damaged, SaveError if the new file cannot be written or would replace a parent, and what `progress` raises.
    """
    began = time.monotonic()
    with Chain.open(path, parents) as chain:
        chain.require_apart(target, first=1)
        header = chain.header
        header = header._replace(
            chunk_pages=max(header.chunk_pages, CHUNK_PAGES), checkpoint_id=os.urandom(16), version=VERSION
        )
        with CheckpointWriter(target, header) as writer:
            copied = _Merge(chain, writer, Stager(writer, _LEVEL), progress).run()
            for run in chain.index.zero_runs():
                writer.add_zero(run)
            totals = writer.commit(chain.state, active_pages(chain))
        return MergeReport(
            path=str(target),
            files=tuple(str(file.path) for file in chain.files),
            bytes_before=sum(file.size for file in chain.files),
            bytes_file=totals.file_size,
            pages_data=totals.data_pages,
            pages_zero=totals.zero_pages,
            chunks_copied=copied,
            chunks_rebuilt=totals.chunks - copied,
            seconds=time.monotonic() - began,
        )


class _Merge:
    """One way through all chunks that are alive."""

    def __init__(self, chain: Chain, writer: CheckpointWriter, stager: Stager, progress: Progress) -> None:
        self._chain = chain
        self._writer = writer
        self._stager = stager
        self._progress = progress
        self._total = chain.index.data_pages * PAGE_SIZE
        self._done = 0
        self._copied = 0

    def run(self) -> int:
        """Copies and rebuilds all chunks. Returns how many were copied."""
        index = self._chain.index
        pages = active_pages(self._chain).pages
        active = dict.fromkeys(chunk for page in pages if (chunk := index.chunk_of(page)) is not None)
        others = [chunk for chunk in range(index.chunk_count) if index.alive[chunk] and chunk not in active]
        for chunks in (list(active), others):  # one after the other, so that all active pages are in front
            batches = self._batches(chunks)
            self._stager.stage(lambda batches=batches: next(batches, None), self._advance)  # type: ignore[misc]
        return self._copied

    def _advance(self) -> None:
        self._progress(self._done, self._total)

    def _batches(self, chunks: list[int]) -> Iterator[Batch]:
        """Copies the chunks that can be; gives what is left of the others as batches."""
        index = self._chain.index
        left: list[int] = []
        left_pages = 0
        for chunk in chunks:
            runs = index.runs_of(chunk)
            pages = sum(run.count for run in runs)
            if not index.is_cut(chunk):
                self._writer.add_chunk(self._chain.read_frame(chunk), runs)
                self._copied += 1
            else:
                if left_pages + pages > BATCH_PAGES:
                    yield Batch(partial(_fill, self._chain, left))
                    left, left_pages = [], 0
                left.append(chunk)
                left_pages += pages
            self._done += pages * PAGE_SIZE
        if left:
            yield Batch(partial(_fill, self._chain, left))


def _fill(chain: Chain, chunks: list[int], buffer: memoryview) -> list[tuple[PageRun, int]]:
    """Put what is left of some chunks into a buffer."""
    parts, offset = [], 0
    for chunk in chunks:
        data = chain.decompress(chunk, chain.read_frame(chunk))
        buffer[offset : offset + len(data)] = data
        for run in chain.index.runs_of(chunk):
            parts.append((run, offset))
            offset += run.count * PAGE_SIZE
    return parts
