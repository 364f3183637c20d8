"""What manager and platform say to each other: nothing but the protocol is taken, and nobody waits for ever."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from memvm.errors import ControlError, GuestStateError, SettingRefused
from memvm.machine.config import GuestStatus
from memvm.sealed.channel import Answerer, Channel, close_all
from memvm.sealed.protocol import (
    FIELDS,
    FROM_PLATFORM,
    MAX_MESSAGE,
    MOST_DESCRIPTORS,
    MOST_PARENTS,
    Json,
    Kind,
    Message,
)
from tools import fuzz_platform

GOOD = Message(Kind.SIGNAL, 1, {"number": 15})


def raw(kind: int = Kind.SIGNAL, body: bytes = b'{"number":15}', number: int = 1, descriptors: int = 0) -> bytes:
    return struct.pack("<4sBBHI", b"mvS1", kind, descriptors, 0, number) + body


def test_a_message_is_what_it_was() -> None:
    assert Message.unpack(GOOD.pack(), 0) == GOOD
    assert raw() == GOOD.pack()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        raw()[:11],
        raw(body=b""),
        raw(body=b"[]"),
        raw(body=b'{"number":15,"number":9}'),
        raw(body=b'{"number":15,"other":1}'),
        raw(body=b"{}"),
        raw(body=b'{"number":"15"}'),
        raw(body=b'{"number":true}'),
        raw(body=b'{"number":1e3}'),
        raw(body=b'{"number":9999999999999999999999}'),
        raw(body=b'{"number":NaN}'),
        raw(body=b'{"number":null}'),
        raw(body=b'{"number":0}'),
        raw(body=b'{"number":65}'),
        raw(body='{"number":"é"}'.encode()),
        raw(body=b"[" * 100_000),
        raw(kind=0),
        raw(kind=200),
        raw(number=0),
        raw(descriptors=1),
        b"MVS1" + raw()[4:],
        raw() + b" " * MAX_MESSAGE,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ControlError):
        Message.unpack(data, 0)


def test_no_kind_of_question_has_memory_or_registers_for_an_answer() -> None:
    asked = {kind.name for kind in Kind if kind not in FROM_PLATFORM}
    assert asked == {
        *("LOAD", "START", "WAIT", "PAUSE", "RESUME", "SIGNAL", "KILL", "STATUS", "SETTINGS", "CHANGE"),
        *("CHECKPOINT", "SUSPEND", "ATTEST", "DISK", "RESULT", "ERROR"),
    }
    assert {kind.name for kind in FROM_PLATFORM} == {"PROGRESS", "PUBLISH", "RELEASE"}
    assert set(FIELDS) == set(Kind)


def test_nothing_of_a_hypercall_crosses() -> None:
    """No buffers, and no questions for time or randomness: what the manager hears of calls are numbers of them."""
    of_calls = {name: str(kind) for name, kind in GuestStatus.__annotations__.items() if "call" in name}
    assert of_calls == {"hypercalls": str(int), "unknown_calls": str(dict[str, int])}


@contextmanager
def channel(answer: Answerer) -> Iterator[tuple[Channel, socket.socket, list[BaseException]]]:
    """A channel that serves, the raw other end of it, and what ended it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended: list[BaseException] = []
    end = Channel(ours, [Kind.STATUS, Kind.CHECKPOINT], answer)

    def serve() -> None:
        try:
            end.serve()
        except ControlError as error:
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield end, theirs, ended
    finally:
        theirs.close()
        thread.join()
        ours.close()


def refuse(_message: Message, descriptors: Sequence[int]) -> Json:
    close_all(descriptors)
    raise SettingRefused("no", hint="try yes")


def test_an_error_comes_as_what_it_was() -> None:
    with channel(refuse) as (_, theirs, ended):
        theirs.send(Message(Kind.STATUS, 7).pack())
        answer = Message.unpack(theirs.recv(MAX_MESSAGE), 0)
        assert (answer.kind, answer.number) == (Kind.ERROR, 7)
        assert answer.fields["fields"]["kind"] == "SettingRefused"
    assert not ended


def test_an_answer_that_is_too_long_is_an_error() -> None:
    with channel(lambda message, descriptors: {"much": "x" * MAX_MESSAGE}) as (_, theirs, _ended):
        theirs.send(Message(Kind.STATUS, 7).pack())
        assert Message.unpack(theirs.recv(MAX_MESSAGE), 0).kind is Kind.ERROR


@pytest.mark.parametrize(
    "nonsense",
    [
        b"junk",
        Message(Kind.RESULT, 99, {"fields": {}}).pack(),  # nobody asked
        Message(Kind.PAUSE, 1).pack(),  # not to be asked here
    ],
)
def test_nonsense_ends_the_connection_and_who_waits_is_told(nonsense: bytes) -> None:
    with channel(refuse) as (end, theirs, ended):
        waiting: list[BaseException] = []

        def ask() -> None:
            try:
                end.ask(Kind.PROGRESS, {"done": 1, "total": 2})
            except ControlError as error:
                waiting.append(error)

        asker = threading.Thread(target=ask)
        asker.start()
        assert Message.unpack(theirs.recv(MAX_MESSAGE), 0).kind is Kind.PROGRESS
        theirs.send(nonsense)
        asker.join()
        with pytest.raises(ControlError):
            end.ask(Kind.PUBLISH)
    assert waiting == ended  # not sooner: who waits may be told before whoever serves is
    assert len(ended) == 1


def test_who_asks_when_the_other_end_has_gone_is_told() -> None:
    with channel(refuse) as (end, theirs, ended):
        theirs.shutdown(socket.SHUT_RDWR)
        with pytest.raises((GuestStateError, ControlError)):
            end.ask(Kind.PUBLISH)
    assert not ended


def send_with(theirs: socket.socket, message: bytes, fd: int, count: int = 1) -> None:
    """Send a message with some copies of a descriptor."""
    theirs.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * count))])


@pytest.mark.parametrize("count", [2, 5, MOST_DESCRIPTORS + 1, 250])
def test_descriptors_that_were_not_announced_are_closed(count: int) -> None:
    reading, writing = os.pipe()
    with channel(refuse) as (_, theirs, ended):
        send_with(theirs, Message(Kind.STATUS, 1).pack(), writing, count)
        os.close(writing)
        assert os.read(reading, 1) == b""  # the end: nobody else has it
    os.close(reading)
    assert len(ended) == 1


def saving(parents: int = 0) -> Json:
    names = [f"/{number}.ckpt" for number in range(parents)]
    link = "0.ckpt" if parents else None
    return {"path": "/x", "level": 1, "block_size": 65536, "live": True, "parents": names, "link": link}


@pytest.mark.parametrize("parents", [0, 2, MOST_PARENTS])
def test_descriptors_come_with_their_question(parents: int) -> None:
    got: list[int] = []

    def answer(_message: Message, descriptors: Sequence[int]) -> Json:
        for fd in descriptors:
            with open(fd, "w") as file:
                file.write(".")
        got.append(len(descriptors))
        return {}

    with channel(answer) as (_, theirs, _ended):
        reading, writing = os.pipe()
        send_with(theirs, Message(Kind.CHECKPOINT, 3, saving(parents), 1 + parents).pack(), writing, 1 + parents)
        os.close(writing)
        assert json.loads(theirs.recv(MAX_MESSAGE)[12:]) == {"fields": {}}
        assert os.read(reading, 100) == b"." * (1 + parents)
        os.close(reading)
    assert got == [1 + parents]


@pytest.mark.parametrize(
    ("kind", "fields", "descriptors"),
    [
        (Kind.CHECKPOINT, saving(), 0),
        (Kind.CHECKPOINT, saving(), 2),
        (Kind.CHECKPOINT, saving(2), 2),
        (Kind.CHECKPOINT, saving(2), 4),
        (Kind.CHECKPOINT, saving(MOST_PARENTS + 1), MOST_PARENTS + 2),
        (Kind.CHECKPOINT, saving() | {"link": "a.ckpt"}, 1),
        (Kind.CHECKPOINT, saving(1) | {"link": None}, 2),
        (Kind.CHECKPOINT, saving(1) | {"parents": [7]}, 2),
        (Kind.CHECKPOINT, saving(1) | {"parents": ["x" * 5000]}, 2),
        (Kind.LOAD, {"name": "x", "parents": ["/a"]}, 0),
        (Kind.LOAD, {"name": "x", "parents": ["/a"]}, 1),
        (Kind.LOAD, {"name": "x", "parents": []}, 2),
        (Kind.LOAD, {"name": "x", "parents": None}, 1),
    ],
)
def test_files_have_a_path_each(kind: Kind, fields: Json, descriptors: int) -> None:
    with pytest.raises(ControlError):
        Message(kind, 1, fields, descriptors).pack()


def test_changed_messages_do_no_harm() -> None:
    """tools/fuzz_platform.py tries many more."""
    good = fuzz_platform.samples()
    assert all(take(data) for take, data in good)
    taken = sum(fuzz_platform.try_one(good, seed) for seed in range(3000))
    assert 100 < taken < 3000
