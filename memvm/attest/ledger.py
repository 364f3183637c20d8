"""What a verifier remembers: entries by key, each until a moment, in a file that is a journal of JSON lines.

A line is appended before anybody is told of what it says, and of several lines with one key the last counts. A line
that is not complete, because the machine went down, was never believed: it is cut off. What has expired is forgotten;
and when the file has grown to twice of what was left the last time, it is written anew, under another name, synced, and
renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memvm.errors import AttestationError, HostError
from memvm.faultpoints import FaultPoint, fire
from memvm.linux.files import sync_directory

MOST_ENTRIES = 250_000
"""Of one ledger. Who remembers as much remembers nothing new, and issues no token for it."""
_SLACK = 1000


class Ledger:
    """One such file. Not for several threads at once."""

    def __init__(self, path: Path, clock: Callable[[], float], most: int = MOST_ENTRIES) -> None:
        """Raises HostError if what is remembered cannot be read."""
        self._path, self._clock, self._most = path, clock, most
        self._entries: dict[str, dict[str, Any]] = {}
        self._lines = 0
        self._full_until = 0.0
        try:
            path.touch(mode=0o600)
            cut_torn_line(path)
            with path.open("rb") as file:
                for line in file:
                    entry = json.loads(line)
                    self._entries[str(entry["key"])] = {**entry, "until": float(entry["until"])}
                    self._lines += 1
            self._file = path.open("ab", buffering=0)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise HostError(
                f"{path}: what the verifier remembers cannot be read: {error}",
                hint="bring it back from a backup; without it, a verifier forgets what it denied",
            ) from None

        self._most_lines = _lines_for(len(list(self)))

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What is remembered under a key."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry["until"] > self._clock() else None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        """The keys of all that is remembered."""
        now = self._clock()
        return iter([key for key, entry in self._entries.items() if entry["until"] > now])

    def note(self, key: str, until: float, *, durable: bool, **facts: Any) -> None:
        """Remember something until then, in seconds of the clock; `durable` also if the machine goes down.

        Raises OSError, and AttestationError if so much is remembered already that there is no room.
        """
        if key not in self._entries:
            self._make_room()
        entry = {"key": key, "until": until, **facts}
        self._file.write(json.dumps(entry).encode() + b"\n")
        if durable:
            os.fdatasync(self._file.fileno())
        self._entries[key] = entry
        self._lines += 1
        if self._lines > self._most_lines:
            self.prune()

    def prune(self) -> None:
        """Forget what has expired, and make the file as small as what is left. Raises OSError: then nothing is lost."""
        kept = {key: self._entries[key] for key in self}
        temporary = self._path.with_name(self._path.name + ".new")
        with open(temporary, "wb", opener=_for_owner) as file:
            file.writelines(json.dumps(entry).encode() + b"\n" for entry in kept.values())
            file.flush()
            os.fsync(file.fileno())
        appending = temporary.open("ab", buffering=0)  # now, since there is no way back once it has its name
        try:
            fire(FaultPoint.LEDGER_BEFORE_RENAME)
            temporary.rename(self._path)
        except BaseException:
            appending.close()
            raise
        self._file.close()
        self._file, self._entries, self._lines = appending, kept, len(kept)
        self._most_lines = _lines_for(len(kept))
        sync_directory(self._path.parent)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _make_room(self) -> None:
        if len(self._entries) < self._most:
            return
        now = self._clock()
        if self._full_until <= now:  # nothing expires before that: who asks in vain has not even looked
            if any(entry["until"] <= now for entry in self._entries.values()):
                self.prune()
            else:
                self._full_until = min(entry["until"] for entry in self._entries.values())
        if len(self._entries) >= self._most:
            raise AttestationError(
                f"{self._path.name}: the verifier remembers {self._most} entries, and has no room for another",
                hint="give it a policy with shorter lifetimes",
            )


def _lines_for(entries: int) -> int:
    """How many lines a file may come to have that had so many when it was written."""
    return 2 * entries + _SLACK


def cut_torn_line(path: Path) -> None:
    """What stands behind the last end of a line would become the beginning of the next one."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        at = size
        while at:
            start = max(0, at - 4096)
            file.seek(start)
            if (found := file.read(at - start).rfind(b"\n")) >= 0:
                at = start + found + 1
                break
            at = start
        if at < size:
            file.truncate(at)


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
