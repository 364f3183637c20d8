"""The run-time register: a hash chain over everything that changed a guest's configuration since its launch.

The register begins with 48 zero bytes. Each event extends it, as a PCR of a TPM is extended, and is kept in a log, as
IMA keeps one:

    register = SHA-384(register || SHA-384(entry)), where an entry is canonical JSON

Who has the log can compute the register again; an entry that was left out, changed, added or moved gives another one.
What was changed and changed back is two entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from memvm.errors import GuestStateError
from memvm.units import KIB

DIGEST_SIZE = 48
"""Bytes of a SHA-384 digest, and of the register."""
MAX_LOG = 512 * KIB
"""Bytes of all entries. When the log is full nothing can be changed any more: what is not noted must not happen."""


class Register:
    """The register of one guest, and its log."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Begins with what is in the log already. Raises ValueError for entries that no register has."""
        self.value = bytes(DIGEST_SIZE)
        self.entries: list[str] = []
        self._size = 0
        for entry in entries:
            check_entry(entry)
            if self._size + len(entry) > MAX_LOG:
                raise ValueError(f"a log of more than {MAX_LOG} bytes")
            self._add(entry)

    def entry(self, event: str, **facts: Any) -> str:
        """An entry that there is room for. Raises GuestStateError if the log is full."""
        entry = json.dumps({"event": event, **facts}, sort_keys=True, separators=(",", ":"))
        if self._size + len(entry) > MAX_LOG:
            raise GuestStateError("the log of the run-time register is full: nothing can be changed any more")
        return entry

    def after(self, entry: str) -> bytes:
        """The value that an entry will make of this one."""
        return extended(self.value, entry)

    def extend(self, entry: str) -> None:
        """Note an event, before it has an effect."""
        self._add(entry)

    def _add(self, entry: str) -> None:
        self.value = extended(self.value, entry)
        self.entries.append(entry)
        self._size += len(entry)


def extended(value: bytes, entry: str) -> bytes:
    """What a register becomes by an entry."""
    from hashlib import sha384  # loads a library, and most guests are never changed

    return sha384(value + sha384(entry.encode()).digest()).digest()


def check_entry(entry: str) -> dict[str, Any]:
    """The fields of an entry. Raises ValueError if it is no canonical JSON object, or has no event."""
    fields = json.loads(entry)
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), str):
        raise ValueError("an entry of the log is no event")
    if json.dumps(fields, sort_keys=True, separators=(",", ":")) != entry:
        raise ValueError("an entry of the log is not canonical")
    return fields
