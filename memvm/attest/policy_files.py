"""Policies in TOML files: how they are read, and what their values may be. What a reader does not know is an error."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from memvm.attest.asking import require_askable
from memvm.errors import AttestationError, UsageError
from memvm.units import parse_duration

_Policy = TypeVar("_Policy")


def read_policy_file(path: Path, parse: Callable[[dict[str, Any], Path], _Policy]) -> _Policy:
    """What `parse` makes of a file's tables, and of the folder that paths are relative to. Raises AttestationError.

    It takes out (`pop`) what it knows, says of the rest that nobody knows it (`refuse_unknown`), and raises ValueError
    for values that make no sense; a table that is none, or is missing, may raise what Python raises then.
    """
    try:
        return parse(tomllib.loads(path.read_text()), path.parent)
    except OSError as error:
        raise AttestationError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise AttestationError(f"{path}: the policy makes no sense: {error}") from None


def refuse_unknown(*tables: Collection[str]) -> None:
    """Raises ValueError if something is left in these."""
    if unknown := [name for table in tables for name in table]:
        raise ValueError(f"nobody knows {unknown[0]!r}")


def needed(table: dict[str, Any], name: str) -> Any:
    """Takes out what has to be there. Raises ValueError."""
    if name not in table:
        raise ValueError(f"there has to be {name!r}")
    return table.pop(name)


def text(value: Any) -> str:
    """A text that is not empty. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def truth(value: Any) -> bool:
    """Raises ValueError."""
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def texts(values: Any) -> tuple[str, ...]:
    """Texts in a list; a single one would be taken for a list of its letters. Raises ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{values!r} is no list: write [{json.dumps(str(values))}]")
    return tuple(map(text, values))


def paths(values: Any, folder: Path) -> tuple[Path, ...]:
    """Names of files. Raises ValueError."""
    return tuple(folder / value for value in texts(values))


def service(value: Any) -> str:
    """The URL of a verifier. Raises ValueError."""
    try:
        require_askable(text(value), "verifier")
    except UsageError as error:
        raise ValueError(error.message) from None
    return str(value)


def lifetime(value: Any) -> float:
    """Seconds, more than none. Raises ValueError."""
    try:
        seconds = parse_duration(text(value))
    except UsageError as error:
        raise ValueError(error.message) from None
    if not seconds:
        raise ValueError(f"{value!r}: nothing would live so short")
    return seconds
