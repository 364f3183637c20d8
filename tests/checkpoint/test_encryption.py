"""The records of an encrypted checkpoint: what is written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.checkpoint.encrypted_records import EncryptedInput, EncryptedOutput
from memvm.checkpoint.encryption import (
    MIN_RECORD_SIZE,
    TAG_SIZE,
    WRAPPED_SIZE,
    EncryptedHeader,
    FileCipher,
    read_header,
)
from memvm.checkpoint.file_bytes import PlainInput
from memvm.checkpoint.format import FormatError, Incomplete, NewerVersion
from memvm.checkpoint.sections import ParentLink

KEY = bytes(range(32))


def header(checkpoint_id: bytes = bytes(16), **changes: object) -> EncryptedHeader:
    made = EncryptedHeader(checkpoint_id, bytes(32), b'{"saves":1}', bytes(WRAPPED_SIZE), b"signed", MIN_RECORD_SIZE)
    return made._replace(**changes)  # type: ignore[arg-type]


def write(parts: Sequence[tuple[int, bytes]], length: int, of: EncryptedHeader) -> int:
    """A memory file with these bytes in records."""
    fd = os.memfd_create("encrypted")
    output = EncryptedOutput(os.dup(fd), of, KEY, lambda: None)
    for offset, data in parts:
        assert output.write([data[:7], data[7:]], offset) == len(data)
    output.truncate(length)
    output.publish()
    return fd


@contextmanager
def reading(fd: int, of: EncryptedHeader, key: bytes = KEY) -> Iterator[EncryptedInput]:
    """Takes `fd` over."""
    source = PlainInput(fd)
    try:
        assert read_header(source) == of
        yield EncryptedInput(source, of, key)
    finally:
        source.close()


@given(st.data())
def test_what_is_written_in_any_order_is_read(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 5 * MIN_RECORD_SIZE))
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=6))})
    plain = os.urandom(length)
    parts = [(start, plain[start:end]) for start, end in pairwise(cuts)]
    fd = write(data.draw(st.permutations(parts)), length, header())
    with reading(fd, header()) as encrypted:
        assert encrypted.size == length
        assert encrypted.pread(length + 9, 0) == plain
        for _ in range(4):
            offset, size = data.draw(st.integers(0, length)), data.draw(st.integers(0, length))
            assert encrypted.pread(size, offset) == plain[offset : offset + size]
            view = bytearray(size)
            if size:
                with memoryview(view) as into:
                    done = encrypted.preadv([into], offset)
                assert view[:done] == plain[offset : offset + size]


@given(st.data())
def test_storage_blocks_are_encrypted_at_once_and_written_in_any_order(data: st.DataObject) -> None:
    plain = os.urandom(length := 40 * MIN_RECORD_SIZE + 123)
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(1, length), min_size=7, max_size=7))})
    parts = [(start, plain[start:end]) for start, end in pairwise(cuts)]
    order = data.draw(st.permutations(range(len(parts))))
    fd = os.memfd_create("encrypted")
    output = EncryptedOutput(os.dup(fd), header(), KEY, lambda: None)
    with ThreadPoolExecutor(4) as threads:
        writing = list(threads.map(lambda part: output.prepare([part[1][:99], part[1][99:]], part[0]), parts))
    assert [writing[number]() for number in order] == [len(parts[number][1]) for number in order]
    output.truncate(length)
    output.publish()
    with reading(fd, header()) as encrypted:
        assert encrypted.pread(length, 0) == plain


PLAIN = b"a page of a guest " * 1000


def flipped(fd: int, offset: int) -> None:
    byte = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes([byte[0] ^ 1]), offset)


def test_no_bit_can_be_changed() -> None:
    size = os.fstat(made := write([(0, PLAIN)], len(PLAIN), header())).st_size
    os.close(made)
    for offset in range(header().size, size, 997):
        fd = write([(0, PLAIN)], len(PLAIN), header())
        flipped(fd, offset)
        with reading(fd, header()) as encrypted, pytest.raises(FormatError, match="cannot be decrypted"):
            encrypted.pread(len(PLAIN), 0)


def test_each_part_of_the_header_is_in_the_key() -> None:
    others = (
        header(bytes([1]) * 16),
        header(keeper=bytes([1]) * 32),
        header(claims=b'{"saves":2}'),
        header(wrapped_key=bytes([1]) * WRAPPED_SIZE),
        header(signature=b"Signed"),
        header(parent=ParentLink(bytes(16), bytes(32), b"monday.ckpt")),
    )
    for other in others:
        fd = write([(0, PLAIN)], len(PLAIN), header())
        source = PlainInput(fd)
        with pytest.raises(FormatError):
            EncryptedInput(source, other, KEY).pread(10, 0)
        source.close()


def test_attack_27_gcm_nonce_reused() -> None:
    """One key encrypts each record once; another file of the same guest has another key."""
    fd = os.memfd_create("encrypted")
    output = EncryptedOutput(fd, header(), KEY, lambda: None)
    output.write([bytes(MIN_RECORD_SIZE)], 0)
    with pytest.raises(ValueError, match="encrypted twice"):
        output.write([bytes(MIN_RECORD_SIZE)], 0)
    output.discard()
    first, second = (record(FileCipher(KEY, header(os.urandom(16))), 0) for _ in range(2))
    assert not any(a == b for a, b in zip(_blocks(first), _blocks(second), strict=True))
    again = FileCipher(KEY, header())
    assert not any(a == b for a, b in zip(_blocks(record(again, 0)), _blocks(record(again, 1)), strict=True))


def record(cipher: FileCipher, number: int) -> bytes:
    made = bytearray(len(PLAIN) + TAG_SIZE)
    cipher.encrypt(number, PLAIN, made)
    assert cipher.decrypt(number, bytes(made)) == PLAIN
    return bytes(made)


def _blocks(data: bytes) -> list[bytes]:
    return [data[at : at + 16] for at in range(0, len(data), 16)]


def test_a_gap_is_not_committed() -> None:
    fd = os.memfd_create("encrypted")
    output = EncryptedOutput(fd, header(), KEY, lambda: None)
    output.write([b"x" * 10], 0)
    with pytest.raises(ValueError, match="a gap"):
        output.truncate(20)
    output.discard()


@pytest.mark.parametrize("cut", [1, TAG_SIZE + 1, len(PLAIN)])
def test_a_file_that_was_cut(cut: int, tmp_path: Path) -> None:
    fd = write([(0, PLAIN)], len(PLAIN), header())
    os.ftruncate(fd, os.fstat(fd).st_size - cut)
    with reading(fd, header()) as encrypted, pytest.raises(FormatError):
        data = encrypted.pread(len(PLAIN), 0)
        if len(data) < len(PLAIN):  # whole records are gone, which is for the commit record to tell
            raise Incomplete("cut")


links = st.builds(
    ParentLink, st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32), st.just(b"../monday.ckpt")
)


@given(st.none() | links, st.binary(max_size=40))
def test_a_header_is_what_it_was(link: ParentLink | None, behind: bytes) -> None:
    made = header(parent=link)
    data = made.pack()
    assert EncryptedHeader.unpack(data + behind) == made
    assert len(data) == made.size
    assert data[8] == (1 if link is None else 2)
    assert made._replace(signature=b"").signed == made.signed
    assert made.signed != header(parent=ParentLink(bytes(16), bytes(range(32)), b"x")).signed


def test_a_header_with_a_parent_that_makes_no_sense() -> None:
    good = header(parent=ParentLink(bytes(16), bytes(32), b"monday.ckpt")).pack()
    absolute = good.replace(b"monday.ckpt", b"/onday.ckpt")
    for data in (absolute, good[:8] + b"\1" + good[9:], good[:76] + b"\xff\xff" + good[78:], good[:-8]):
        with pytest.raises(FormatError):
            EncryptedHeader.unpack(data)
    whole = header().pack()
    with pytest.raises(FormatError):
        EncryptedHeader.unpack(whole[:8] + b"\2" + whole[9:])


def test_a_header_of_a_newer_version_says_so() -> None:
    data = bytearray(header().pack())
    data[8] = 9
    with pytest.raises(NewerVersion):
        EncryptedHeader.unpack(bytes(data))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_a_format_error(junk: bytes) -> None:
    good = header().pack()
    for data in (junk, good[:8] + junk, good[: len(junk)] + junk):
        try:
            assert data.startswith(EncryptedHeader.unpack(data).pack())
        except FormatError:
            continue
