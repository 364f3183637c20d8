"""Messages survive the way, and what is no message is one clear error."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memvm.errors
from memvm.checkpoint import save
from memvm.errors import BadPage, CheckpointError, ControlError, MemvmError
from memvm.machine.config import ExitStatus, GuestStatus, RunState
from memvm.manager import protocol
from memvm.manager.protocol import (
    MAX_LINE,
    MAX_TRANSFER,
    Json,
    LineReader,
    decode,
    encode,
    error_from_json,
    error_to_json,
    peer_of,
    record_from_json,
    record_to_json,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
messages = st.dictionaries(st.text(), json_values, max_size=5)
error_classes = [
    kind for kind in vars(memvm.errors).values() if isinstance(kind, type) and issubclass(kind, MemvmError)
]


def read_all(*pieces: bytes) -> list[bytes]:
    """The lines that a reader makes of these pieces, which arrive one by one."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with theirs:
            for piece in pieces:
                theirs.sendall(piece)

    sender = threading.Thread(target=send)
    with ours:
        sender.start()
        try:
            reader = LineReader(ours)
            return list(iter(reader.read, None))
        finally:
            ours.shutdown(socket.SHUT_RD)
            while sender.is_alive():
                try:
                    ours.recv(1 << 20)
                except OSError:
                    break
            sender.join()


@given(messages)
def test_a_message_is_one_line_and_comes_back(message: Json) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode(line) == message


@given(st.lists(messages, max_size=5), st.lists(st.integers(min_value=0, max_value=500), max_size=8))
def test_lines_come_back_however_they_are_cut(sent: list[Json], cuts: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(places)]
    assert [decode(line) for line in read_all(*pieces)] == sent


@given(st.binary(max_size=200).filter(lambda data: b"\n" not in data))
def test_what_is_no_json_object_is_a_control_error(line: bytes) -> None:
    try:
        message = decode(line)
    except ControlError:
        return
    assert isinstance(message, dict)


@pytest.mark.parametrize(
    "line", [b"", b"7", b"[]", b'{"a":', b"[" * 100_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_bad_json(line: bytes) -> None:
    with pytest.raises(ControlError):
        decode(line)


def test_a_line_without_end_is_refused_at_the_bound() -> None:
    with pytest.raises(ControlError, match="longer than"):
        read_all(b"x" * (MAX_LINE + 1))


def test_the_longest_line_is_read() -> None:
    assert read_all(b"x" * (MAX_LINE - 1) + b"\n") == [b"x" * (MAX_LINE - 1)]


def test_an_end_within_a_line_is_an_error() -> None:
    with pytest.raises(ControlError, match="middle of a message"):
        read_all(b'{"do": "kill"}')


def test_a_message_too_long_is_not_sent() -> None:
    with pytest.raises(ControlError):
        encode({"data": "x" * MAX_LINE})


def test_the_largest_transfer_fits_a_line() -> None:
    assert MAX_TRANSFER * 4 / 3 + 1000 < MAX_LINE


def test_a_checkpoint_is_saved_the_same_way_over_the_socket_as_without() -> None:
    assert (protocol.DEFAULT_LEVEL, protocol.DEFAULT_BLOCK_SIZE) == (
        save.DEFAULT_LEVEL,
        save.DEFAULT_BLOCK_SIZE,
    )


@pytest.mark.parametrize("kind", error_classes, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind: type[MemvmError]) -> None:
    error = BadPage(17, "what", hint="try") if kind is BadPage else kind("what", hint="try")
    back = error_from_json(decode(encode(error_to_json(error))))
    assert type(back) is kind
    assert (back.message, back.hint, back.exit_code) == ("what", "try", kind.exit_code)
    assert getattr(back, "page", None) == getattr(error, "page", None)


def test_an_error_of_another_version_keeps_its_exit_code() -> None:
    back = error_from_json({"kind": "QuantumError", "message": "odd", "hint": "", "exit_code": 99})
    assert (type(back), back.message, back.exit_code) == (MemvmError, "odd", 99)


@pytest.mark.parametrize("fields", [None, [], {}, {"kind": 1, "message": "x"}, {"kind": "SaveError"}])
def test_an_error_that_makes_no_sense_is_a_control_error(fields: object) -> None:
    assert type(error_from_json(fields)) is ControlError


@pytest.mark.parametrize("kind", ["annotations", "__name__", "BadPage", "Exception"])
def test_an_error_cannot_name_just_anything(kind: str) -> None:
    assert type(error_from_json({"kind": kind, "message": "x"})) is MemvmError


STATUS = GuestStatus(
    *("hub-1", "/bin/hub", RunState.PAUSED, 10, 11, "mprotect", 1 << 30, 4096, 0, 1.5, 20.0, 5),
    unknown_calls={"socket": 2},
    faults=9,
)


@pytest.mark.parametrize("record", [STATUS, ExitStatus(139, 11, "why"), ExitStatus(0)], ids=str)
def test_records_come_back(record: GuestStatus | ExitStatus) -> None:
    assert record_from_json(type(record), decode(encode(record_to_json(record)))) == record


@dataclass(frozen=True)
class Sample:
    path: Path
    seconds: float


def test_paths_and_whole_seconds_come_back() -> None:
    assert record_from_json(Sample, {"path": "/x", "seconds": 2}) == Sample(Path("/x"), 2.0)


@pytest.mark.parametrize(
    "change",
    [{"state": "flying"}, {"faults": "9"}, {"faults": True}, {"unknown_calls": []}, {"name": None}],
    ids=str,
)
def test_a_record_with_a_wrong_field_is_a_control_error(change: Json) -> None:
    with pytest.raises(ControlError):
        record_from_json(GuestStatus, {**record_to_json(STATUS), **change})


def test_a_record_may_have_more_fields_but_not_fewer() -> None:
    fields = record_to_json(STATUS)
    assert record_from_json(GuestStatus, {**fields, "new": 1}) == STATUS
    del fields["faults"]
    with pytest.raises(ControlError, match="incomplete"):
        record_from_json(GuestStatus, fields)
    with pytest.raises(ControlError):
        record_from_json(GuestStatus, None)


def test_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.geteuid(), os.getegid())


def test_a_checkpoint_error_is_no_control_error() -> None:
    """What the manager says must not be taken for trouble in speaking to it."""
    assert not issubclass(CheckpointError, ControlError)
