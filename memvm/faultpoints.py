"""Named places at which a test can make something go wrong.

Code that has such a place calls `fire(point)` there, and that is all it knows. With nothing armed a
firing costs one look at an empty dictionary. A test arms a point in its own process with `arm`; in a
process that it starts, with the environment variable MEMVM_FAULTS:

    MEMVM_FAULTS="save.before_sync=kill,save.block_write=enospc@3"

    kill        SIGKILL to the process itself
    enospc eio  OSError with that errno, as a full or broken disk gives
    stall=0.2   sleep that many seconds
    hold=FILE   wait as long as there is such a file, with a line in it for each that waits
    ...@N       only at the N-th firing, counted from 1; without it, at every firing
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from itertools import count
from pathlib import Path

from memvm.errors import UsageError

_LOOK_INTERVAL = 0.005
"""Seconds between two looks whether a file is still there."""


class FaultPoint(StrEnum):
    """Each place, by the name that MEMVM_FAULTS uses; `meaning` is a line for people."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> FaultPoint:
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        return member

    SAVE_TRACED = "save.traced", "a live save has placed its traces, and no guards"
    SAVE_BLOCK_WRITE = "save.block_write", "a storage block is about to be written"
    SAVE_BEFORE_INDEX = "save.before_index", "all blocks are written, the index is not"
    SAVE_BEFORE_COMMIT_RECORD = "save.before_commit_record", "index and state are written, the record is not"
    SAVE_BEFORE_SYNC = "save.before_sync", "the file is written whole, and not synced"
    SAVE_BEFORE_RENAME = "save.before_rename", "the synced file has its temporary name"
    SAVE_AFTER_RENAME = "save.after_rename", "the file has its name, its directory is not synced"
    SUSPEND_ROUND = "suspend.round", "a suspend begins a round: guards are on, and nothing of it is stored"
    SUSPEND_STOPPED = "suspend.stopped", "the guest stands still, and the rest is about to be saved"
    SUSPEND_SAVED = "suspend.saved", "the file is whole, and the guest has not been ended"
    LOAD_READ = "load.read", "a checkpoint file is about to be read"
    LOAD_CHUNKS = "load.chunks", "pages of a checkpoint are about to be read, whose header and index were"
    LEDGER_BEFORE_RENAME = "ledger.before_rename", "what a verifier remembers is written anew, under a temporary name"
    ANCHOR_BEFORE_EXTEND = "anchor.before_extend", "an event is in the TPM's log, and its PCR is not extended"
    DISK_KEYSLOT_WRITTEN = "disk.keyslot_written", "a disk's new keyslot is written, and no header knows it"
    DISK_HEADER_COPY = "disk.header_copy", "one more copy of a disk's header is written"
    DISK_JOURNAL_WRITTEN = "disk.journal_written", "a disk's journal is whole, and nothing of it is in the disk"
    DISK_COMMITTED = "disk.committed", "what the journal has counts, and part of it may be in the disk"
    DISK_ANCHOR_WRITTEN = "disk.anchor_written", "the platform's new word for a disk is written, and not synced"
    DISK_BEFORE_RENAME = "disk.before_rename", "a disk that was encrypted anew is whole, and has another name yet"
    DISK_AFTER_RENAME = "disk.after_rename", "it has its name, and the tags of the one that it replaces are there"
    DISK_READ = "disk.read", "sectors are about to be read from a disk's file"


Action = Callable[[], object] | BaseException


class _Armed:
    """What happens at a point, and at which of its firings (0: at each)."""

    def __init__(self, action: Action, at: int) -> None:
        self.action = action
        self.at = at
        self.firings = count(1)  # next() is atomic, so that several threads may pass one point

    def fire(self) -> None:
        firing = next(self.firings)
        if self.at and firing != self.at:
            return
        if isinstance(self.action, BaseException):
            raise self.action
        self.action()


def fire(point: FaultPoint) -> None:
    """Does what is armed at `point`, and usually nothing. Raises what the armed action raises."""
    if _armed and (armed := _armed.get(point)) is not None:
        armed.fire()


@contextmanager
def arm(point: FaultPoint, action: Action, *, at: int = 0) -> Iterator[None]:
    """While the context lasts, `point` calls `action`, or raises it if it is an exception.

    `at` is the one firing that counts, from 1; 0 means every firing. What was armed there before
    is armed again afterwards.
    """
    before = _armed.get(point)
    _armed[point] = _Armed(action, at)
    try:
        yield
    finally:
        if before is None:
            del _armed[point]
        else:
            _armed[point] = before


def parse_faults(text: str) -> dict[FaultPoint, tuple[Action, int]]:
    """What MEMVM_FAULTS asks for: each point's action and the firing at which it happens.

    Raises UsageError if the text is malformed or names an unknown point or action.
    """
    faults: dict[FaultPoint, tuple[Action, int]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, what = item.partition("=")
        what, _, at = what.partition("@")
        try:
            faults[FaultPoint(name)] = (_action(what), int(at) if at else 0)  # type: ignore[call-arg]
        except ValueError as error:
            raise UsageError(
                f"MEMVM_FAULTS: cannot understand {item!r}: {error}",
                hint="write POINT=kill|enospc|eio|stall=SECONDS|hold=FILE, with @N for the N-th firing; "
                "memvm doctor --fault-points lists the points",
            ) from None
    return faults


def _action(text: str) -> Action:
    kind, _, value = text.partition("=")
    if kind == "kill" and not value:
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    if kind in ("enospc", "eio") and not value:
        code = errno.ENOSPC if kind == "enospc" else errno.EIO
        return lambda: _raise_os_error(code)
    if kind == "stall":
        seconds = float(value)
        return lambda: time.sleep(seconds)
    if kind == "hold" and value:
        return lambda: _await_removal(Path(value))
    raise ValueError(f"no such action: {text!r}")


def _await_removal(file: Path) -> None:
    with suppress(FileNotFoundError):
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # which never makes it
        os.write(fd, b"held\n")
        os.close(fd)
    while file.exists():
        time.sleep(_LOOK_INTERVAL)


def _raise_os_error(code: int) -> None:
    raise OSError(code, os.strerror(code))


_armed: dict[FaultPoint, _Armed] = {
    point: _Armed(action, at) for point, (action, at) in parse_faults(os.environ.get("MEMVM_FAULTS", "")).items()
}
