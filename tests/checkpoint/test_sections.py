"""The parent section and the active list: what is packed is unpacked, and nothing else is."""

from __future__ import annotations

import os
import random
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.checkpoint import sections
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.format import FormatError
from memvm.checkpoint.sections import READ, WRITTEN, ActiveNotes, ActivePages, ParentLink, relative_name
from memvm.checkpoint.unchanged import unchanged
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE
from tests.checkpoint.samples import HEADER, raw_frame, rle_frame, write_small_child, write_small_file


@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.integers(1, 3)), unique_by=lambda entry: entry[0]))
def test_active_pages_round_trip(entries: list[tuple[int, int]]) -> None:
    active = ActivePages(array("I", [page for page, _ in entries]), bytes(kind for _, kind in entries))
    active.check(1 << 32)
    assert ActivePages.unpack(active.pack(), len(entries), 1 << 32) == active
    assert bool(active.pack()) == bool(entries)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), st.text(min_size=1, max_size=80))
def test_parent_round_trip(checkpoint_id: bytes, digest: bytes, name: str) -> None:
    link = ParentLink(checkpoint_id, digest, name.encode(errors="replace"))
    if "\0" in name or name.startswith("/"):
        with pytest.raises(FormatError, match="no relative path"):
            link.pack()
    else:
        assert ParentLink.unpack(link.pack()) == link


def test_link_goes_from_directory_to_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert relative_name(tmp_path / "link" / "parent", tmp_path / "child") == b"real/parent"
    odd = b"\xff name"
    assert relative_name(tmp_path / os.fsdecode(odd), tmp_path / "child") == odd


def test_notes_keep_the_order_of_first_access() -> None:
    notes = ActiveNotes()
    notes.note(7, READ)
    notes.note_runs([PageRun(3, 2), PageRun(7, 1)], WRITTEN)
    notes.note(3, WRITTEN)
    assert notes.pages() == ActivePages(array("I", [7, 3, 4]), bytes([READ | WRITTEN, WRITTEN, WRITTEN]))


def test_notes_end_where_nobody_would_load_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_ACTIVE_PAGES", 2)
    notes = ActiveNotes()
    notes.note_runs([PageRun(0, 5)], READ)
    notes.note(1, WRITTEN)
    assert notes.pages() == ActivePages(array("I", [0, 1]), bytes([READ, READ | WRITTEN]))


def test_long_active_list_is_small() -> None:
    active = ActivePages(array("I", range(100, 100_100)), bytes([READ]) * 100_000)
    assert len(active.pack()) < 1000


def test_writer_refuses_what_no_reader_takes(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "file", HEADER) as writer:
        with pytest.raises(ValueError, match="an active page is not in RAM"):
            writer.commit(b"", ActivePages(array("I", [64]), b"\1"))
        with pytest.raises(ValueError, match="no pages of RAM"):
            writer.add_inherited(PageRun(60, 5))
        with pytest.raises(ValueError, match="no pages of RAM"):
            writer.supersede(PageRun(0, 0))
        with pytest.raises(ValueError, match="no relative path"):
            writer.set_parent(ParentLink(bytes(16), bytes(32), b"a\0b"))
        writer.add_inherited(PageRun(0, 1))
        with pytest.raises(ValueError, match="needs a parent"):
            writer.commit(b"")
    with pytest.raises(ValueError, match="only files of version 2 are written"):
        CheckpointWriter(tmp_path / "file", HEADER._replace(version=1))
    assert not list(tmp_path.iterdir())


def test_superseded_runs_are_cut_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with CheckpointWriter(path, HEADER) as writer:
        writer.add_chunk(rle_frame(1, 4), [PageRun(0, 4)])
        writer.add_zero(PageRun(10, 10))
        writer.supersede(PageRun(1, 2))
        writer.supersede(PageRun(12, 3))
        writer.supersede(PageRun(40, 5))  # nothing was said of these
        writer.add_chunk(rle_frame(2, 3), [PageRun(2, 1), PageRun(13, 1), PageRun(41, 1)])
        writer.supersede(PageRun(2, 1))
        writer.add_zero(PageRun(2, 1))
        totals = writer.commit(b"")
    assert (totals.data_pages, totals.superseded_pages, totals.zero_pages) == (4, 3, 8)
    with CheckpointFile.open(path) as file:
        assert [file.index.runs_of(chunk) for chunk in (0, 1)] == [
            [PageRun(0, 1), PageRun(3, 1)],
            [PageRun(13, 1), PageRun(41, 1)],
        ]
        assert [file.index.frame_pages(chunk) for chunk in (0, 1)] == [4, 3]
        assert file.index.places_of(0) == [(PageRun(0, 1), 0), (PageRun(3, 1), 3)]
        assert list(file.index.iter_zero_runs()) == [PageRun(10, 2), PageRun(15, 5), PageRun(2, 1)]
        assert file.decompress(1, file.read_frame(1)) == b"\2" * 2 * PAGE_SIZE
        assert file.index.united_runs() == [PageRun(0, 1), PageRun(3, 1), PageRun(13, 1), PageRun(41, 1)]


def test_unchanged_pages_are_found_by_their_contents(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    write_small_file(parent)
    write_small_child(child, parent)
    now = {page: bytes(PAGE_SIZE) for page in range(64)}
    now |= dict.fromkeys((11, 29), b"\x44" * PAGE_SIZE) | dict.fromkeys((20, 30), b"\x55" * PAGE_SIZE)
    now |= {10: b"\x22" * PAGE_SIZE, 12: b"\x33" * (PAGE_SIZE - 1) + b"x", 31: b"\x44" * PAGE_SIZE}

    def read(run: PageRun) -> bytes:
        return b"".join(map(now.__getitem__, range(run.first, run.end)))

    with Chain.open(child) as chain:
        same = unchanged(chain, [PageRun(0, 64)], read)
        assert same == [PageRun(0, 12), PageRun(13, 18), PageRun(32, 32)]
        assert unchanged(chain, [PageRun(11, 2), PageRun(30, 2)], read) == [PageRun(11, 1), PageRun(30, 1)]
        assert unchanged(chain, [], read) == []


@pytest.mark.parametrize("seed", range(8))
def test_active_chunks_have_storage_blocks_of_their_own(seed: int, tmp_path: Path) -> None:
    """What was given for a page last counts, whichever of the two staging buffers is written first."""
    dice = random.Random(seed)
    header = HEADER._replace(block_size=4 * PAGE_SIZE)
    contents: dict[int, bytes] = {}
    active_pages: set[int] = set()
    with CheckpointWriter(tmp_path / "file", header) as writer:
        for number in range(1, 120):
            page, active = dice.randrange(header.ram_pages), dice.random() < 0.4
            if page in contents:
                writer.supersede(PageRun(page, 1))
                active_pages.discard(page)
            contents[page] = number.to_bytes(PAGE_SIZE, "little")
            if dice.random() < 0.2:
                contents[page] = bytes(PAGE_SIZE)
                writer.add_zero(PageRun(page, 1))
            else:
                frame = raw_frame(contents[page])
                writer.add_chunks([frame], [writer.checksum(frame)], [[PageRun(page, 1)]], active=active)
                active_pages |= {page} if active else set()
        totals = writer.commit(b"")
    assert totals.block_writes <= -(-totals.file_size // (3 * PAGE_SIZE)) + 2
    with Chain.open(tmp_path / "file") as chain:
        zeros = {page for run in chain.index.zero_runs() for page in range(run.first, run.end)}
        for page, data in contents.items():
            chunk = chain.index.chunk_of(page)
            if chunk is None:
                assert page in zeros
                assert data == bytes(PAGE_SIZE)
            else:
                assert chain.decompress(chunk, chain.read_frame(chunk)) == data
        kinds = [
            run.first in active_pages for chunk in range(chain.index.chunk_count) for run in chain.index.runs_of(chunk)
        ]
    changes = sum(one != other for one, other in pairwise(kinds))
    assert changes <= totals.block_writes, "chunks of a block are of one kind"


def test_active_pages_beyond_the_first_two_thousand_million() -> None:
    active = ActivePages(array("I", [(1 << 32) - 2, 5, (1 << 31) + 7, 0]), b"\1\2\3\1")
    assert ActivePages.unpack(active.pack(), 4, 1 << 32) == active
