"""Which pages are as in a checkpoint: found by comparing contents, where nobody kept track of what was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.loading import chunk_groups
from memvm.memory.pages import PageRun, common, united_runs, without
from memvm.units import PAGE_SIZE

Read = Callable[[PageRun], bytes | memoryview]
"""The contents of some pages as they are now. Called from several threads."""

_STEP = 256
"""Pages that are read at once where the checkpoint has none."""


def unchanged(chain: Chain, runs: Iterable[PageRun], read: Read) -> list[PageRun]:
    """Those of some pages that are as in the checkpoint, as ascending runs as long as can be.

    A page of zeros is as in the checkpoint if that has zeros or nothing there. Every chunk with such pages is read;
    raises CheckpointError if one is damaged, and what `read` raises.
    """
    asked = united_runs(runs)
    work = [partial(_in_group, chain, asked, read, group) for group in chunk_groups(chain)]
    elsewhere = without(asked, chain.index.united_runs())
    work += [partial(_zeros, read, piece) for run in elsewhere for piece in _cut(run)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="compare") as pool:
        results = [pool.submit(part) for part in work]
        try:
            return united_runs(run for result in results for run in result.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_group(chain: Chain, asked: list[PageRun], read: Read, group: range) -> list[PageRun]:
    """The unchanged pages of a group of chunks; the chunks are read only if somebody asked for a page of theirs."""
    index = chain.index
    places = {chunk: index.runs_of(chunk) for chunk in group}
    if not any(True for _ in common(sorted(run for runs in places.values() for run in runs), asked)):
        return []
    same: list[PageRun] = []
    for chunk, frame in zip(group, chain.read_frames(group[0], group[-1]), strict=True):
        offset, data = 0, b""
        for run in places[chunk]:
            for piece in common([run], asked):
                data = data or chain.decompress(chunk, frame)
                start = offset + (piece.first - run.first) * PAGE_SIZE
                same.extend(_equal(piece, read(piece), data[start : start + piece.count * PAGE_SIZE]))
            offset += run.count * PAGE_SIZE
    return same


def _zeros(read: Read, run: PageRun) -> list[PageRun]:
    return list(_equal(run, read(run), bytes(run.count * PAGE_SIZE)))


def _equal(run: PageRun, one: bytes | memoryview, other: bytes) -> Iterator[PageRun]:
    """The pages of a run that two strings of bytes have in common."""
    if one == other:
        yield run
        return
    for page in range(run.count):
        place = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
        if one[place] == other[place]:
            yield PageRun(run.first + page, 1)


def _cut(run: PageRun) -> Iterator[PageRun]:
    return (PageRun(first, min(_STEP, run.end - first)) for first in range(run.first, run.end, _STEP))
