"""Writing and reading the records of an encrypted checkpoint (encryption.py): they stand where a plain file would.

Whoever writes or reads a checkpoint sees its bytes at its offsets, and nothing of records, nonces and tags.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from memvm.checkpoint.encryption import MAX_RECORD_SIZE, TAG_SIZE, EncryptedHeader, FileCipher
from memvm.checkpoint.file_bytes import PlainInput
from memvm.checkpoint.format import Incomplete
from memvm.linux import files
from memvm.linux.secret_memory import Buffer


class EncryptedOutput:
    """The records of a file that is being written.

    Bytes come in any order, each once. A record is encrypted and written when all of its bytes have come, the last one
    when the file is whole.
    """

    def __init__(self, fd: int, header: EncryptedHeader, key: Buffer, publish: Callable[[], None]) -> None:
        """Takes `fd` over, a file that is empty; `publish` gives it its name once all is in it. Raises OSError."""
        self._fd = fd
        self._publish = publish
        self._cipher = FileCipher(key, header)
        self._record_size = header.record_size
        self._begin = header.size
        self._lock = threading.Lock()
        self._rooms: list[_Room] = []
        """Those that nobody is in. New memory for each storage block would cost more than encrypting it does."""
        self._parts: dict[int, _Part] = {}
        """Records of which something is there, and something missing."""
        self._done = bytearray()
        """A byte a record: whether it has been encrypted."""
        _write_all(fd, header.pack(), 0)

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """Write the pieces one after the other; returns the bytes. Raises OSError."""
        return self.prepare(pieces, offset)()

    def prepare(self, pieces: Sequence[bytes | memoryview], offset: int) -> Callable[[], int]:
        """Encrypt the pieces; what is returned writes them, and has to be called before another call for these bytes.

        Several threads may prepare at once.
        """
        size, step = sum(map(len, pieces)), self._record_size + TAG_SIZE
        room = self._enter(size)
        records, first, end = memoryview(room.records), -1, 0
        for number, start, parts in _by_records(pieces, offset, self._record_size):
            data = self._whole(number, start, parts, room.plain)
            if data is not None:
                first, begin, end = (first if end else number), end, end + step
                self._encrypt(number, data, records[begin:end])

        def write() -> int:
            if end:  # only the first and the last record can be parts: whole ones are neighbours
                _write_all(self._fd, records[:end], self._place(first))
            with self._lock:
                self._rooms.append(room)
            return size

        return write

    def _enter(self, size: int) -> _Room:
        """A room that has space for the records of so many bytes."""
        needed = (size // self._record_size + 2) * (self._record_size + TAG_SIZE)
        with self._lock:
            room = self._rooms.pop() if self._rooms else None
        if room is None or len(room.records) < needed:
            return _Room(bytearray(self._record_size), bytearray(needed))
        return room

    def _whole(self, number: int, start: int, parts: list[memoryview], plain: bytearray) -> bytearray | None:
        """A record's bytes, in `plain`; or what has come of it by now if that is all, and else None."""
        size = sum(map(len, parts))
        if size == self._record_size:
            _fill(plain, 0, parts)
            return plain
        with self._lock:
            part = self._parts.setdefault(number, _Part(bytearray(self._record_size)))
            _fill(part.data, start, parts)
            part.filled += size
            return self._parts.pop(number).data if part.filled == self._record_size else None

    def _encrypt(self, number: int, data: bytearray | memoryview, record: bytearray | memoryview) -> None:
        with self._lock:
            if len(self._done) <= number:
                self._done.extend(bytes(number + 1 - len(self._done)))
            if self._done[number]:
                raise ValueError(f"record {number} would be encrypted twice")  # under one nonce: never
            self._done[number] = 1
        self._cipher.encrypt(number, data, record)

    def _place(self, number: int) -> int:
        return self._begin + number * (self._record_size + TAG_SIZE)

    def _places(self, offset: int, size: int) -> tuple[int, int]:
        """Where in the file bytes of the checkpoint are, about: an offset and a size."""
        start, end = self._place(offset // self._record_size), self._place((offset + size) // self._record_size)
        return start, end - start

    def reserve(self, offset: int, size: int) -> None:
        """Have space for what will be written there, if there can be some."""
        files.reserve(self._fd, *self._places(offset, size))

    def start_writeback(self, offset: int, size: int) -> None:
        """Have the kernel begin to bring this to the disk. Raises OSError if that fails."""
        start, size = self._places(offset, size)
        if size:  # none would be the rest of the file
            files.start_writeback(self._fd, start, size)

    def truncate(self, length: int) -> None:
        """Encrypt the last record: the checkpoint has `length` bytes. Raises OSError."""
        last, size = divmod(length, self._record_size)
        with self._lock:
            part = self._parts.pop(last, None)
            if self._parts or (part.filled if part else 0) != size:
                raise ValueError("a checkpoint with a gap")
        if part is not None:
            record = bytearray(size + TAG_SIZE)
            self._encrypt(last, memoryview(part.data)[:size], record)
            _write_all(self._fd, record, self._place(last))
        os.ftruncate(self._fd, self._place(last) + (size + TAG_SIZE if size else 0))

    def publish(self) -> None:
        """The file is whole. Raises what `publish` raises."""
        self._publish()
        self.discard()

    def discard(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Part:
    """A record that is not whole yet."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.filled = 0


class _Room(NamedTuple):
    """Memory in which one thread encrypts one storage block at a time."""

    plain: bytearray
    """For a record. It stays in the processor's cache from where it is filled to where it is encrypted."""
    records: bytearray

    def __repr__(self) -> str:
        return f"_Room({len(self.plain)} and {len(self.records)} bytes)"


def _by_records(
    pieces: Sequence[bytes | memoryview], offset: int, record_size: int
) -> Iterator[tuple[int, int, list[memoryview]]]:
    """Number of each record that has some of the pieces, where in it they begin, and what of them lies in it."""
    number, start = divmod(offset, record_size)
    parts, room = list[memoryview](), record_size - start
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            parts.append(rest[:room])
            room -= len(parts[-1])
            rest = rest[len(parts[-1]) :]
            if not room:
                yield number, start, parts
                number, start, parts, room = number + 1, 0, [], record_size
    if parts:
        yield number, start, parts


def _fill(data: bytearray, start: int, parts: list[memoryview]) -> None:
    with memoryview(data) as view:  # whose slices are filled in place; those of a bytearray by way of a copy
        for part in parts:
            view[start : start + len(part)] = part
            start += len(part)


def _write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    with memoryview(data) as view:
        done = os.pwrite(fd, view, offset)
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


class EncryptedInput:
    """The checkpoint in the records of a file."""

    def __init__(self, source: PlainInput, header: EncryptedHeader, key: Buffer) -> None:
        """Takes an open file over. Raises FormatError, and closes nothing then."""
        self._source = source
        self._cipher = FileCipher(key, header)
        self._record_size = header.record_size
        self._begin = header.size
        whole, rest = divmod(source.size - self._begin, self._record_size + TAG_SIZE)
        if source.size <= self._begin or 0 < rest <= TAG_SIZE:
            raise Incomplete("incomplete: the save did not finish, or the file was cut")
        self.size = whole * self._record_size + (rest - TAG_SIZE if rest else 0)

    def pread(self, length: int, offset: int) -> bytes:
        """Bytes of the checkpoint, fewer only at its end. Raises OSError, FormatError."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        first, last = offset // self._record_size, (end - 1) // self._record_size
        step = self._record_size + TAG_SIZE
        records = memoryview(self._read(self._begin + first * step, (last + 1 - first) * step))
        plain = [
            self._cipher.decrypt(number, records[(number - first) * step : (number + 1 - first) * step])
            for number in range(first, last + 1)
        ]
        skipped = offset - first * self._record_size
        return b"".join(plain)[skipped : skipped + end - offset]

    def _read(self, offset: int, length: int) -> bytes:
        data = self._source.pread(length, offset)
        while len(data) < min(length, self._source.size - offset):
            more = self._source.pread(length - len(data), offset + len(data))
            if not more:
                raise Incomplete("incomplete: the file was cut while it was being read")
            data += more
        return data

    def preadv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill one view, from the beginning; returns the bytes. Raises OSError, FormatError."""
        data = self.pread(min(len(views[0]), MAX_RECORD_SIZE), offset)
        views[0][: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._source.close()
