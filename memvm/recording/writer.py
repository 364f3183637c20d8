"""Writing a recording: events are gathered, and appended to the file a whole block at a time.

Whoever sees events (a fault handler, or a thread that empties a ring) gives them to `add`. A block is written when it
is full, or at `flush`; somebody calls that now and then, so that a reader of a file that still grows is not far behind.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

from memvm.errors import SaveError
from memvm.memory.events import TraceEvent
from memvm.recording import jsonlines
from memvm.recording.format import (
    END,
    MAX_BLOCK_EVENTS,
    EventBlock,
    NamedRegion,
    RecordingHeader,
    pack_block,
    pack_events,
    pack_regions,
)


class Encoding(Protocol):
    """How what is recorded becomes bytes: the binary format, or JSON lines."""

    def header(self, header: RecordingHeader) -> bytes: ...

    def events(self, block: EventBlock, ram_pages: int) -> bytes: ...

    def regions(self, regions: Sequence[NamedRegion]) -> bytes: ...

    def end(self, dropped: int) -> bytes: ...


class Binary:
    """The format of format.py."""

    def header(self, header: RecordingHeader) -> bytes:
        return header.pack()

    def events(self, block: EventBlock, ram_pages: int) -> bytes:
        return pack_events(block, ram_pages)

    def regions(self, regions: Sequence[NamedRegion]) -> bytes:
        return pack_regions(regions)

    def end(self, dropped: int) -> bytes:
        return pack_block(END, dropped=dropped)


def header_for(name: str, ram_base: int, ram_size: int) -> RecordingHeader:
    """The header of a recording that begins now."""
    return RecordingHeader(name, ram_base, ram_size, time.monotonic_ns(), time.time_ns())


class RecordingWriter:
    """Appends to a recording; a context manager, which ends it in good order. May be used by several threads.

    Every method raises SaveError if the file cannot be written. What was written before is a recording that was cut
    short; nothing more is written to it.
    """

    def __init__(self, file: BinaryIO, header: RecordingHeader, encoding: Encoding | None = None) -> None:
        """Write to a file that is open, unbuffered and empty; close() closes it. Raises FormatError."""
        header.check()
        self._file = file
        self._header = header
        self._encoding: Encoding = Binary() if encoding is None else encoding
        self._lock = threading.Lock()
        self._events: list[TraceEvent] = []
        self._dropped = 0
        self._closed = False
        self._write(self._encoding.header(header))

    @classmethod
    def create(cls, path: Path, header: RecordingHeader, *, json_lines: bool = False) -> RecordingWriter:
        """A new file, in place of what was there. Raises SaveError."""
        try:
            file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise SaveError(f"cannot record to {path}: {error.strerror}") from error
        return cls(file, header, jsonlines.JsonLines() if json_lines else None)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def add(self, events: Iterable[TraceEvent]) -> None:
        """These were seen, in this order."""
        source = iter(events)
        with self._lock:
            while True:
                more = list(islice(source, MAX_BLOCK_EVENTS - len(self._events)))
                if not more:
                    return
                self._events += more
                if len(self._events) == MAX_BLOCK_EVENTS:
                    self._flush()

    def drop(self, count: int) -> None:
        """So many were lost, after those that were added and before those that will be."""
        with self._lock:
            if count:
                self._flush()
                self._dropped += count

    def regions(self, regions: Sequence[NamedRegion]) -> None:
        """What parts of RAM are for, from now on."""
        with self._lock:
            self._flush()
            self._write(self._encoding.regions(regions))

    def flush(self) -> None:
        """Write what was gathered."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Write what was gathered and that this is the end; idempotent."""
        with self._lock:
            if self._closed:
                return
            try:
                self._flush()
                self._write(self._encoding.end(self._dropped))
            finally:
                self._give_up()

    def _flush(self) -> None:
        if self._events:
            block = EventBlock.of(self._events, self._dropped)
            self._events, self._dropped = [], 0
            self._write(self._encoding.events(block, self._header.ram_pages))

    def _write(self, data: bytes) -> None:
        if self._closed:
            raise SaveError(f"the recording {self._name} was closed")
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            self._give_up()
            raise SaveError(
                f"cannot record to {self._name}: {error.strerror}",
                hint="is there room on that file system? what was recorded until then can be read",
            ) from error

    def _give_up(self) -> None:
        self._closed = True
        self._events = []
        self._file.close()

    @property
    def _name(self) -> str:
        return os.fspath(self._file.name) if isinstance(self._file.name, (str, os.PathLike)) else "the stream"
