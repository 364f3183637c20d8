"""Recordings for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memvm.memory.events import TraceEvent
from memvm.recording.format import NamedRegion, RecordingHeader
from memvm.recording.reader import Recording
from memvm.recording.writer import RecordingWriter
from memvm.units import PAGE_SIZE

BASE = 0x200000
HEADER = RecordingHeader("hub", BASE, 1024 * PAGE_SIZE, 1_000_000_000, 1_700_000_000_000_000_000)
REGIONS = [NamedRegion(BASE, BASE + 16 * PAGE_SIZE, "image"), NamedRegion(0x300000, 0x340000, "heap")]


def event(page: int, access: int = 1, at: float = 0.0, vcpu: int = 77, instruction: int = 0x401000) -> TraceEvent:
    """An access `at` seconds after the start."""
    return TraceEvent(page, access, vcpu, HEADER.started + round(at * 1e9), instruction)


EVENTS = [event(5, 2, 0.001), event(6, 1, 0.002, 78), event(5, 3, 0.002), event(1023, 1, 5.5, instruction=0)]


def record(
    path: Path, events: Sequence[TraceEvent] = EVENTS, header: RecordingHeader = HEADER, *, json_lines: bool = False
) -> Path:
    """A whole recording of these events, with regions."""
    with RecordingWriter.create(path, header, json_lines=json_lines) as writer:
        writer.regions(REGIONS)
        writer.add(events)
    return path


def read_all(path: Path) -> tuple[list[TraceEvent], int, str]:
    """Events, how many were dropped, and the flaw ("unfinished" if there is none but no end either)."""
    with Recording.open(path) as recording:
        events: list[TraceEvent] = []
        dropped = 0
        for block in recording.blocks():
            events += block
            dropped += block.dropped
        assert recording.ending is not None
        return events, dropped, recording.ending.flaw or ("" if recording.ending.finished else "unfinished")
