"""Damaged and hostile files: a clear error, or what was saved; never other data, never harm."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.format import MAX_STATE_SIZE, chunk_checksum
from memvm.errors import CheckpointError
from memvm.units import PAGE_SIZE
from tests.checkpoint.parts import (
    INHERITED_COUNT,
    INHERITED_FIRST,
    LENGTH,
    OFFSET,
    RUN_COUNT,
    RUN_END,
    RUN_FIRST,
    SUPERSEDED,
    ZERO_COUNT,
    ZERO_FIRST,
    Parts,
    read_everything,
    take_apart,
)
from tests.checkpoint.samples import HEADER, rle_frame, write_small_child, write_small_file

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.ckpt"
    write_small_file(path)
    return path


def test_file_cut_anywhere_is_incomplete(small_file: Path) -> None:
    data = small_file.read_bytes()
    for length in range(len(data)):
        small_file.write_bytes(data[:length])
        with pytest.raises(
            CheckpointError, match="incomplete|empty" if length >= 8 else "incomplete|empty|not a"
        ) as raised:
            CheckpointFile.open(small_file)
        assert str(small_file) in raised.value.message
        assert raised.value.hint


def test_file_made_longer_is_incomplete(small_file: Path) -> None:
    data = small_file.read_bytes()
    for more in (b"\0", bytes(4096), data[-248:]):
        small_file.write_bytes(data + more)
        with pytest.raises(CheckpointError, match="incomplete"):
            CheckpointFile.open(small_file)


def test_no_flipped_bit_gives_other_data(small_file: Path) -> None:
    original = read_everything(small_file)
    data = bytearray(small_file.read_bytes())
    storage = range(64, 64 + 3 * len(rle_frame(0, 1)))
    with open(small_file, "r+b", buffering=0) as file:
        for bit in range(len(data) * 8):
            place = bit // 8
            data[place] ^= 1 << bit % 8
            os.pwrite(file.fileno(), data[place : place + 1], place)
            try:
                found = read_everything(small_file)
            except CheckpointError:
                assert place not in storage
            else:
                assert place in storage
                assert len(found[-1]) == 1
                assert found[:3] == original[:3]
                assert found[3].items() < original[3].items()
            data[place] ^= 1 << bit % 8
            os.pwrite(file.fileno(), data[place : place + 1], place)
    assert read_everything(small_file) == original


@pytest.mark.parametrize("flipped", ["parent", "child"])
def test_no_flipped_bit_in_a_chain_gives_other_data(flipped: str, small_file: Path) -> None:
    """Every bit of the child, and every seventh of its parent, which is a small file as above."""
    child = small_file.with_name("child.ckpt")
    write_small_child(child, small_file)
    original = read_everything(child)
    target = child if flipped == "child" else small_file
    data = bytearray(target.read_bytes())
    storage = range(64, 64 + (2 if target is child else 3) * len(rle_frame(0, 1)))
    for bit in range(0, len(data) * 8, 1 if target is child else 7):
        place = bit // 8
        data[place] ^= 1 << bit % 8
        target.write_bytes(data)
        try:
            found = read_everything(child)
        except CheckpointError:
            assert place not in storage
        else:
            assert place in storage
            assert len(found[-1]) == 1
            assert found[:3] == original[:3]
            assert found[3].items() <= original[3].items()
        data[place] ^= 1 << bit % 8
    target.write_bytes(data)
    assert read_everything(child) == original


def test_swapped_chunks_are_noticed(small_file: Path) -> None:
    size = len(rle_frame(0, 1))
    data = small_file.read_bytes()
    one, two = slice(64 + size, 64 + 2 * size), slice(64 + 2 * size, 64 + 3 * size)
    small_file.write_bytes(data[: one.start] + data[two] + data[one] + data[two.stop :])
    with CheckpointFile.open(small_file) as file:
        assert file.decompress(0, file.read_frame(0)) == b"\x11" * PAGE_SIZE
        for chunk in (1, 2):
            with pytest.raises(CheckpointError, match=f"small.ckpt: chunk {chunk}: damaged: its checksum"):
                file.read_frame(chunk)
        with pytest.raises(CheckpointError, match=r"chunk 1: damaged"):
            file.read_frames(0, 2)


def test_newer_version_has_its_own_message(small_file: Path) -> None:
    data = bytearray(small_file.read_bytes())
    data[8] = 3
    small_file.write_bytes(data)
    with pytest.raises(CheckpointError, match="written by a newer memvm: format version 3") as raised:
        CheckpointFile.open(small_file)
    assert "newer" in raised.value.hint


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"hello, world", "elf": b"\x7fELF" + bytes(5000)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            CheckpointError, match=re.escape(str(tmp_path / name)) + ": (not a memvm|the file is empty)"
        ):
            CheckpointFile.open(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        CheckpointFile.open(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        CheckpointFile.open(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        CheckpointFile.open(tmp_path / "missing")


Change = Callable[[Parts], object]


def _item(column: int, place: int, value: int) -> Change:
    return lambda parts: parts.columns[column].__setitem__(place, value)


def _record(**fields: int) -> Change:
    return lambda parts: parts.record.update(fields)


def _counts(*counts: int) -> Change:
    return lambda parts: setattr(parts, "counts", list(counts))


def _header(**fields: int) -> Change:
    return lambda parts: setattr(parts, "header", parts.header._replace(**fields))  # type: ignore[arg-type]


def _inherited(first: int, count: int) -> Change:
    def change(parts: Parts) -> None:
        parts.columns[INHERITED_FIRST].append(first)
        parts.columns[INHERITED_COUNT].append(count)

    return change


def _superseded(*runs: int) -> Change:
    return lambda parts: parts.columns[SUPERSEDED].extend(runs)


def _section(**fields: object) -> Change:
    return lambda parts: vars(parts).update(fields)


def _active(data: bytes, pages: int) -> Change:
    return _section(active_frame=zstandard.compress(data), active_pages=pages)


HOSTILE: dict[str, tuple[Change, str]] = {
    "index before storage": (_record(index_offset=0), "contradicts itself"),
    "index far outside": (_record(index_offset=1 << 63), "contradicts itself"),
    "index too long": (_record(index_length=(1 << 64) - 1), "contradicts itself"),
    "state far outside": (_record(state_offset=1 << 62), "contradicts itself"),
    "state too long": (_record(state_length=1 << 40), "contradicts itself"),
    "file longer than it is": (_record(file_length=1 << 40), "incomplete: it has"),
    "state larger than allowed": (_record(state_raw_length=MAX_STATE_SIZE + 1), "a state of"),
    "state larger than said": (_record(state_raw_length=3), "does not hold 3 bytes"),
    "counts too large": (_counts((1 << 64) - 1, 4, 2, 0, 0), "not as long as its counts say"),
    "counts that overflow": (_counts(1 << 61, 4, 2, 0, 0), "not as long as its counts say"),
    "counts that change the columns": (_counts(0, 4, 2 + 60 // 8, 0, 0), "not as long as its counts say"),
    "more chunks than runs": (_counts(4, 3, 0, 0, 0), "more chunks or runs than|not as long"),
    "more superseded runs than runs": (_counts(0, 0, 0, 0, 25), "more superseded runs than runs"),
    "RAM too small for the runs": (_header(ram_size=5 * PAGE_SIZE), "more chunks or runs than RAM has pages"),
    "RAM too small for a page": (_header(ram_size=63 * PAGE_SIZE), "a run is not in RAM"),
    "chunk smaller than its pages": (_header(chunk_pages=1), "a chunk has 2 pages"),
    "first chunk in the header": (_item(OFFSET, 0, 0), "not back to back"),
    "chunk behind the file": (_item(OFFSET, 2, 1 << 63), "not back to back"),
    "chunk over its neighbour": (_item(OFFSET, 2, 64), "not back to back"),
    "chunk without bytes": (lambda p: (_item(LENGTH, 0, 0)(p), _item(LENGTH, 1, 26)(p)), "impossible length"),
    "chunk too long for the file": (_item(LENGTH, 2, (1 << 32) - 1), "do not fill the storage"),
    "last run missing": (_item(RUN_END, 2, 3), "runs do not follow"),
    "run end too large": (_item(RUN_END, 2, (1 << 32) - 1), "runs do not follow"),
    "run end goes back": (_item(RUN_END, 1, 1), "runs do not follow"),
    "chunk without runs": (_item(RUN_END, 0, 0), "has no pages"),
    "run without pages": (_item(RUN_COUNT, 1, 0), "a run has no pages"),
    "run over the end of RAM": (_item(RUN_COUNT, 0, 2), "a run is not in RAM"),
    "run far outside RAM": (_item(RUN_FIRST, 0, (1 << 32) - 1), "a run is not in RAM"),
    "chunk with too many pages": (_item(RUN_COUNT, 3, 5), "a chunk has 5 pages"),
    "page in two chunks": (_item(RUN_FIRST, 0, 12), "a page is in two runs"),
    "page twice in a chunk": (_item(RUN_FIRST, 1, 20), "a page is in two runs"),
    "page both zero and not": (_item(ZERO_FIRST, 1, 63), "a page is in two runs"),
    "zero run over data": (_item(ZERO_COUNT, 0, 10), "a page is in two runs"),
    "zero run over zero run": (_item(ZERO_FIRST, 1, 6), "a page is in two runs"),
    "zero run of no pages": (_item(ZERO_COUNT, 0, 0), "a run has no pages"),
    "zero run outside RAM": (_item(ZERO_COUNT, 1, (1 << 32) - 1), "a run is not in RAM"),
    "inherited without a parent": (_inherited(50, 1), "inherits pages, but has no parent"),
    "inherited run over data": (_inherited(62, 2), "a page is in two runs"),
    "inherited run over zero run": (_inherited(0, 2), "a page is in two runs"),
    "inherited run of no pages": (_inherited(50, 0), "a run has no pages"),
    "inherited run outside RAM": (_inherited(50, (1 << 32) - 1), "a run is not in RAM"),
    "superseded run that is none": (_superseded(4), "superseded runs do not ascend, or are none"),
    "superseded runs that go back": (_superseded(2, 1), "superseded runs do not ascend"),
    "superseded run twice": (_superseded(1, 1), "superseded runs do not ascend"),
    "parent section too long": (_record(parent_length=5000, state_offset=1 << 20), "contradicts itself"),
    "parent without a name": (_section(parent=bytes(48)), "its parent has no name"),
    "parent with an absolute name": (_section(parent=bytes(48) + b"/a"), "no relative path"),
    "parent with a zero byte in its name": (_section(parent=bytes(48) + b"a\0"), "no relative path"),
    "parent with an endless name": (_section(parent=bytes(48) + b"a" * 4096), "a parent section of 4144 bytes"),
    "active pages without a list": (_section(active_pages=1), "contradicts itself"),
    "active list without pages": (_section(active_frame=zstandard.compress(b"")), "contradicts itself"),
    "active list too long": (_active(bytes(5), (1 << 22) + 1), "an active list of"),
    "more active pages than RAM has": (_active(bytes(5 * 65), 65), "more active pages than RAM has"),
    "active list shorter than said": (_active(b"\1\0\0\0\1", 2), "does not hold 10 bytes"),
    "active page outside RAM": (_active(b"\x40\0\0\0\1", 1), "an active page is not in RAM"),
    "active page twice": (_active(b"\1\0\0\0\0\0\0\0\1\1", 2), "a page is active twice"),
    "active page never accessed": (_active(b"\1\0\0\0\0", 1), "in no known way"),
    "active page accessed strangely": (_active(b"\1\0\0\0\4", 1), "in no known way"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(name: str, small_file: Path) -> None:
    change, message = HOSTILE[name]
    parts = take_apart(small_file)
    change(parts)
    small_file.write_bytes(parts.assemble())
    with pytest.raises(CheckpointError, match=message):
        CheckpointFile.open(small_file)


def test_missing_storage_is_noticed(small_file: Path) -> None:
    parts = take_apart(small_file)
    del parts.frames[1]
    small_file.write_bytes(parts.assemble())
    with pytest.raises(CheckpointError, match="do not fill the storage"):
        CheckpointFile.open(small_file)


HOSTILE_FRAMES = {
    "too few pages": rle_frame(1, 1),
    "too many pages": rle_frame(1, 3),
    "a terabyte": struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 40) + b"\x03\x00\x00\x00",
    "more than it says": rle_frame(1, 2)[:9] + rle_frame(1, 3)[9:],
    "less than it says": rle_frame(1, 2)[:9] + rle_frame(1, 1)[9:],
    "no size": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2 * PAGE_SIZE)),
    "two frames": rle_frame(1, 2) * 2,
    "a cut frame": rle_frame(1, 2)[:-1],
    "no frame": b"not zstd at all",
}


@pytest.mark.parametrize("name", HOSTILE_FRAMES)
def test_hostile_frame_with_a_right_checksum(name: str, small_file: Path) -> None:
    parts = take_apart(small_file)
    parts.frames[1] = HOSTILE_FRAMES[name]
    parts.fit_chunks()
    small_file.write_bytes(parts.assemble())
    with CheckpointFile.open(small_file) as file:
        frame = file.read_frame(1)
        with pytest.raises(CheckpointError, match="chunk 1: a frame that"):
            file.decompress(1, frame)
        assert file.decompress(2, file.read_frame(2)) == b"\x33" * 2 * PAGE_SIZE


def test_damaged_state_is_noticed(small_file: Path) -> None:
    parts = take_apart(small_file)
    parts.state_frame = parts.state_frame[:-1]
    small_file.write_bytes(parts.assemble())
    with pytest.raises(CheckpointError, match="a frame that cannot be decompressed"):
        CheckpointFile.open(small_file)


def test_index_of_many_runs_is_checked_whole(tmp_path: Path) -> None:
    """One overlap among thousands of runs in scattered order."""
    path = tmp_path / "file.ckpt"
    frame = rle_frame(7, 1)
    count = 5000
    order = [page * 1811 % count for page in range(count)]
    parts = Parts(
        header=HEADER._replace(ram_size=2 * count * PAGE_SIZE),
        frames=[frame] * count,
        columns=[
            array("Q", range(64, 64 + count * len(frame), len(frame))),
            array("I", [len(frame)]) * count,
            array("I", [chunk_checksum(HEADER.version)(frame)]) * count,
            array("I", range(1, count + 1)),
            array("I", (2 * page for page in order)),
            array("I", range(1, 2 * count, 2)),
            array("I", [1]) * count,
            *(array("I"), array("I"), array("I")),
            array("H", [1]) * count,
        ],
        state_frame=zstandard.compress(b""),
        state_length=0,
    )
    path.write_bytes(parts.assemble())
    with CheckpointFile.open(path) as file:
        assert all(file.index.chunk_of(2 * page) == chunk for chunk, page in enumerate(order))
        assert all(file.index.chunk_of(2 * page + 1) is None for page in order)
    parts.columns[RUN_COUNT][1234] = 2
    path.write_bytes(parts.assemble())
    with pytest.raises(CheckpointError, match="a page is in two runs"):
        CheckpointFile.open(path)


def test_fuzzer_finds_nothing(time_scale: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz_checkpoint", "--files", "400", "--seed", "1"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60 * time_scale,
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"400 files from seed 1: (\d+) read to the end, the rest refused; all well\n", done.stdout)
    assert found, done.stdout
    assert 20 < int(found[1]) < 380, "it tries too little of the one or of the other"
