"""The fields of a request, read by their types: whatever a client sends, it gets an answer in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from memvm.errors import UsageError
from memvm.manager.protocol import Json


def integer_of(request: Json, key: str, default: int | None = None) -> int:
    """A whole number. Raises UsageError."""
    value: Any = request.get(key, default)
    if type(value) is not int:  # bool is a subclass, and no number here
        raise UsageError(f"{request.get('do')}: {key} has to be a whole number, not {value!r:.80}")
    return value


def text_of(request: Json, key: str, default: str | None = None) -> str:
    """Text. Raises UsageError."""
    value: Any = request.get(key, default)
    if not isinstance(value, str):
        raise UsageError(f"{request.get('do')}: {key} has to be text, not {value!r:.80}")
    return value


def path_of(request: Json, key: str) -> Path:
    """An absolute path. Raises UsageError."""
    text = text_of(request, key)
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError("the path of a checkpoint cannot be a file name") from None
    if not encoded.startswith(b"/") or b"\0" in encoded:
        raise UsageError("the path of a checkpoint has to be absolute, without null bytes")
    return Path(text)
