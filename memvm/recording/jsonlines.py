"""A recording as JSON lines, for programs that are not memvm: one object a line.

    {"recording": 1, "name": "hub", "ram_base": 2097152, "ram_size": 1073741824, "started": 5, "started_at": 6}
    {"regions": [[4194304, 4206592, "image"]]}
    {"page": 512, "access": "w", "vcpu": 77, "time": 123456789, "instruction": 4198400}
    {"dropped": 12}
    {"end": true}

`access` is r, w or rw; times are nanoseconds. The first line comes first, and {"end": true} last if there is an end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from memvm.memory.events import TraceEvent
from memvm.recording.format import (
    MAX_NAME_SIZE,
    EventBlock,
    FormatError,
    NamedRegion,
    RecordingHeader,
    region_rows,
    regions_from,
)

MAX_LINE = 1 << 23
"""Bytes: more than the longest list of regions."""
_BATCH = 4096
_ACCESS = {1: "r", 2: "w", 3: "rw"}
_BITS = {letters: bits for bits, letters in _ACCESS.items()}


class JsonLines:
    """What a RecordingWriter needs to write JSON lines."""

    def header(self, header: RecordingHeader) -> bytes:
        return _line({"recording": 1, **header._asdict()})

    def events(self, block: EventBlock, ram_pages: int) -> bytes:
        block.check(ram_pages)
        lost = _line({"dropped": block.dropped}) if block.dropped else b""
        return lost + b"".join(_line(event._asdict() | {"access": _ACCESS[event.access]}) for event in block)

    def regions(self, regions: Sequence[NamedRegion]) -> bytes:
        return _line({"regions": region_rows(regions)})

    def end(self, dropped: int) -> bytes:
        return (_line({"dropped": dropped}) if dropped else b"") + _line({"end": True})


def read_header(line: bytes) -> RecordingHeader:
    """The header that the first line holds. Raises FormatError."""
    fields = _object(line)
    if fields.get("recording") != 1:
        raise FormatError("JSON that is no recording, or one of a newer memvm")
    values = [fields.get(name) for name in RecordingHeader._fields]
    if [type(value) for value in values] != [str, int, int, int, int] or len(str(values[0])) > MAX_NAME_SIZE:
        raise FormatError("the first line makes no sense")
    header = RecordingHeader(*values)  # type: ignore[arg-type]  # they were looked at just before
    header.check()
    return header


def read_parts(file: BinaryIO, ram_pages: int) -> Iterator[EventBlock | list[NamedRegion] | None]:
    """What the lines behind the first hold: events, regions, and None for the end.

    Raises FormatError at a line that makes no sense, after all that came before it.
    """
    batch: list[TraceEvent] = []
    dropped = 0

    def gathered() -> Iterator[EventBlock]:
        nonlocal batch, dropped
        if batch or dropped:
            yield EventBlock.of(batch, dropped)
        batch, dropped = [], 0

    while line := file.readline(MAX_LINE):
        try:
            if not line.endswith(b"\n"):
                raise FormatError("it ends in the middle of a line, or a line is too long")
            part = _part(line, ram_pages)
        except FormatError:
            yield from gathered()
            raise
        if isinstance(part, TraceEvent):
            batch.append(part)
            if len(batch) == _BATCH:
                yield from gathered()
            continue
        yield from gathered()
        if isinstance(part, int):
            dropped = part
        else:
            yield part
    yield from gathered()


def _part(line: bytes, ram_pages: int) -> TraceEvent | list[NamedRegion] | int | None:
    fields = _object(line)
    if "page" in fields:
        values = [fields.get(name) for name in TraceEvent._fields]
        values[1] = _BITS.get(values[1]) if isinstance(values[1], str) else None
        if [type(value) for value in values] != [int] * len(values):
            raise FormatError("an event that makes no sense")
        event = TraceEvent(*values)  # type: ignore[arg-type]  # they were looked at just before
        EventBlock.of([event]).check(ram_pages)
        return event
    if "regions" in fields:
        return regions_from(fields["regions"])
    if type(dropped := fields.get("dropped")) is int and 0 <= dropped < 1 << 63:
        return dropped
    if fields.get("end") is True:
        return None
    raise FormatError("a line that makes no sense")


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise FormatError("a line that is not JSON") from None
    if not isinstance(fields, dict):
        raise FormatError("a line that is no JSON object")
    return fields


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"
