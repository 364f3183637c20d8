"""Small checkpoint files for tests: made of frames that no release of zstd can change."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_writer import CheckpointWriter, FileTotals
from memvm.checkpoint.format import FileHeader
from memvm.checkpoint.sections import ActivePages
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE

BASE = 0x1_0000_0000
HEADER = FileHeader(
    ram_base=BASE,
    ram_size=64 * PAGE_SIZE,
    chunk_pages=4,
    block_size=4096,
    checkpoint_id=bytes(range(16)),
)


def rle_frame(byte: int, pages: int) -> bytes:
    """A zstd frame by hand: `pages` pages full of one byte (RFC 8878: one segment, one RLE block)."""
    size = pages * PAGE_SIZE
    return struct.pack("<IBI", 0xFD2FB528, 0xA0, size) + (size << 3 | 1 << 1 | 1).to_bytes(3, "little") + bytes([byte])


def raw_frame(data: bytes) -> bytes:
    """A zstd frame by hand that holds `data` as it is, in blocks of at most 64 KiB."""
    blocks = b""
    for start in range(0, len(data), 1 << 16):
        block = data[start : start + (1 << 16)]
        last = start + len(block) == len(data)
        blocks += (len(block) << 3 | last).to_bytes(3, "little") + block
    return struct.pack("<IBI", 0xFD2FB528, 0xA0, len(data)) + blocks


def write_small_child(path: Path, parent: Path) -> FileTotals:
    """A file on top of a small one: inherits two data pages and a zero page, and a hole that it calls inherited.

    Page 30 was stored twice, page 31 became a hole after it was stored, page 63 is zero, 11 and 20 are new.
    """
    with Chain.open(parent) as chain, CheckpointWriter(path, HEADER._replace(checkpoint_id=bytes(16))) as writer:
        writer.set_parent(chain.link_from(path))
        writer.add_chunk(rle_frame(0x44, 4), [PageRun(29, 3), PageRun(11, 1)])
        writer.add_inherited(PageRun(10, 1))
        writer.add_inherited(PageRun(12, 1))
        writer.add_inherited(PageRun(1, 1))
        writer.add_inherited(PageRun(50, 1))
        writer.add_zero(PageRun(63, 1))
        writer.supersede(PageRun(30, 2))
        writer.add_chunk(rle_frame(0x55, 2), [PageRun(30, 1), PageRun(20, 1)])
        return writer.commit(b'{"golden": 2}', ActivePages(array("I", [30, 10]), bytes([3, 1])))


def write_small_file(path: Path, state: bytes = b'{"golden": 1}', filler: int = 0) -> FileTotals:
    """Five pages of data in three chunks (the last page stored first), seven zero pages in two runs.

    `filler` chunks of 4,096 bytes each come on top of that, a storage block each.
    """
    header = HEADER._replace(ram_size=HEADER.ram_size + filler * PAGE_SIZE)
    with CheckpointWriter(path, header) as writer:
        writer.add_chunk(rle_frame(0x11, 1), [PageRun(63, 1)])
        writer.add_zero(PageRun(1, 2))
        writer.add_zero(PageRun(3, 4))
        writer.add_chunk(rle_frame(0x22, 2), [PageRun(10, 1), PageRun(20, 1)])
        writer.add_chunk(rle_frame(0x33, 2), [PageRun(11, 2)])
        writer.add_zero(PageRun(40, 1))
        for page in range(filler):
            writer.add_chunk(raw_frame(bytes([page % 256]) * PAGE_SIZE), [PageRun(64 + page, 1)])
        return writer.commit(state)
