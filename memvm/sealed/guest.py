"""A sealed guest as its manager has it: a ManagedGuest that asks its platform, and gets nothing of its memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from memvm.attest.checkpoint_keys import KeyRelease
from memvm.checkpoint.encrypted_files import EncryptedFile, open_encrypted
from memvm.checkpoint.finding import MAX_FILES, require_apart
from memvm.checkpoint.pending_file import PendingFile, save_error
from memvm.checkpoint.save import SaveReport
from memvm.checkpoint.sections import relative_name
from memvm.checkpoint.suspend import SuspendReport
from memvm.disk.files import DiskFiles
from memvm.errors import (
    AttestationError,
    ControlError,
    GuestStateError,
    HostError,
    MemvmError,
    SaveError,
    SettingRefused,
)
from memvm.linux.own_threads import Thread
from memvm.machine.config import ExitStatus, GuestStatus
from memvm.machine.files_state import FilesState
from memvm.machine.settings import Behaviour, Change, Name, Setting, Settings
from memvm.manager.configuration import config_from_json
from memvm.manager.guest import Progress, Regions, Watch
from memvm.manager.protocol import record_from_json
from memvm.memory.traces import Traces
from memvm.sealed.channel import Channel
from memvm.sealed.isolation import PlatformProcess
from memvm.sealed.protocol import FROM_PLATFORM, Json, Kind, Message

T = TypeVar("T")


class SealedSettings(Settings):
    """The settings of a sealed guest: the platform's are those that count, and these follow them."""

    encrypts = True

    def __init__(self, ask: Callable[[Kind, Json], Json], answer: Json) -> None:
        """`answer` is what the platform said of them."""
        told = config_from_json(answer)
        at_launch = {Name(each.name): Setting(each.at_launch, Behaviour(each.behaviour)) for each in told.settings}
        super().__init__(at_launch)
        self._ask = ask
        self._follow(answer)

    def _follow(self, answer: Json) -> None:
        told = config_from_json(answer)
        with self.lock:
            self.restore({Name(each.name): each.value for each in told.settings})

    def to_fields(self, shown: int) -> Json:
        """As the platform tells it."""
        return self._ask(Kind.SETTINGS, {})

    def change(self, name: Name, text: str) -> Change:
        """As Settings has it; the platform carries it out."""
        before = self.value(name)
        try:
            self._follow(self._ask(Kind.CHANGE, {"name": str(name), "value": text}))
        finally:
            self.changed()
        return Change(before, *self.now()[name])


class SealedGuest:
    """A guest in the hands of its platform; its methods may be called from any thread."""

    restore_report = None

    def __init__(self, process: PlatformProcess, release: KeyRelease | None = None) -> None:
        """Takes the process over. `release` is the way to who keeps the key of its checkpoints."""
        self._process = process
        self._release = release
        self._channel = Channel(process.connection, FROM_PLATFORM, self._answer)
        self._ending: ExitStatus | None = None
        self._over = threading.Event()
        self._name = ""
        self._saving: tuple[PendingFile, Progress] | None = None
        self._closed = False
        self._failure = ""
        self._settings: Settings | None = None
        self._thread = Thread(target=self._serve, name="platform", daemon=True)
        self._thread.start()

    def give_disk(self, files: DiskFiles) -> None:
        """Give it a disk, before it is made. The files stay the caller's, who closes them after the guest's end."""
        having = {"journal": files.journal >= 0, "tags": files.tags >= 0}
        descriptors = [fd for fd in (files.sectors, files.journal, files.tags) if fd >= 0]
        self._ask(Kind.DISK, {"name": files.name, **having}, descriptors)

    def load(self, name: str, files: Sequence[EncryptedFile] = ()) -> None:
        """Have the guest made. Raises what makes that fail.

        `files` are the checkpoint that it comes from, if it does, and that one's parents; they stay the caller's.
        """
        self._name = name
        parents = [str(file.path) for file in files[1:]]
        try:
            answer = self._ask(Kind.LOAD, {"name": name, "parents": parents}, [file.fd for file in files])
        except MemvmError as error:
            if self._channel.is_open:
                raise
            self._over.wait()
            assert self._ending is not None
            raise HostError(self._ending.reason) from error
        self._settings = SealedSettings(self._ask, answer)

    def _serve(self) -> None:
        try:
            self._channel.serve()
        except ControlError as error:
            self._failure = error.message
            self._channel.hang_up()  # it is not believed any more, and ends its guest
        finally:
            if not self._over.is_set():
                self._lost()

    def _lost(self) -> None:
        status = self._process.wait()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        reason = self._failure or f"its platform ended {how}, and the guest with it"
        self._ending = ExitStatus(HostError.exit_code, reason=f"the sealed guest was lost: {reason}")
        self._over.set()

    def _ask(self, kind: Kind, fields: Json | None = None, descriptors: Sequence[int] = ()) -> Json:
        return self._channel.ask(kind, fields, descriptors)

    def _answer(self, message: Message, _descriptors: Sequence[int]) -> Json:
        """A question of the platform's."""
        fields = message.fields
        if message.kind is Kind.RELEASE:
            return self._ask_keeper(fields["request"])
        saving = self._saving
        if saving is None:
            raise GuestStateError("nothing is being saved")
        pending, progress = saving
        if message.kind is Kind.PROGRESS:
            progress(fields["done"], fields["total"])
            return {}
        try:
            pending.publish()
        except OSError as error:
            raise save_error(pending.path, error) from error
        return {}

    def _ask_keeper(self, request: str) -> Json:
        if self._release is None:
            raise AttestationError(
                "nobody was named who keeps the key of this checkpoint", hint="say where he is with --key-keeper URL"
            )
        try:
            asked = bytes.fromhex(request)
        except ValueError:
            raise ControlError("the platform asks a key keeper for something that makes no sense") from None
        return {"answer": self._release(asked).hex()}

    @property
    def settings(self) -> Settings:
        """As the platform has them."""
        if self._settings is None:
            raise GuestStateError(f"guest {self._name} is still starting")
        return self._settings

    def start(self) -> None:
        """Let the guest run."""
        self._ask(Kind.START)
        Thread(target=self._await_end, name="sealed guest's end", daemon=True).start()

    def _await_end(self) -> None:
        try:
            ending = record_from_json(ExitStatus, self._ask(Kind.WAIT))
        except (GuestStateError, ControlError):
            return  # the platform has gone, which the other thread tells of
        self._ending = ending
        self._over.set()

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """How the guest ended, once it has; None if the time ran out first."""
        return self._ending if self._over.wait(timeout) else None

    def pause(self) -> None:
        """Stop the guest until `resume`. Raises GuestStateError if it has ended."""
        self._ask(Kind.PAUSE)

    def resume(self, calls: int = 0) -> None:
        """Let a paused guest go on. Raises GuestStateError if it has ended, SettingRefused if it awaits a token.

        Nor is it stopped after so many hypercalls: where it stands then would say what it does.
        """
        if calls:
            self._refuse("stepped through")
        self._ask(Kind.RESUME)

    def take_signal(self, number: int) -> bool:
        """Give the guest a signal from outside, unless that would only end it; False if so."""
        try:
            return bool(self._ask(Kind.SIGNAL, {"number": int(number)}).get("taken"))
        except (GuestStateError, ControlError):
            return False  # it has ended

    def kill(self, reason: str = "") -> None:
        """End the guest as SIGKILL does."""
        try:
            self._ask(Kind.KILL, {"reason": reason[:1000]})
        except (GuestStateError, ControlError):
            self._over.wait()  # its platform has gone, and it with that

    def status(self) -> GuestStatus:
        """The guest's figures at this moment. Raises GuestStateError if it has gone."""
        return record_from_json(GuestStatus, self._ask(Kind.STATUS))._replace(manager_pid=os.getpid())

    def attest(self, verifier: str, audience: str, kind: str, authority: str) -> Json:
        """Have the platform make a round with a verifier; what came of it. Raises AttestationError."""
        fields = {"verifier": verifier, "audience": audience, "format": kind, "authority": authority}
        return self._ask(Kind.ATTEST, fields)

    def save(
        self,
        path: Path,
        *,
        live: bool,
        parent: Path | None,
        level: int,
        block_size: int,
        progress: Progress,
    ) -> SaveReport:
        """Save it, encrypted; it goes on as before. Raises as memvm.checkpoint.save.save does."""
        link = None if parent is None else os.fsdecode(relative_name(parent, path))
        with ExitStack() as opened:
            files = [] if parent is None else _open_parents(parent, path, opened)
            parents = [str(file.path) for file in files]
            fields = {"level": level, "block_size": block_size, "live": live, "parents": parents, "link": link}
            return self._save(Kind.CHECKPOINT, path, fields, SaveReport, progress, [file.fd for file in files])

    def suspend(
        self, path: Path, *, level: int, block_size: int, time: float, data: int | None, progress: Progress
    ) -> SuspendReport:
        """Save it, encrypted, and end it. Raises as memvm.checkpoint.suspend.suspend does."""
        fields = {"level": level, "block_size": block_size, "time": time, "data": data}
        return self._save(Kind.SUSPEND, path, fields, SuspendReport, progress)

    def _save(
        self,
        kind: Kind,
        path: Path,
        fields: Mapping[str, Any],
        report: type[T],
        progress: Progress,
        parents: Sequence[int] = (),
    ) -> T:
        """The control server lets one save at a time come here."""
        pending = PendingFile(path)
        try:
            self._saving = pending, progress
            return record_from_json(report, self._ask(kind, {"path": str(path), **fields}, [pending.fd, *parents]))
        finally:
            self._saving = None
            pending.discard()

    @property
    def traces(self) -> Traces:
        """Nobody traces a sealed guest."""
        self._refuse("traced")

    def regions(self) -> Regions:
        """Not told."""
        self._refuse("looked at")

    def registers(self) -> dict[str, int]:
        """Not told."""
        self._refuse("looked at")

    def read_memory(self, address: int, size: int) -> bytes:
        """Not told."""
        self._refuse("read")

    def write_memory(self, address: int, data: bytes) -> None:
        """Not done."""
        self._refuse("changed")

    def files_state(self) -> FilesState:
        """Not told."""
        self._refuse("looked at")

    def watch_writes(self) -> Watch:
        """Not done."""
        self._refuse("watched")

    def sample_working_set(self, pages: int, interval: float) -> None:
        """Not done."""
        self._refuse("watched")

    def _refuse(self, what: str) -> NoReturn:
        raise SettingRefused(f"guest {self._name} is sealed: it cannot be {what} from outside")

    def close(self) -> None:
        """End the guest if it lives, with its platform, and release everything; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._process.close()
        self._thread.join()


def _open_parents(parent: Path, path: Path, opened: ExitStack) -> list[EncryptedFile]:
    """A checkpoint, and its parents, that one at `path` shall be saved on top of. Raises CheckpointError, SaveError."""
    files = open_encrypted(parent, opened)
    require_apart(path, files)
    if len(files) >= MAX_FILES:
        raise SaveError(
            f"{parent} has {len(files) - 1} parents already; no more are allowed",
            hint="save the guest whole: leave --parent out",
        )
    return files
