"""What a manager and its clients say to each other: JSON lines over a unix stream socket.

    client → manager    {"do": "checkpoint", "path": "/tmp/a.ckpt", "live": true}
    manager → client    {"progress": [done, total]}       any number of times
    manager → client    {"ok": {...}}                     or
                        {"error": {"kind": "SaveError", "message": "...", "hint": "...", "exit_code": 74}}

A connection carries one request after another. A line is at most MAX_LINE bytes, its newline included.
An error travels by the name of its class in memvm.errors, and is raised as that class again.
Both ends run as the same user; SO_PEERCRED (unix(7)) tells, and the kernel vouches for it.
"""

from __future__ import annotations

import json
import socket
import struct
import typing
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar

import memvm.errors
from memvm.errors import BadPage, ControlError, MemvmError
from memvm.units import MIB

MAX_LINE = MIB
"""Bytes of the longest line, in either direction."""
MAX_TRANSFER = 512 << 10
"""Bytes of guest RAM that one read or write carries: in base64 they and the rest fit one line."""
DEFAULT_LEVEL = 1
"""zstd level of a checkpoint."""
DEFAULT_BLOCK_SIZE = 2 * MIB
"""Bytes of a checkpoint's staging buffer, written as one storage block."""
DEFAULT_SUSPEND_TIME = 30.0
"""Seconds after which a guest that is being suspended is stopped, whatever is left to be saved."""

Json = dict[str, Any]
T = TypeVar("T")


class Peer(NamedTuple):
    """The process at the other end of a unix socket, as it was when it connected or listened."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end (SO_PEERCRED, struct ucred of linux/socket.h)."""
    ucred = struct.Struct("3i")
    return Peer(*ucred.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size)))


def encode(message: Json) -> bytes:
    """One line. Raises ControlError if it would be longer than MAX_LINE."""
    line = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise ControlError(f"a message of {len(line)} bytes is longer than the control protocol allows")
    return line


def decode(line: bytes) -> Json:
    """The JSON object in a line. Raises ControlError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("a message on the control socket is not JSON") from None
    if not isinstance(message, dict):
        raise ControlError("a message on the control socket is not a JSON object")
    return message


class LineReader:
    """Cuts what comes from a socket into lines of bounded length."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = bytearray()
        self._searched = 0

    def read(self) -> bytes | None:
        """The next line without its newline; None at the end.

        Raises ControlError if the line is too long or the end comes within it, and OSError as
        recv does, TimeoutError included.
        """
        while (end := self._pending.find(b"\n", self._searched)) < 0:
            self._searched = len(self._pending)
            if self._searched >= MAX_LINE:
                raise ControlError(f"a message on the control socket is longer than {MAX_LINE} bytes")
            received = self._connection.recv(min(1 << 16, MAX_LINE - self._searched))
            if not received:
                if self._pending:
                    raise ControlError("the control connection ended in the middle of a message")
                return None
            self._pending += received
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        self._searched = 0
        return line


def error_to_json(error: MemvmError) -> Json:
    """An error as it travels."""
    fields: Json = {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, BadPage):
        fields["page"] = error.page
    return fields


def error_from_json(fields: object) -> MemvmError:
    """The error that error_to_json was given; one that makes no sense becomes a ControlError.

    A kind that this version does not know (the manager may be of another) keeps its exit code.
    """
    if not isinstance(fields, dict) or not all(isinstance(fields.get(k), str) for k in ("kind", "message")):
        return ControlError("the manager reported an error that makes no sense")
    kind = getattr(memvm.errors, fields["kind"], None)
    message, hint = fields["message"], str(fields.get("hint", ""))
    if kind is BadPage and type(fields.get("page")) is int:
        return BadPage(fields["page"], message, hint=hint)
    if isinstance(kind, type) and issubclass(kind, MemvmError) and kind is not BadPage:
        return kind(message, hint=hint)
    error = MemvmError(message, hint=hint)
    if type(code := fields.get("exit_code")) is int and 0 < code < 256:
        error.exit_code = code
    return error


def record_to_json(record: Any) -> Json:
    """A named tuple or frozen dataclass as JSON: enums by their value, paths as text."""
    return {name: _value_to_json(getattr(record, name)) for name in _field_names(type(record))}


def _field_names(cls: type[Any]) -> tuple[str, ...]:
    # Without dataclasses.fields: what a guest's start needs does without that module's imports.
    return getattr(cls, "_fields", None) or tuple(cls.__dataclass_fields__)


def _value_to_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def record_from_json(cls: type[T], fields: object) -> T:
    """The record that record_to_json was given; fields that this version lacks are left out.

    Raises ControlError if a field is missing or of another type.
    """
    if not isinstance(fields, dict):
        raise ControlError(f"the manager sent no {cls.__name__}")
    values: Json = {}
    types = typing.get_type_hints(cls)
    for name in _field_names(cls):
        if name in fields:
            values[name] = _typed(types[name], fields[name], f"{cls.__name__}.{name}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ControlError(f"the manager sent an incomplete {cls.__name__}: {error}") from None


def _typed(wanted: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `wanted`, if it is one; the types of the records are all simple."""
    if isinstance(wanted, UnionType):  # "X | None"
        if value is None and type(None) in typing.get_args(wanted):
            return None
        wanted = next(option for option in typing.get_args(wanted) if option is not type(None))
    plain = typing.get_origin(wanted) or wanted
    try:
        if issubclass(plain, (Enum, Path)):
            return plain(value)
    except (TypeError, ValueError):
        raise ControlError(f"{where} cannot be {value!r}") from None
    if plain is float and type(value) is int:
        return float(value)
    if type(value) is not plain:
        raise ControlError(f"{where} cannot be {value!r}")
    return value
