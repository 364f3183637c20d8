"""What a manager and the platform of its sealed guest say to each other: datagrams of bounded length, few of each kind.

Either of them asks, and the other answers; questions of both may be under way at once.

    0    4s   magic "mvS1"
    4    u8   kind
    5    u8   how many descriptors come with it (SCM_RIGHTS, unix(7))
    6    u16  zero
    8    u32  number of the question; an answer has that of its question
    12        a JSON object with the fields of its kind, and no others, in ASCII

Neither end believes the other: whatever is not exactly so ends the connection, and with it the guest.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from memvm.checkpoint.finding import MAX_FILES
from memvm.errors import ControlError
from memvm.foreign_json import read_json
from memvm.units import KIB

Json = dict[str, Any]

MAGIC = b"mvS1"
MAX_MESSAGE = 128 * KIB
"""Bytes; a datagram socket takes no longer ones at once anyhow (net.core.wmem_max)."""
_HEADER = struct.Struct("<4sBBHI")
_U32, _U63 = (1 << 32) - 1, (1 << 63) - 1


class Kind(IntEnum):
    """The messages."""

    # from the manager
    LOAD = 1
    """Make the guest, under this name; a restore has the descriptors of the checkpoint and, as their paths say, of the
    files that it was saved on top of, the youngest first."""
    START = 2
    WAIT = 3
    """Answered when the guest has ended."""
    PAUSE = 4
    RESUME = 5
    SIGNAL = 6
    KILL = 7
    STATUS = 8
    SETTINGS = 9
    CHANGE = 10
    CHECKPOINT = 11
    """Comes with the descriptor of a file that has no name yet, and, as their paths say, of the file that it is to be
    saved on top of, which is called so in it (`link`), and that one's parents."""
    SUSPEND = 12
    """Comes with the descriptor of a file that has no name yet."""
    ATTEST = 13
    DISK = 14
    """Before LOAD, for each disk of the guest: with its file, its journal if it has one, its tags if it has some."""
    # from the platform, while it saves or loads
    PROGRESS = 32
    """An error as the answer means that this is not wanted any more."""
    PUBLISH = 33
    """The file is written whole: sync it, and give it its name."""
    RELEASE = 34
    """Have the key keeper release the key of a checkpoint."""
    # from either
    RESULT = 64
    ERROR = 65


ANSWERS = (Kind.RESULT, Kind.ERROR)
FROM_PLATFORM = (Kind.PROGRESS, Kind.PUBLISH, Kind.RELEASE)
MOST_PARENTS = MAX_FILES - 1
MOST_DESCRIPTORS = 1 + MOST_PARENTS


class Field(NamedTuple):
    """What a field has to be."""

    type: type
    most: int = 0
    """Of a number, of the characters of a text, and of the texts in a list."""
    least: int = 0
    """Of a whole number."""
    optional: bool = False
    """Whether it may be null."""


_MAX_TEXT = 4096
_TEXT = Field(str, _MAX_TEXT)
_COUNT = Field(int, _U63)
_SAVING = {"path": _TEXT, "level": Field(int, 100, -100), "block_size": _COUNT}
_PARENTS = Field(list, MOST_PARENTS)
"""Paths, for messages."""
_ANYTHING = {"fields": Field(dict)}
FIELDS: Mapping[Kind, Mapping[str, Field]] = {
    Kind.LOAD: {"name": _TEXT, "parents": _PARENTS},
    Kind.START: {},
    Kind.WAIT: {},
    Kind.PAUSE: {},
    Kind.RESUME: {},
    Kind.SIGNAL: {"number": Field(int, 64, 1)},
    Kind.KILL: {"reason": _TEXT},
    Kind.STATUS: {},
    Kind.SETTINGS: {},
    Kind.CHANGE: {"name": _TEXT, "value": Field(str, 1 << 16)},
    Kind.CHECKPOINT: {**_SAVING, "live": Field(bool), "parents": _PARENTS, "link": _TEXT._replace(optional=True)},
    Kind.SUSPEND: {**_SAVING, "time": Field(float), "data": _COUNT._replace(optional=True)},
    Kind.ATTEST: {"verifier": _TEXT, "audience": _TEXT, "format": _TEXT, "authority": _TEXT},
    Kind.DISK: {"name": _TEXT, "journal": Field(bool), "tags": Field(bool)},
    Kind.PROGRESS: {"done": _COUNT, "total": _COUNT},
    Kind.PUBLISH: {},
    Kind.RELEASE: {"request": Field(str, 112 * KIB)},
    Kind.RESULT: _ANYTHING,
    Kind.ERROR: _ANYTHING,
}


class Message(NamedTuple):
    """One message, without its descriptors."""

    kind: Kind
    number: int
    fields: Json = {}  # noqa: RUF012 - nobody changes it
    descriptors: int = 0

    def pack(self) -> bytes:
        """The datagram. Raises ControlError for a message that the other end would not take."""
        header = _HEADER.pack(MAGIC, self.kind, self.descriptors, 0, self.number)
        data = header + json.dumps(self.fields, separators=(",", ":")).encode("ascii")
        if len(data) > MAX_MESSAGE:
            raise ControlError(f"{self.kind.name}: a message of {len(data)} bytes, and {MAX_MESSAGE} are allowed")
        _check(self)
        return data

    @classmethod
    def unpack(cls, data: bytes, descriptors: int) -> Message:
        """What a datagram says that came with so many descriptors. Raises ControlError, whatever the bytes are."""
        if not _HEADER.size <= len(data) <= MAX_MESSAGE:
            raise ControlError(f"a message of {len(data)} bytes between manager and platform")
        magic, kind, announced, zero, number = _HEADER.unpack_from(data)
        if magic != MAGIC or zero or announced != descriptors:
            raise ControlError("a message between manager and platform whose header is wrong")
        try:
            known = Kind(kind)
            fields = read_json(data[_HEADER.size :].decode("ascii"))
        except ValueError as error:  # errors of JSON and of Unicode are
            raise ControlError(f"a message between manager and platform that makes no sense: {error}") from None
        message = cls(known, number, fields, descriptors)
        _check(message)
        return message


def _check(message: Message) -> None:
    name, fields, wanted = message.kind.name, message.fields, FIELDS[message.kind]
    if not isinstance(fields, dict) or fields.keys() != wanted.keys():
        raise ControlError(f"{name}: fields are missing, or there are others")
    if not 0 < message.number <= _U32:
        raise ControlError(f"{name}: a message without a number")
    for key, field in wanted.items():
        if not _fits(fields[key], field):
            raise ControlError(f"{name}: {key} cannot be {fields[key]!r:.80}")
    if message.kind is Kind.CHECKPOINT and bool(fields["parents"]) != (fields["link"] is not None):
        raise ControlError(f"{name}: it has a parent, or it has none")
    if message.descriptors not in descriptors_of(message.kind, fields):
        raise ControlError(f"{name}: {message.descriptors} descriptors came with it")


def descriptors_of(kind: Kind, fields: Json) -> tuple[int, ...]:
    """How many descriptors may come with a message that has these fields."""
    if kind is Kind.SUSPEND:
        return (1,)
    if kind is Kind.DISK:
        return (1 + fields["journal"] + fields["tags"],)
    if kind not in (Kind.LOAD, Kind.CHECKPOINT):
        return (0,)
    files = 1 + len(fields["parents"])
    return (0, 1) if kind is Kind.LOAD and files == 1 else (files,)


def _fits(value: Any, field: Field) -> bool:
    if value is None:
        return field.optional
    if field.type is float:
        return type(value) in (int, float) and abs(value) <= _U63 and math.isfinite(value)
    if field.type is int:
        return type(value) is int and field.least <= value <= field.most
    if field.type is str:
        return _is_text(value, field.most)
    if field.type is list:
        return isinstance(value, list) and len(value) <= field.most and all(_is_text(each, _MAX_TEXT) for each in value)
    return type(value) is field.type


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most
