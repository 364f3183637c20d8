"""Asking a manager: a connection to it, requests with progress, and the requests by name."""

from __future__ import annotations

import base64
import binascii
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.errors import ControlError, GuestStateError, MemvmError
from memvm.machine.config import SAMPLE_INTERVAL, SAMPLE_PAGES, ExitStatus, GuestStatus
from memvm.machine.settings import Change
from memvm.manager.configuration import Config, config_from_json
from memvm.manager.dirty import DirtyLook, runs_from_json
from memvm.manager.guest import Progress
from memvm.manager.protocol import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_LEVEL,
    DEFAULT_SUSPEND_TIME,
    MAX_TRANSFER,
    Json,
    LineReader,
    decode,
    encode,
    error_from_json,
    peer_of,
    record_from_json,
)
from memvm.manager.rundir import Entry, RunDir
from memvm.memory.events import TraceEvent

if TYPE_CHECKING:
    from memvm.machine.files_state import FilesState
    from memvm.recording.format import NamedRegion
    from memvm.recording.restored import RestoreReport

TIMEOUT = 30.0
"""Seconds in which a manager has to answer what it can answer at once."""
_RUNS = ("written", "punched")
_GIVING_UP = 5.0
"""Seconds that a manager gets to give up a save that nobody wants any more."""


class TraceBatch(NamedTuple):
    """Events that were heard of, in order, and how many were lost before them."""

    events: list[TraceEvent]
    dropped: int
    regions: list[NamedRegion] | None = None
    """What parts of RAM are for, where that has changed since the batch before."""


class Client:
    """A connection to the manager of one guest; a context manager. Not for several threads at once.

    Every method raises ControlError if the manager cannot be spoken to, and what the manager raises.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        """Take over a connected socket."""
        self.name = name
        self._connection = connection
        self._lines = LineReader(connection)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    @property
    def manager_pid(self) -> int:
        """The process that listens at the other end."""
        return peer_of(self._connection).pid

    def status(self, timeout: float = TIMEOUT) -> GuestStatus:
        """The guest's figures."""
        return record_from_json(GuestStatus, self.request("status", timeout=timeout))

    def pause(self) -> None:
        """Stop the guest where it is."""
        self.request("pause")

    def resume(self, calls: int = 0) -> None:
        """Let a paused guest go on, if `calls` is not 0 until it has made so many hypercalls."""
        self.request("resume", calls=calls)

    def kill(self, reason: str) -> ExitStatus:
        """End the guest, and wait until its manager has gone too: its name is free then."""
        ending = record_from_json(ExitStatus, self.request("kill", reason=reason))
        self._await_hang_up()
        return ending

    def _await_hang_up(self) -> None:
        """The manager ends connections last of all."""
        self._connection.settimeout(TIMEOUT)
        with _spoken_to(self.name):
            while self._lines.read() is not None:
                pass

    def wait(self) -> ExitStatus:
        """Wait for the guest's end."""
        return record_from_json(ExitStatus, self.request("wait", timeout=None))

    def files(self) -> FilesState:
        """What the guest has of files in memory, and what it has open, at this moment."""
        from memvm.machine.files_state import FilesState

        with TemporaryDirectory(prefix="memvm-files-") as folder:
            path = Path(folder) / "files"
            self.request("files", path=str(path))
            try:
                return FilesState.from_json(json.loads(path.read_bytes()))
            except (OSError, ValueError) as error:
                raise ControlError(f"the manager of guest {self.name!r} wrote no files that make sense") from error

    def registers(self) -> dict[str, int]:
        """The general registers of the guest's vCPU by name."""
        return self.request("registers")

    def read_memory(self, address: int, size: int) -> bytes:
        """`size` bytes of guest RAM; more than MAX_TRANSFER are of one instant only if it is paused."""
        parts = []
        for offset in range(0, size, MAX_TRANSFER):
            length = min(MAX_TRANSFER, size - offset)
            answer = self.request("read", address=address + offset, size=length)
            try:
                part = base64.b64decode(answer["data"], validate=True)
            except (KeyError, TypeError, binascii.Error):
                raise ControlError(f"the manager of guest {self.name!r} sent no memory contents") from None
            if len(part) != length:
                raise ControlError(f"the manager of guest {self.name!r} sent {len(part)} bytes of {length}")
            parts.append(part)
        return b"".join(parts)

    def write_memory(self, address: int, data: bytes) -> None:
        """Change guest RAM; more than MAX_TRANSFER bytes do not change at one instant."""
        for offset in range(0, len(data), MAX_TRANSFER):
            part = base64.b64encode(data[offset : offset + MAX_TRANSFER]).decode("ascii")
            self.request("write", address=address + offset, data=part)

    def dirty(self, *, pages: bool = False) -> DirtyLook:
        """What changed in guest RAM since this connection's last call; with `pages` also which pages.

        The first call begins to watch, and tells of nothing.
        """
        told = self.request("dirty", pages=pages)
        written, punched, part = [], [], told
        while pages:
            written += runs_from_json(part.get("written", []))
            punched += runs_from_json(part.get("punched", []))
            if not part.get("more"):
                break
            part = self.request("dirty", more=True)
        look = record_from_json(DirtyLook, {key: value for key, value in told.items() if key not in _RUNS})
        return look._replace(written=tuple(written), punched=tuple(punched))

    def checkpoint(
        self,
        path: Path,
        *,
        live: bool = False,
        parent: Path | None = None,
        level: int = DEFAULT_LEVEL,
        block_size: int = DEFAULT_BLOCK_SIZE,
        progress: Progress | None = None,
    ) -> Json:
        """Save the guest to a file; the manager's report as JSON (checkpoint.save.SaveReport).

        An exception here, KeyboardInterrupt included, gives the save up and waits until it has been.
        """
        fields: Json = {"path": str(path.absolute()), "live": live, "level": level, "block_size": block_size}
        if parent is not None:
            fields["parent"] = str(parent.absolute())
        return self._save("checkpoint", progress, fields)

    def suspend(
        self,
        path: Path,
        *,
        level: int = DEFAULT_LEVEL,
        block_size: int = DEFAULT_BLOCK_SIZE,
        time: float = DEFAULT_SUSPEND_TIME,
        data: int | None = None,
        progress: Progress | None = None,
    ) -> Json:
        """Save the guest to a file and end it, and wait until its manager has gone too: its name is free then.

        Returns the manager's report as JSON (checkpoint.suspend.SuspendReport). An exception here gives the suspend
        up, as with `checkpoint`.
        """
        fields: Json = {"path": str(path.absolute()), "level": level, "block_size": block_size}
        report = self._save("suspend", progress, {**fields, "time": time, "data": data})
        self._await_hang_up()
        return report

    def _save(self, do: str, progress: Progress | None, fields: Json) -> Json:
        try:
            return self.request(do, timeout=None, progress=progress, **fields)
        except MemvmError:
            raise
        except BaseException:
            self.hang_up()
            raise

    def config(self) -> Config:
        """The guest's security settings, and what was changed."""
        return config_from_json(self.request("config"))

    def change_setting(self, name: str, value: str) -> Change:
        """Change a security setting, as it was launched to allow. Raises SettingRefused."""
        return record_from_json(Change, self.request("set", name=name, value=value))

    def attest(self, verifier: str, audience: str = "", kind: str = "", authority: str = "") -> Json:
        """Have the guest attested by a verifier at a URL; the fields of memvm.attest.rounds.Attested."""
        return self.request("attest", verifier=verifier, audience=audience, format=kind, authority=authority)

    def sample_working_set(self, pages: int = SAMPLE_PAGES, interval: float = SAMPLE_INTERVAL) -> None:
        """Have the working set estimated from now on, as Machine.sample_working_set does."""
        self.request("sample", pages=pages, interval=interval)

    def restore_report(self) -> RestoreReport:
        """How the guest's restore went until now. Raises GuestStateError if nobody noted it."""
        from memvm.recording.restored import RestoreReport  # few ask

        return record_from_json(RestoreReport, self.request("restore report"))

    def trace(self, **fields: Any) -> Iterator[TraceBatch]:
        """What a trace of the guest hears of, as it comes; the fields are those of the request (manager/tracing.py).

        Ends as the request says, with the guest, or when this connection is closed.
        """
        with _spoken_to(self.name):
            self._connection.settimeout(None)
            self._connection.sendall(encode({"do": "trace", **fields}))
            while "ok" not in (answer := self._next_answer()):
                if "error" in answer:
                    raise error_from_json(answer["error"])
                yield self._batch(answer)

    def _batch(self, answer: Json) -> TraceBatch:
        if "regions" in answer:
            from memvm.recording.format import FormatError, regions_from  # for traces alone

            try:
                return TraceBatch([], 0, regions_from(answer["regions"]))
            except FormatError as error:
                raise ControlError(f"the manager of guest {self.name!r}: {error}") from None
        events, dropped = answer.get("events"), answer.get("dropped")
        if not isinstance(events, list) or type(dropped) is not int:
            raise ControlError(f"the manager of guest {self.name!r} sent an answer that makes no sense")
        for event in events:
            if not isinstance(event, list) or [type(field) for field in event] != [int] * 5 or event[1] not in (1, 2):
                raise ControlError(f"the manager of guest {self.name!r} sent an event that makes no sense")
        return TraceBatch([TraceEvent(*event) for event in events], dropped)

    def request(
        self, do: str, *, timeout: float | None = TIMEOUT, progress: Progress | None = None, **fields: Any
    ) -> Json:
        """Any request: its answer, or the error that the manager reports.

        `timeout` is how many seconds the manager may say nothing; None waits for ever.
        """
        with _spoken_to(self.name):
            self._connection.settimeout(timeout)
            with suppress(BrokenPipeError, ConnectionResetError):
                # A manager that hangs up, because it refuses us, has said why before.
                self._connection.sendall(encode({"do": do, **fields}))
            while True:
                answer = self._next_answer()
                if "error" in answer:
                    raise error_from_json(answer["error"])
                if isinstance(result := answer.get("ok"), dict):
                    return result
                done_total = answer.get("progress")
                if not (isinstance(done_total, list) and [type(n) for n in done_total] == [int, int]):
                    raise ControlError(f"the manager of guest {self.name!r} sent an answer that makes no sense")
                if progress is not None:
                    progress(*done_total)

    def _next_answer(self) -> Json:
        line = self._lines.read()
        if line is None:
            raise GuestStateError(f"guest {self.name!r} ended before its manager answered")
        return decode(line)

    def hang_up(self) -> None:
        """Say that nothing more will come, and wait until what this connection began has ended: a save, a watch.

        Raises nothing: there may be an exception under way that says more, and a guest that has ended is all right too.
        """
        deadline = time.monotonic() + _GIVING_UP
        with suppress(OSError, ControlError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(_GIVING_UP)
            while time.monotonic() < deadline and self._lines.read() is not None:
                pass


def connect(name: str, timeout: float | None = TIMEOUT) -> Client:
    """A connection to the manager of a running guest. Raises NoSuchGuest and ControlError."""
    with RunDir() as directory:
        connection = directory.connect(name, timeout)
    return Client(connection, name)


def running() -> list[Entry]:
    """The guests that run now, by name; what dead managers left is removed on the way."""
    with RunDir() as directory:
        return directory.entries()


@contextmanager
def _spoken_to(name: str) -> Iterator[None]:
    """What can go wrong with a socket, as what it means."""
    try:
        yield
    except TimeoutError:
        raise ControlError(
            f"the manager of guest {name!r} does not answer", hint="`memvm ps` shows its process"
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        raise GuestStateError(f"guest {name!r} ended before its manager answered") from None
