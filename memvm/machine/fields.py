"""Takes JSON apart that anybody may have written: each value with its type and its bounds, or ValueError."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

U64 = (1 << 64) - 1
I64 = (1 << 63) - 1


def text(data: bytes) -> str:
    """Bytes as JSON can have them: base64."""
    return base64.b64encode(data).decode()


class Fields:
    """One JSON object, whose fields are taken by name; one that older files lack has a `default`. Raises ValueError."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError("not an object")
        self._value = value

    def get(self, name: str, default: Any = ...) -> Any:
        """Whatever it is."""
        if name not in self._value and default is ...:
            raise ValueError(f"{name} is missing")
        return self._value.get(name, default)

    def has(self, name: str) -> bool:
        """Whether it is there, as it is in the files of younger versions."""
        return name in self._value

    def number(self, name: str, most: int = U64, least: int = 0, default: Any = ...) -> int:
        """An integer within bounds."""
        return integer(self.get(name, default), name, most, least)

    def optional(self, name: str, most: int = I64, least: int = 0, default: Any = ...) -> int | None:
        """An integer within bounds, or None."""
        value = self.get(name, default)
        return None if value is None else integer(value, name, most, least)

    def data(self, name: str, most: int) -> bytes:
        """Bytes, from base64."""
        return blob(self.get(name), name, most)

    def items(self, name: str, most: int, read: Callable[[Any], T], default: Any = ...) -> tuple[T, ...]:
        """A list of at most so many, each read by a function."""
        value = self.get(name, default)
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"{name} is not a list of at most {most}")
        return tuple(map(read, value))


def integer(value: Any, name: str, most: int = U64, least: int = 0) -> int:
    """An integer within bounds. Raises ValueError, as do all here, naming what it is."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is not a number from {least} to {most}")
    return value


def blob(value: Any, name: str, most: int) -> bytes:
    """Bytes, from base64."""
    if not isinstance(value, str) or len(value) > 4 * (most // 3 + 1):
        raise ValueError(f"{name} is not at most {most} bytes of base64")
    decoded = base64.b64decode(value, validate=True)
    if len(decoded) > most:
        raise ValueError(f"{name} is longer than {most} bytes")
    return decoded


def truth(value: Any, name: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"{name} is neither true nor false")
    return value


def listed(value: Any, size: int, name: str) -> list[Any]:
    """A list of exactly so many."""
    if not isinstance(value, list) or len(value) != size:
        raise ValueError(f"{name} is not a list of {size}")
    return value
