"""The platform of a sealed guest: the process that has its memory, its traces and its keys, and serves its manager.

It does with the guest what a manager does with an open one, in the same classes. What the manager may ask for is the
list of protocol.py; nothing on it has contents of the guest's memory, or its registers, as the answer. A checkpoint is
written by this process, encrypted, into a file of the manager's.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Protocol

from memvm.checkpoint.encrypted_files import EncryptedFile
from memvm.checkpoint.file_bytes import OpenOutput
from memvm.checkpoint.save import SaveOptions, save
from memvm.checkpoint.suspend import SuspendOptions, suspend
from memvm.disk.files import DiskFiles
from memvm.errors import ControlError, GuestStateError
from memvm.machine.machine import Machine
from memvm.machine.settings import parse_name
from memvm.manager.configuration import config_to_json
from memvm.manager.process import settle_down, share_out_resources
from memvm.manager.protocol import record_to_json
from memvm.memory.uffd_engine import let_pagers_be_ended
from memvm.sealed.chains import SealedParent, adopt, close
from memvm.sealed.channel import Channel
from memvm.sealed.protocol import ANSWERS, FROM_PLATFORM, Json, Kind, Message

MOST_DISKS = 64
"""Of one guest."""
_PROGRESS_INTERVAL = 0.05
"""Seconds between two questions whether a save is still wanted."""

Ask = Callable[[Kind, Json], Json]
"""Asks the manager."""


class SealedMachine(Protocol):
    """A guest with what only its platform has."""

    machine: Machine

    def open_parent(self, files: Sequence[EncryptedFile], name: str) -> SealedParent:
        """What a checkpoint is to be saved on top of, and to call so: files that came from the manager, and stay open.

        Raises CheckpointError, SaveError, SettingRefused.
        """

    def open_output(self, fd: int, publish: Callable[[], None], parent: SealedParent | None = None) -> OpenOutput:
        """What begins an encrypted checkpoint in `fd`, which stays the caller's. Raises SettingRefused."""

    def close(self) -> None:
        """End the guest, and forget the keys; idempotent."""

    def attest(self, verifier: str, audience: str, kind: str, authority: str) -> Json:
        """Make a round with a verifier; what came of it. Raises AttestationError."""


Load = Callable[[str, Sequence[Path], Sequence[int], Sequence[DiskFiles], Ask], SealedMachine]
"""Makes the guest, by its name. If it comes from a checkpoint, it gets the paths of that one's parents, and takes the
descriptors of the checkpoint and of those over; and it takes over the files of its disks. The last is who asks the
manager."""


class Platform:
    """Serves one manager, from before the guest is loaded until its end."""

    def __init__(self, connection: socket.socket, load: Load) -> None:
        self._load = load
        self._loading = threading.Lock()
        self._sealed: SealedMachine | None = None
        self._disks: list[DiskFiles] = []
        self._channel = Channel(connection, set(Kind) - {*FROM_PLATFORM, *ANSWERS}, self._answer)

    def run(self) -> None:
        """On the main thread: serve until the manager has gone, then end the guest.

        Raises ControlError if it said what makes no sense.
        """
        let_pagers_be_ended()
        share_out_resources()
        try:
            self._channel.serve()
        finally:
            with self._loading:
                if self._sealed is not None:
                    self._sealed.close()

    def _answer(self, message: Message, descriptors: Sequence[int]) -> Json:
        if message.kind is Kind.LOAD:
            return self._make(message, descriptors)
        if message.kind is Kind.DISK:
            return self._take_disk(message, descriptors)
        if message.kind in (Kind.CHECKPOINT, Kind.SUSPEND):
            return self._save(message, descriptors)
        return self._ANSWERS[message.kind](self, **message.fields)

    @property
    def _guest(self) -> SealedMachine:
        if self._sealed is None:
            raise GuestStateError("the sealed guest is not loaded yet")
        return self._sealed

    @property
    def _machine(self) -> Machine:
        return self._guest.machine

    def _make(self, message: Message, descriptors: Sequence[int]) -> Json:
        fields = message.fields
        with self._loading:
            if self._sealed is not None:
                raise ControlError("a sealed guest is loaded once")
            parents = list(map(Path, fields["parents"]))
            self._sealed = self._load(fields["name"], parents, descriptors, self._disks, self._channel.ask)
        return self._settings()

    def _take_disk(self, message: Message, descriptors: Sequence[int]) -> Json:
        name, has_journal, has_tags = (message.fields[field] for field in ("name", "journal", "tags"))
        rest = list(descriptors[1:])
        files = DiskFiles(name, descriptors[0], rest.pop(0) if has_journal else -1, rest.pop(0) if has_tags else -1)
        with self._loading:
            if self._sealed is not None or len(self._disks) == MOST_DISKS:
                files.close()
                raise ControlError(f"a sealed guest is given its disks before it is loaded, and at most {MOST_DISKS}")
            self._disks.append(files)
        return {}

    def _start(self) -> Json:
        settle_down()
        self._machine.start()
        return {}

    def _wait(self) -> Json:
        ending = self._machine.wait()
        assert ending is not None
        return record_to_json(ending)

    def _pause(self) -> Json:
        self._machine.pause()
        return {}

    def _resume(self) -> Json:
        self._machine.resume()
        return {}

    def _signal(self, number: int) -> Json:
        return {"taken": self._machine.take_signal(number)}

    def _kill(self, reason: str) -> Json:
        self._machine.kill(reason)
        return {}

    def _status(self) -> Json:
        return record_to_json(self._machine.status())

    def _settings(self) -> Json:
        return config_to_json(self._machine.settings)

    def _change(self, name: str, value: str) -> Json:
        self._machine.settings.change(parse_name(name), value)
        return self._settings()

    def _attest(self, verifier: str, audience: str, format: str, authority: str) -> Json:
        return self._guest.attest(verifier, audience, format, authority)

    def _save(self, message: Message, descriptors: Sequence[int]) -> Json:
        fields = message.fields
        with ExitStack() as opened:
            opened.callback(os.close, descriptors[0])
            if message.kind is Kind.SUSPEND:
                return self._suspend(descriptors[0], **fields)
            files = adopt(list(map(Path, fields["parents"])), descriptors[1:])
            opened.callback(close, files)
            return self._checkpoint(descriptors[0], files, fields)

    def _checkpoint(self, fd: int, parents: Sequence[EncryptedFile], fields: Json) -> Json:
        guest = self._guest
        guest.machine.settings.require("checkpoint")
        base = guest.open_parent(parents, fields["link"]) if parents else None
        open_output = guest.open_output(fd, self._publish, base)
        on_top_of = parents[0].path if parents else None
        options = SaveOptions(fields["live"], fields["level"], fields["block_size"], on_top_of)
        progress, parent = self._progress("checkpoint"), None if base is None else base.parent
        return record_to_json(save(guest.machine, Path(fields["path"]), options, progress, open_output, parent))

    def _suspend(self, fd: int, *, path: str, level: int, block_size: int, time: float, data: int | None) -> Json:
        guest = self._guest
        guest.machine.settings.require("suspend")
        open_output = guest.open_output(fd, self._publish)
        options, progress = SuspendOptions(level, block_size, float(time), data), self._progress("suspend")
        return record_to_json(suspend(guest.machine, Path(path), options, progress, open_output))

    def _publish(self) -> None:
        self._channel.ask(Kind.PUBLISH, {})

    def _progress(self, request: str) -> Callable[[int, int], None]:
        settings, due = self._machine.settings, 0.0

        def progress(done: int, total: int) -> None:
            nonlocal due
            settings.require(request)  # it may have been allowed when the save began, and is no more
            if (now := time.monotonic()) >= due:
                due = now + _PROGRESS_INTERVAL
                self._channel.ask(Kind.PROGRESS, {"done": done, "total": total})

        return progress

    _ANSWERS: ClassVar[Mapping[Kind, Callable[..., Json]]] = {
        Kind.START: _start,
        Kind.WAIT: _wait,
        Kind.PAUSE: _pause,
        Kind.RESUME: _resume,
        Kind.SIGNAL: _signal,
        Kind.KILL: _kill,
        Kind.STATUS: _status,
        Kind.SETTINGS: _settings,
        Kind.CHANGE: _change,
        Kind.ATTEST: _attest,
    }
