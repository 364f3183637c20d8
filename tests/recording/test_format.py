"""What is recorded is read again, in both formats; what is damaged is read up to there, and said."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memvm.errors import RecordingError, SaveError
from memvm.memory.events import TraceEvent
from memvm.recording import format as layout
from memvm.recording.format import EventBlock, FormatError, NamedRegion, RecordingHeader
from memvm.recording.jsonlines import JsonLines
from memvm.recording.reader import Recording
from memvm.recording.writer import RecordingWriter, header_for
from memvm.units import PAGE_SIZE
from tests.recording.samples import BASE, EVENTS, HEADER, REGIONS, event, read_all, record

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

GOLDEN = Path(__file__).parent / "golden" / "version1.trace"
BOTH = pytest.mark.parametrize("json_lines", [False, True], ids=["binary", "json"])
U63 = st.integers(0, (1 << 63) - 1)
ANY_EVENT = st.builds(TraceEvent, st.integers(0, 1023), st.integers(1, 3), st.integers(0, (1 << 31) - 1), U63, U63)


@BOTH
def test_what_is_recorded_is_read_again(tmp_path: Path, json_lines: bool) -> None:
    path = record(tmp_path / "a", json_lines=json_lines)
    assert read_all(path) == (EVENTS, 0, "")
    with Recording.open(path) as recording:
        assert recording.header == HEADER
        assert list(recording.blocks()) == list(recording.blocks())
        assert list(recording.regions) == REGIONS


@BOTH
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.lists(ANY_EVENT, max_size=20), st.integers(0, 99)), max_size=5))
def test_anything_is_read_again(json_lines: bool, parts: list[tuple[list[TraceEvent], int]]) -> None:
    file = _Kept()
    with RecordingWriter(file, HEADER, JsonLines() if json_lines else None) as writer:
        for events, dropped in parts:
            writer.add(events)
            writer.drop(dropped)
    recording = Recording(io.BytesIO(file.kept), "it")
    blocks = list(recording.blocks())
    assert [seen for block in blocks for seen in block] == [seen for events, _ in parts for seen in events]
    assert sum(block.dropped for block in blocks) == sum(dropped for _, dropped in parts)
    assert recording.ending is not None and recording.ending.finished


class _Kept(io.BytesIO):
    """A file whose bytes outlive it."""

    name = "kept"
    kept = b""

    def close(self) -> None:
        self.kept = self.kept or self.getvalue()
        super().close()


def test_the_extremes_of_every_column() -> None:
    limit = (1 << 63) - 1
    most = (1 << 31) - 1
    block = EventBlock.of(
        [TraceEvent(most, 3, most, limit, limit), TraceEvent(0, 1, 0, 0, 0), TraceEvent(most, 2, most, limit, limit)]
    )
    data = layout.pack_events(block, most + 1)
    header = layout.BlockHeader.unpack(data[: layout.BLOCK_HEADER_SIZE])
    assert list(layout.unpack_events(header, data[layout.BLOCK_HEADER_SIZE :], most + 1)) == list(block)
    with pytest.raises(FormatError, match=f"page {most} is not in guest RAM"):
        layout.unpack_events(header, data[layout.BLOCK_HEADER_SIZE :], most)


def test_many_events_are_small(tmp_path: Path) -> None:
    events = [event(page % 1000, 1, page * 1e-5) for page in range(200_000)]
    path = record(tmp_path / "a", events)
    assert path.stat().st_size < len(events)  # a byte an event, where JSON takes a hundred
    assert read_all(path) == (events, 0, "")


def test_golden_file_is_read() -> None:
    assert read_all(GOLDEN) == (EVENTS, 3, "")
    with Recording.open(GOLDEN) as recording:
        list(recording.blocks())
        assert (recording.header, list(recording.regions)) == (HEADER, REGIONS)


def test_golden_file_has_what_the_drawing_says() -> None:
    data = GOLDEN.read_bytes()
    assert data[:8] == b"memvmREC"
    assert struct.unpack_from("<HHIQQQQ", data, 8) == (1, 128, 4096, *HEADER[1:])
    assert data[48:112].rstrip(b"\0") == b"hub"
    assert struct.unpack_from("<I", data, 124)[0] == crc32(data[:124])
    kinds, at = [], 128
    while at < len(data):
        kind, length, count, crc, dropped = struct.unpack_from("<4sIIIQ", data, at)
        assert crc == crc32(data[at + 32 : at + 32 + length])
        kinds.append((kind, count, dropped))
        at += 32 + length
    assert kinds == [(b"RGNS", 0, 0), (b"EVTS", 3, 0), (b"EVTS", 1, 2), (b"ENDS", 0, 1)]


@BOTH
def test_a_recording_that_was_cut_is_read_up_to_there(tmp_path: Path, json_lines: bool) -> None:
    whole = record(tmp_path / "a", json_lines=json_lines).read_bytes()
    cut = tmp_path / "cut"
    lengths: set[int] = set()
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        try:
            events, _, flaw = read_all(cut)
        except RecordingError as error:
            assert not lengths and str(cut) in error.message and error.hint
            continue
        assert events == EVENTS[: len(events)] and flaw
        lengths.add(len(events))
    assert len(EVENTS) in lengths


def test_a_file_that_still_grows_is_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RecordingWriter.create(path, HEADER) as writer:
        writer.add(EVENTS[:2])
        assert read_all(path) == ([], 0, "unfinished")
        writer.flush()
        assert read_all(path) == (EVENTS[:2], 0, "unfinished")
        writer.add(EVENTS[2:])
    assert read_all(path) == (EVENTS, 0, "")


def test_a_damaged_block_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RecordingWriter.create(path, HEADER) as writer:
        for seen in EVENTS:
            writer.add([seen])
            writer.flush()
    data = bytearray(path.read_bytes())
    second = data.index(b"EVTS", data.index(b"EVTS") + 1)
    for at in range(second, len(data) - 32, 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        events, _, flaw = read_all(path)
        assert events == EVENTS[: len(events)] and 1 <= len(events) < len(EVENTS)
        assert flaw.startswith("read up to byte")


def test_what_follows_the_end_is_left_out(tmp_path: Path) -> None:
    path = record(tmp_path / "a")
    path.write_bytes(path.read_bytes() + b"x")
    assert read_all(path) == (EVENTS, 0, "something follows its end, and is left out")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF" + bytes(200), "not a recording of memvm"),
        (HEADER.pack()[:50], "cut short before anything was recorded"),
        (HEADER.pack()[:60] + b"x" + HEADER.pack()[61:], "the header is damaged"),
        (HEADER.pack()[:8] + b"\x02" + HEADER.pack()[9:], "written by a newer memvm"),
        (HEADER._replace(ram_size=0).pack(), "impossible RAM size"),
        (HEADER._replace(ram_base=1 << 47).pack(), "impossible RAM base"),
        (b"{nothing", "a line that is not JSON"),
        (b'{"recording": 2}\n', "of a newer memvm"),
        (b'{"recording": 1, "name": 5}\n', "the first line makes no sense"),
    ],
)
def test_what_is_no_recording_is_said(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=message):
        Recording.open(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        Recording.open(tmp_path / "a")
    with pytest.raises(RecordingError, match="not an ordinary file"):
        Recording.open(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"page": 5, "access": "x", "vcpu": 1, "time": 1, "instruction": 0}',
        b'{"page": 1024, "access": "r", "vcpu": 1, "time": 1, "instruction": 0}',
        b'{"page": true, "access": "r", "vcpu": 1, "time": 1, "instruction": 0}',
        b'{"page": 5, "access": "r"}',
        b'{"dropped": -1}',
        b'{"regions": [[1, 1, "a"]]}',
        b'{"regions": [[1, 2]]}',
        b'{"other": 1}',
        b"[" * 5000,
    ],
)
def test_a_senseless_line_ends_the_reading(line: bytes, tmp_path: Path) -> None:
    path = record(tmp_path / "a", json_lines=True)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], line + b"\n", *lines[4:]]))
    events, _, flaw = read_all(path)
    assert events == EVENTS[:2] and flaw.startswith("read up to byte")


def test_json_lines_are_what_the_drawing_says(tmp_path: Path) -> None:
    first, regions, seen, *_, last = map(json.loads, record(tmp_path / "a", json_lines=True).read_text().splitlines())
    assert first == {"recording": 1, **HEADER._asdict()}
    assert regions["regions"][0] == [BASE, BASE + 16 * PAGE_SIZE, "image"]
    assert seen == {"page": 5, "access": "w", "vcpu": 77, "time": 1_001_000_000, "instruction": 0x401000}
    assert last == {"end": True}


def test_impossible_events_are_not_recorded(tmp_path: Path) -> None:
    with RecordingWriter.create(tmp_path / "a", HEADER) as writer:
        writer.add([event(1024)])
        with pytest.raises(FormatError, match="page 1024 is not in guest RAM"):
            writer.flush()
        writer.add(EVENTS)
    assert read_all(tmp_path / "a")[0] == EVENTS


@BOTH
def test_more_regions_than_a_file_may_have(tmp_path: Path, json_lines: bool) -> None:
    many = [NamedRegion(at, at + 1, "\U0001f600" * 300) for at in range(layout.MAX_REGIONS + 1)]
    with RecordingWriter.create(tmp_path / "a", HEADER, json_lines=json_lines) as writer:
        writer.regions(many)
    with Recording.open(tmp_path / "a") as recording:
        list(recording.blocks())
        assert len(recording.regions) == layout.MAX_REGIONS
        assert recording.regions[0].name == "\U0001f600" * layout.MAX_REGION_NAME


def test_a_full_disk_is_one_error_and_what_was_written_is_read() -> None:
    file = _Full(300)
    writer = RecordingWriter(file, HEADER)
    with pytest.raises(SaveError, match="cannot record to full: No space left"):
        for seen in EVENTS * 10:
            writer.add([seen])
            writer.flush()
    assert file.closed
    with pytest.raises(SaveError, match="was closed"):
        writer.regions([])
    writer.close()
    recording = Recording(io.BytesIO(file.kept), "it")
    events = [seen for block in recording.blocks() for seen in block]
    assert events and events == (EVENTS * 10)[: len(events)]


class _Full(_Kept):
    name = "full"

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Buffer) -> int:
        view = memoryview(data)
        if not self.room:
            raise OSError(28, "No space left on device")
        done = min(len(view), self.room)
        self.room -= done
        return super().write(view[:done])


def test_the_header_of_now() -> None:
    header = header_for("a" * 64, BASE, PAGE_SIZE)
    assert RecordingHeader.unpack(header.pack()) == header
    with pytest.raises(FormatError):
        header._replace(name="ä" * 64).check()
