"""What is written is read again; the layout is the one that is checked in."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from memvm.checkpoint import format as layout
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.format import CommitRecord, FileHeader, FormatError
from memvm.errors import CheckpointError
from memvm.faultpoints import FaultPoint, arm
from memvm.memory.pages import PageRun
from memvm.units import MIB, PAGE_SIZE
from tests.checkpoint.parts import read_everything, take_apart
from tests.checkpoint.samples import HEADER, raw_frame, rle_frame, write_small_child, write_small_file

FOLDER = Path(__file__).parent / "golden"
GOLDEN, CHILD, OLD = (FOLDER / name for name in ("version2.ckpt", "version2-child.ckpt", "version1.ckpt"))


def test_golden_files_are_written_byte_for_byte(tmp_path: Path) -> None:
    path, child = tmp_path / "version2.ckpt", tmp_path / "child.ckpt"
    write_small_file(path)
    assert path.read_bytes() == GOLDEN.read_bytes()
    write_small_child(child, path)
    assert child.read_bytes() == CHILD.read_bytes()


@pytest.mark.parametrize("path", [GOLDEN, OLD], ids=["version 2", "version 1"])
def test_golden_file_is_read(path: Path) -> None:
    header, state, zero_runs, pages, bad = read_everything(path)
    assert header == HEADER._replace(version=1 if path == OLD else 2)
    assert state == b'{"golden": 1}'
    assert zero_runs == [PageRun(1, 6), PageRun(40, 1)]
    fill = {63: 0x11, 10: 0x22, 20: 0x22, 11: 0x33, 12: 0x33}
    assert pages == {page: bytes([byte]) * PAGE_SIZE for page, byte in fill.items()}
    assert not bad


def test_golden_file_has_what_the_drawing_says() -> None:
    data = GOLDEN.read_bytes()

    def u64(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 8], "little")

    record = len(data) - 248
    assert (data[:8], data[record : record + 8]) == (b"memvmCKP", b"memvmEND")
    assert (u64(16), u64(24)) == (HEADER.ram_base, HEADER.ram_size)
    index, state = u64(record + 8), u64(record + 56)
    assert [u64(index + place) for place in range(0, 40, 8)] == [3, 4, 2, 0, 0]
    assert u64(index + 40) == 64
    assert state == index + u64(record + 16)
    assert state + u64(record + 64) == record
    assert u64(record + 144) == len(data)


def test_totals_say_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    totals = write_small_file(path)
    assert totals.file_size == path.stat().st_size
    assert totals.file_size == 64 + totals.storage_size + totals.index_size + totals.state_size + 248
    assert (totals.chunks, totals.data_pages, totals.zero_pages, totals.block_writes) == (3, 5, 7, 1)


def test_index_tells_where_each_page_is() -> None:
    with CheckpointFile.open(GOLDEN) as file:
        index = file.index
        assert {page: index.chunk_of(page) for page in (63, 10, 20, 11, 12)} == {
            63: 0,
            10: 1,
            20: 1,
            11: 2,
            12: 2,
        }
        assert [index.chunk_of(page) for page in (0, 1, 9, 13, 19, 21, 40, 62, 64, 1 << 40)] == [None] * 10
        assert index.runs_of(1) == [PageRun(10, 1), PageRun(20, 1)]
        assert [index.pages_of(chunk) for chunk in range(3)] == [1, 2, 2]
        assert (index.chunk_count, index.data_pages, index.zero_pages) == (3, 5, 7)


def test_file_without_pages(tmp_path: Path) -> None:
    path = tmp_path / "empty.ckpt"
    with CheckpointWriter(path, HEADER) as writer:
        writer.commit(b"")
    assert read_everything(path) == (HEADER, b"", [], {}, [])


def test_largest_ram_of_zero_pages(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    header = HEADER._replace(ram_size=1 << 44)
    with CheckpointWriter(path, header) as writer:
        writer.add_zero(PageRun(0, 1 << 32))
        assert writer.commit(b"").zero_pages == 1 << 32
    with CheckpointFile.open(path) as file:
        assert list(file.index.iter_zero_runs()) == [PageRun(0, (1 << 32) - 1), PageRun((1 << 32) - 1, 1)]


@st.composite
def _a_file(draw: st.DrawFn) -> tuple[FileHeader, list[tuple[list[PageRun], bytes]], list[PageRun], bytes]:
    """A header, chunks of runs and their pages, zero runs, and a state."""
    chunk_pages = draw(st.sampled_from((1, 3, 16, 256)))
    kinds = draw(st.lists(st.tuples(st.sampled_from("dz "), st.integers(1, 20)), max_size=30))
    data_runs: list[PageRun] = []
    zero_runs: list[PageRun] = []
    page = 0
    for kind, length in kinds:
        run = PageRun(page, min(length, chunk_pages) if kind == "d" else length)
        if kind != " ":
            (data_runs if kind == "d" else zero_runs).append(run)
        page += run.count
    header = FileHeader(
        draw(st.sampled_from((0, 1 << 32))),
        (page + draw(st.integers(1, 5))) * PAGE_SIZE,
        chunk_pages,
        draw(st.sampled_from((4096, 20000, MIB))),
        draw(st.binary(min_size=16, max_size=16)),
    )
    chunks: list[tuple[list[PageRun], bytes]] = []
    for run in draw(st.permutations(data_runs)):
        content = b"".join(draw(st.sampled_from((b"ab", b"c\0", b"\0\0"))) * (PAGE_SIZE // 2) for _ in range(run.count))
        if chunks and sum(one.count for one in [*chunks[-1][0], run]) <= chunk_pages and draw(st.booleans()):
            chunks[-1] = ([*chunks[-1][0], run], chunks[-1][1] + content)
        else:
            chunks.append(([run], content))
    return header, chunks, zero_runs, draw(st.binary(max_size=300))


@settings(deadline=None, max_examples=60)
@given(_a_file())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    content: tuple[FileHeader, list[tuple[list[PageRun], bytes]], list[PageRun], bytes],
) -> None:
    header, chunks, zero_runs, state = content
    path = tmp_path_factory.getbasetemp() / "round-trip.ckpt"
    expected: dict[int, bytes] = {}
    with CheckpointWriter(path, header) as writer:
        for runs, data in chunks:
            writer.add_chunk(raw_frame(data) if len(data) % 3 else zstandard.compress(data), runs)
            numbers = (page for run in runs for page in range(run.first, run.first + run.count))
            for place, page in enumerate(numbers):
                expected[page] = data[place * PAGE_SIZE : (place + 1) * PAGE_SIZE]
        for run in zero_runs:
            writer.add_zero(run)
        writer.commit(state)
    found_header, found_state, found_zero_runs, pages, bad = read_everything(path)
    assert (found_header, found_state, pages, bad) == (header, state, expected, [])
    assert {page for run in found_zero_runs for page in range(run.first, run.first + run.count)} == {
        page for run in zero_runs for page in range(run.first, run.first + run.count)
    }


def test_chunks_are_never_split_over_storage_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real_write = os.pwritev

    def write(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        writes.append(sum(map(len, pieces)))
        return real_write(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", write)
    small, large = raw_frame(bytes(3000)), raw_frame(bytes(2 * PAGE_SIZE))
    with CheckpointWriter(tmp_path / "file.ckpt", HEADER) as writer:
        for page, frame in enumerate((small[:2000], small[:3000], small[:200], large, small[:100])):
            writer.add_chunk(frame, [PageRun(2 * page, 2)])
        assert writes == [64 + 2000 + 3000, 200 + len(large)]
        assert writer.size == sum(writes) + 100
        totals = writer.commit(b"")
    assert writes[2] == 100
    assert totals.block_writes == 3


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, offset: real_pwrite(fd, pieces[0][:5], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real_pwrite(fd, data[:7], offset))
    path = tmp_path / "file.ckpt"
    write_small_file(path)
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_short_reads_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    real_pread, real_preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real_pread(fd, min(length, 5), offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real_preadv(fd, [views[0][:5]], offset))
    assert read_everything(GOLDEN)[3][20] == b"\x22" * PAGE_SIZE


def test_failed_read_names_file_and_chunk() -> None:
    with CheckpointFile.open(GOLDEN) as file:
        with arm(FaultPoint.LOAD_READ, OSError(5, "Input/output error")):
            with pytest.raises(CheckpointError, match=r"version2\.ckpt: chunk 1: cannot read it: Input/output error"):
                file.read_frame(1)
            with pytest.raises(CheckpointError, match="chunks 0 to 2: cannot read it"):
                file.read_frames(0, 2)
        assert file.read_frame(1) == rle_frame(0x22, 2)
    with (
        arm(FaultPoint.LOAD_READ, OSError(5, "Input/output error")),
        pytest.raises(CheckpointError, match="cannot read it"),
    ):
        CheckpointFile.open(GOLDEN)


def test_file_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    write_small_file(path)
    with CheckpointFile.open(path) as file:
        with open(path, "r+b") as other:
            other.truncate(80)
        with pytest.raises(CheckpointError, match="chunk 2: incomplete"):
            file.read_frame(2)
        with pytest.raises(CheckpointError, match="chunks 0 to 2: incomplete"):
            file.read_frames(0, 2)


def test_chunks_are_read_by_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    write_small_file(path, filler=200)
    wrong: list[int] = []
    with CheckpointFile.open(path) as file:

        def read() -> None:
            for chunk in range(3, 203):
                if file.decompress(chunk, file.read_frame(chunk)) != bytes([chunk - 3]) * PAGE_SIZE:
                    wrong.append(chunk)  # noqa: PERF401 (a list for all threads)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "changes",
    [
        {"page_size": 8192},
        {"ram_size": 0},
        {"ram_size": 4097},
        {"ram_size": (1 << 44) + 4096},
        {"ram_base": 4095},
        {"ram_base": 1 << 47},
        {"chunk_pages": 0},
        {"chunk_pages": 257},
        {"block_size": 0},
        {"block_size": 1 << 31},
    ],
    ids=str,
)
def test_impossible_header_is_refused_on_both_sides(changes: dict[str, int], tmp_path: Path) -> None:
    header = HEADER._replace(**changes)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        CheckpointWriter(tmp_path / "file.ckpt", header)
    with pytest.raises(FormatError):
        FileHeader.unpack(header.pack())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("frame", "runs"),
    [
        (b"", [PageRun(0, 1)]),
        (bytes(5 * PAGE_SIZE), [PageRun(0, 1)]),
        (b"x", []),
        (b"x", [PageRun(0, 0)]),
        (b"x", [PageRun(0, 5)]),
        (b"x", [PageRun(0, 2), PageRun(10, 3)]),
        (b"x", [PageRun(63, 2)]),
        (b"x", [PageRun(-1, 1)]),
    ],
    ids=str,
)
def test_writer_refuses_impossible_chunks(frame: bytes, runs: list[PageRun], tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "file.ckpt", HEADER) as writer:
        with pytest.raises(ValueError, match="a chunk of"):
            writer.add_chunk(frame, runs)
        assert writer.commit(b"").chunks == 0


@pytest.mark.parametrize("zero", [False, True])
def test_writer_refuses_a_page_that_was_given_twice(zero: bool, tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "file.ckpt", HEADER) as writer:
        writer.add_chunk(rle_frame(1, 3), [PageRun(5, 3)])
        if zero:
            writer.add_zero(PageRun(7, 10))
        else:
            writer.add_chunk(rle_frame(1, 1), [PageRun(6, 1)])
        with pytest.raises(ValueError, match="a page is in two runs"):
            writer.commit(b"")
    assert not list(tmp_path.iterdir())


def test_writer_refuses_a_state_that_nobody_would_read(tmp_path: Path) -> None:
    with (
        CheckpointWriter(tmp_path / "file.ckpt", HEADER) as writer,
        pytest.raises(ValueError, match=f"at most {layout.MAX_STATE_SIZE}"),
    ):
        writer.commit(bytes(layout.MAX_STATE_SIZE + 1))
    with CheckpointWriter(tmp_path / "file.ckpt", HEADER) as writer:
        writer.commit(bytes(layout.MAX_STATE_SIZE))
    with CheckpointFile.open(tmp_path / "file.ckpt") as file:
        assert file.state == bytes(layout.MAX_STATE_SIZE)


def test_used_writer_refuses_more(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "file.ckpt", HEADER) as writer:
        writer.commit(b"")
        with pytest.raises(ValueError, match="closed"):
            writer.add_chunk(rle_frame(1, 1), [PageRun(0, 1)])
        writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["file.ckpt"]


def test_records_have_their_documented_sizes() -> None:
    record = CommitRecord(64, 40, bytes(32), 104, 9, 0, bytes(32), bytes(32), 361)
    assert (len(HEADER.pack()), len(record.pack())) == (64, 248)
    assert CommitRecord.unpack(record.pack(), 361, 2) == record
    old = CommitRecord(64, 24, bytes(32), 88, 9, 0, bytes(32), bytes(32), 257, version=1)
    assert (len(HEADER._replace(version=1).pack()), len(old.pack())) == (64, 160)
    assert CommitRecord.unpack(old.pack(), 257, 1) == old


def test_old_golden_file_has_no_gaps() -> None:
    """Put together from its parts by the code that knows the old layout, it is the same file."""
    assert take_apart(OLD).assemble() == OLD.read_bytes()


def test_golden_child_is_read() -> None:
    header, state, zero_runs, pages, bad = read_everything(CHILD)
    assert (header.checkpoint_id, state, bad) == (bytes(16), b'{"golden": 2}', [])
    assert zero_runs == [PageRun(1, 1), PageRun(63, 1)]
    fill = {29: 0x44, 11: 0x44, 30: 0x55, 20: 0x55, 10: 0x22, 12: 0x33}
    assert pages == {page: bytes([byte]) * PAGE_SIZE for page, byte in fill.items()}
    with CheckpointFile.open(CHILD) as file:
        assert file.parent is not None and file.parent.hint == Path("version2.ckpt")
        assert (list(file.active.pages), file.active.kinds) == ([30, 10], bytes([3, 1]))
        assert (file.index.data_pages, file.index.superseded_pages, file.index.inherited_pages) == (4, 2, 4)


def test_golden_child_has_what_the_drawing_says() -> None:
    data = CHILD.read_bytes()

    def u64(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 8], "little")

    record = len(data) - 248
    index = u64(record + 8)
    assert [u64(index + place) for place in range(0, 40, 8)] == [2, 5, 1, 4, 1]
    parent = index + u64(record + 16)
    assert data[parent : parent + 16] == HEADER.checkpoint_id
    assert data[parent + 16 : parent + 48] == layout.sha256([GOLDEN.read_bytes()[-248:]])
    active = parent + u64(record + 152)
    assert data[parent + 48 : active] == b"version2.ckpt"
    assert u64(record + 232) == 2
    assert active + u64(record + 192) == u64(record + 56)
    entries = zstandard.decompress(data[active : u64(record + 56)])
    assert entries == (30).to_bytes(4, "little") + ((10 - 30) % (1 << 32)).to_bytes(4, "little") + b"\3\1"
