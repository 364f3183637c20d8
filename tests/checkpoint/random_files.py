"""Valid checkpoint files of random shape."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import zstandard

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.format import FileHeader
from memvm.checkpoint.sections import ActivePages
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE


def write_random_file(path: Path, rng: random.Random, parent: Path | None = None) -> None:
    """A valid file with a few chunks of random shape; some pages are stored again, some are as in the parent."""
    pages = rng.choice((16, 100, 1000, 5000))
    chunk_pages = rng.choice((1, 4, 16, 256))
    header = FileHeader(rng.choice((1 << 32, 1 << 20)), pages * PAGE_SIZE, chunk_pages, 4096, rng.randbytes(16))
    link = None
    if parent is not None:
        with Chain.open(parent) as chain:
            link = chain.link_from(path)
            header = header._replace(ram_base=chain.header.ram_base, ram_size=chain.header.ram_size)
    runs: list[PageRun] = []
    page = 0
    while page < header.ram_pages and len(runs) < 60:
        page += rng.choice((0, 0, 1, 3, 50))
        count = min(rng.choice((1, 1, 2, 7, 16)), header.ram_pages - page, chunk_pages)
        if count > 0:
            runs.append(PageRun(page, count))
            page += count
    if rng.random() < 0.3:
        rng.shuffle(runs)
    again = rng.sample(runs, len(runs) // 4) if rng.random() < 0.5 else []
    with CheckpointWriter(path, header) as writer:
        if link is not None:
            writer.set_parent(link)
        _add_random(writer, runs, rng)
        for run in again:
            first = rng.randrange(run.first, run.end)
            writer.supersede(PageRun(first, rng.randrange(first, run.end) - first + 1))
            if rng.random() < 0.8:
                _add_random(writer, [PageRun(first, 1)], rng)
        kinds = rng.choice((b"", rng.choices((1, 2, 3), k=min(40, header.ram_pages))))
        active = ActivePages(array("I", rng.sample(range(header.ram_pages), len(kinds))), bytes(kinds))
        writer.commit(rng.randbytes(rng.choice((0, 1, 500))), active)


def _add_random(writer: CheckpointWriter, runs: list[PageRun], rng: random.Random) -> None:
    """Some pages as chunks, zeros and inherited pages."""
    compressor = zstandard.ZstdCompressor(level=1)
    runs = list(runs)
    while runs:
        chunk = [runs.pop(0)]
        if rng.random() < 0.3:
            writer.add_zero(chunk[0])
            continue
        if writer.parent is not None and rng.random() < 0.6:
            writer.add_inherited(chunk[0])
            continue
        most = writer.header.chunk_pages
        while runs and rng.random() < 0.5 and sum(run.count for run in [*chunk, runs[0]]) <= most:
            chunk.append(runs.pop(0))
        data = b"".join(rng.randbytes(rng.choice((1, 16))) * PAGE_SIZE for run in chunk for _ in range(run.count))
        total = sum(run.count for run in chunk) * PAGE_SIZE
        writer.add_chunk(compressor.compress(data[:total]), chunk)
