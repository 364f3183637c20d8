"""Reading a recording, of either format, as often as one likes, without having all of it in memory.

A recording is read up to the first thing in it that is not whole: a guest or its manager that was ended leaves the last
block cut, and a file that still grows just ends. What was read until then is good; `Ending` says where and why
reading stopped.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from memvm.errors import RecordingError
from memvm.recording import jsonlines
from memvm.recording.format import (
    BLOCK_HEADER_SIZE,
    END,
    HEADER_SIZE,
    REGIONS,
    BlockHeader,
    EventBlock,
    FormatError,
    NamedRegion,
    RecordingHeader,
    unpack_events,
    unpack_regions,
)

STANDARD_INPUT = Path("-")


@dataclass(frozen=True)
class Ending:
    """How a recording ends."""

    finished: bool
    """It was ended in good order, so that there is no more."""
    flaw: str = ""
    """For people: why it could not be read further; empty if all of it is whole."""


class Recording:
    """A recording that was opened for reading; a context manager."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Take over a file that is open and can be sought. Raises RecordingError."""
        self.name = name
        self._file = file
        self.regions: tuple[NamedRegion, ...] = ()
        """What is known so far, while or after `blocks` is gone through, of what parts of RAM are for."""
        self.ending: Ending | None = None
        """Known once `blocks` was gone through."""
        try:
            self._json = file.read(1) == b"{"
            file.seek(0)
            if self._json:
                self.header = jsonlines.read_header(file.readline(jsonlines.MAX_LINE))
            else:
                self.header = RecordingHeader.unpack(file.read(HEADER_SIZE))
        except FormatError as error:
            raise RecordingError(
                f"{name}: {error}", hint="`memvm trace` makes recordings; is it a file of another kind?"
            ) from None
        self._first = file.tell()

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Open a file, or standard input for "-". Raises RecordingError."""
        if path == STANDARD_INPUT:
            return cls._open(_standard_input(), "standard input")
        try:
            if not path.is_file() and path.exists():  # a pipe would wait, and cannot be read twice
                raise RecordingError(f"{path} is not an ordinary file", hint="give a pipe as standard input, with -")
            return cls._open(open(path, "rb"), str(path))
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror}") from error

    @classmethod
    def _open(cls, file: BinaryIO, name: str) -> Recording:
        try:
            return cls(file, name)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[EventBlock]:
        """All events from the beginning, some at a time. One such iterator at a time."""
        self._file.seek(self._first)
        self.ending = None
        finished, flaw = False, ""
        parts = jsonlines.read_parts(self._file, self.header.ram_pages) if self._json else self._parts()
        try:
            for part in parts:
                if part is None:
                    finished = True
                    break
                if isinstance(part, EventBlock):
                    yield part
                else:
                    self.regions = tuple(part)
            if finished and self._file.read(1):
                flaw = "something follows its end, and is left out"
        except FormatError as error:
            flaw = f"read up to byte {self._file.tell():,} only: {error}"
        self.ending = Ending(finished, flaw)

    def _parts(self) -> Iterator[EventBlock | list[NamedRegion] | None]:
        file, ram_pages = self._file, self.header.ram_pages
        while head := file.read(BLOCK_HEADER_SIZE):
            if len(head) < BLOCK_HEADER_SIZE:
                raise FormatError("it was cut short")
            header = BlockHeader.unpack(head)
            payload = file.read(header.length)
            if len(payload) < header.length:
                raise FormatError("it was cut short")
            if crc32(payload) != header.crc:
                raise FormatError("a block is damaged")
            if header.kind == END:
                if header.dropped:
                    yield EventBlock.of([], header.dropped)
                yield None
            elif header.kind == REGIONS:
                yield unpack_regions(payload)
            else:
                yield unpack_events(header, payload, ram_pages)


def _standard_input() -> BinaryIO:
    """What comes in, kept in a file without a name, because recordings are read twice."""
    if sys.stdin is None:
        return io.BytesIO()
    kept = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the recording
    try:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.seek(0)
    except BaseException:
        kept.close()
        raise
    return kept
