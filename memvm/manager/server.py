"""The control server: answers what clients ask of one guest, each connection in a thread of its own.

It serves from before the guest is loaded until after its end, so that a client is told "starting" or
"ended" and never left waiting. A checkpoint belongs to the client that asked for it: if that goes away,
or only says that it will send no more (shutdown(2)), the save is given up and the guest goes on.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from memvm.errors import ControlError, GuestStateError, HostError, MemvmError, SaveError, UsageError
from memvm.linux.own_threads import Thread
from memvm.machine.config import SAMPLE_INTERVAL, SAMPLE_PAGES, ExitStatus, GuestStatus, RunState
from memvm.manager.attesting import attest
from memvm.manager.configuration import change_setting, config
from memvm.manager.dirty import DirtySession
from memvm.manager.guest import ManagedGuest, Save, Suspend
from memvm.manager.protocol import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_LEVEL,
    DEFAULT_SUSPEND_TIME,
    MAX_TRANSFER,
    Json,
    LineReader,
    decode,
    encode,
    error_to_json,
    peer_of,
    record_to_json,
)
from memvm.manager.requests import integer_of, path_of, text_of
from memvm.manager.tracing import trace

MAX_CONNECTIONS = 64
_PROGRESS_INTERVAL = 0.05
"""Seconds between two progress messages."""
_LAST_WORDS = 5.0
"""Seconds that requests under way have to be answered in when the guest has ended."""
_SEND_TIMEOUT = struct.pack("ll", 10, 0)
"""struct timeval: after ten seconds a client that does not read its answer is given up (socket(7))."""


class ControlServer:
    """Serves one guest's control socket; start() it, attach() the guest, and finish() it."""

    def __init__(self, listener: socket.socket, name: str, program: str) -> None:
        self._listener = listener
        self._name = name
        self._program = program
        self._began = time.monotonic()
        self._guest: ManagedGuest | None = None
        self._savers: dict[str, Callable[..., Any]] = {}
        self._ending: ExitStatus | None = None
        # Readable from the guest's end on, for every thread that waits with poll.
        self._ended_event = os.eventfd(0, os.EFD_CLOEXEC)
        self._saving = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._watching: dict[socket.socket, DirtySession] = {}
        """Touched by each connection's own thread only."""
        self._busy = 0
        self._changed = threading.Condition()
        self._acceptor = Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Accept connections from now on."""
        self._acceptor.start()

    def attach(self, guest: ManagedGuest, save: Save, suspend: Suspend) -> None:
        """The guest is loaded: pass requests on to it."""
        self._savers = {"checkpoint": save, "suspend": suspend}
        self._guest = guest

    def finish(self, ending: ExitStatus) -> None:
        """The guest has ended: answer what is under way, and nothing more. Connections stay open."""
        self._ending = ending
        os.eventfd_write(self._ended_event, 1)
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._acceptor.join()
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, _LAST_WORDS)

    def close(self) -> None:
        """End all connections; clients take that as the sign that the manager is gone."""
        with self._changed:
            connections = dict(self._connections)
        for connection in connections:
            _hang_up(connection)
        for thread in connections.values():
            thread.join(_LAST_WORDS)
        if not any(thread.is_alive() for thread in connections.values()):
            os.close(self._ended_event)

    def _accept(self) -> None:
        while self._ending is None:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                # Out of descriptors, say: the connection stays in the backlog until there are some.
                select.select([self._ended_event], [], [], 0.1)
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
            thread = Thread(target=self._serve, args=(connection,), name="control connection", daemon=True)
            with self._changed:
                full = len(self._connections) >= MAX_CONNECTIONS
                if not full:
                    self._connections[connection] = thread
            try:
                if full:
                    raise GuestStateError(f"guest {self._name!r} has too many control connections")
                thread.start()
            except MemvmError as error:
                self._forget(connection)
                _refuse(connection, error)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        """Answer request after request, until the client goes or says something that is no message."""
        lines = LineReader(connection)
        try:
            if peer_of(connection).uid not in (os.geteuid(), 0):
                raise ControlError(f"guest {self._name!r} belongs to another user")
            while (line := lines.read()) is not None:
                with self._changed:
                    self._busy += 1
                try:
                    connection.sendall(encode(self._reply(connection, line)))
                finally:
                    with self._changed:
                        self._busy -= 1
                        self._changed.notify_all()
        except ControlError as error:
            # Where the next message would begin is unknown now, so this is the last answer.
            _refuse(connection, error)
        except OSError:
            return  # the client has gone, and nobody is left to tell
        finally:
            if (session := self._watching.pop(connection, None)) is not None:
                session.close()
            self._forget(connection)
            connection.close()

    def _forget(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.pop(connection, None)

    def _reply(self, connection: socket.socket, line: bytes) -> Json:
        request = decode(line)
        try:
            return {"ok": self._answer(connection, request)}
        except MemvmError as error:
            return {"error": error_to_json(error)}
        except OSError as error:
            return {"error": error_to_json(HostError(f"guest {self._name!r}: {error}"))}
        except Exception as error:  # noqa: BLE001 - whoever asked hears of it, and the guest goes on
            bug = MemvmError(
                f"guest {self._name!r}: internal error: {type(error).__name__}: {error}",
                hint="report it: this is a bug in memvm",
            )
            return {"error": error_to_json(bug)}

    def _answer(self, connection: socket.socket, request: Json) -> Json:
        """Carry a request out."""
        do = request.get("do")
        if isinstance(do, str) and self._guest is not None:
            self._guest.settings.require(do)
        if do == "status":
            return record_to_json(self._status())
        if do == "wait":
            return record_to_json(self._wait(connection))
        if do == "kill":
            return record_to_json(self._kill(connection, text_of(request, "reason", "killed on request")))
        if do == "checkpoint":
            return self._checkpoint(connection, request)
        if do == "suspend":
            return self._suspend(connection, request)
        if do == "dirty":
            return self._dirty(connection, request)
        if do == "trace":
            return trace(self._running(), self._name, connection, self._ended_event, request)
        simple: dict[object, Callable[[ManagedGuest, Json], Json]] = {
            "pause": _pause,
            "resume": _resume,
            "registers": _registers,
            "read": _read,
            "write": _write,
            "sample": _sample,
            "files": _files,
            "restore report": _restore_report,
            "config": config,
            "set": change_setting,
            "attest": attest,
        }
        if not isinstance(do, str) or do not in simple:
            raise UsageError(f"a manager cannot do {do!r}")
        return simple[do](self._running(), request)

    def _running(self) -> ManagedGuest:
        if self._ending is not None:
            raise GuestStateError(f"guest {self._name!r} has ended")
        if self._guest is None:
            raise GuestStateError(f"guest {self._name!r} is still starting", hint="try again in a moment")
        return self._guest

    def _status(self) -> GuestStatus:
        if self._ending is None and self._guest is not None:
            return self._guest.status()
        return GuestStatus(
            name=self._name,
            program=self._program,
            state=RunState.STARTING if self._ending is None else RunState.ENDED,
            manager_pid=os.getpid(),
            guest_pid=0,
            engine="",
            ram_size=0,
            ram_touched=0,
            ram_deferred=0,
            cpu_time=0.0,
            uptime=time.monotonic() - self._began,
            hypercalls=0,
            unknown_calls={},
            faults=0,
        )

    def _wait(self, connection: socket.socket) -> ExitStatus:
        poll = select.poll()
        poll.register(self._ended_event, select.POLLIN)
        poll.register(connection, select.POLLRDHUP)
        poll.poll()
        if self._ending is None:
            raise ControlError("the client went away")  # ends this thread; nobody reads it
        return self._ending

    def _kill(self, connection: socket.socket, reason: str) -> ExitStatus:
        if self._ending is None and self._guest is None:
            # Nothing runs yet that could be killed; the thread that loads the guest takes this as its end.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._running().kill(reason)
        return self._wait(connection)

    def _checkpoint(self, connection: socket.socket, request: Json) -> Json:
        path = path_of(request, "path")
        parent = path_of(request, "parent") if "parent" in request else None
        live = request.get("live", False)
        if type(live) is not bool:
            raise UsageError("a checkpoint is live or not: true or false")
        level = integer_of(request, "level", DEFAULT_LEVEL)
        block_size = integer_of(request, "block_size", DEFAULT_BLOCK_SIZE)
        options = {"live": live, "parent": parent, "level": level, "block_size": block_size}
        return self._save("checkpoint", connection, path, **options)

    def _suspend(self, connection: socket.socket, request: Json) -> Json:
        path = path_of(request, "path")
        level = integer_of(request, "level", DEFAULT_LEVEL)
        block_size = integer_of(request, "block_size", DEFAULT_BLOCK_SIZE)
        seconds = request.get("time", DEFAULT_SUSPEND_TIME)
        if type(seconds) not in (int, float):
            raise UsageError(f"suspend: time has to be a number of seconds, not {seconds!r:.80}")
        data = None if request.get("data") is None else integer_of(request, "data")
        return self._save("suspend", connection, path, level=level, block_size=block_size, time=seconds, data=data)

    def _save(self, how: str, connection: socket.socket, path: Path, **options: Any) -> Json:
        """One save at a time, on behalf of who asked for it."""
        self._running()
        if not self._saving.acquire(blocking=False):
            raise GuestStateError(
                f"guest {self._name!r} is being saved already",
                hint="wait for the other checkpoint to be done",
            )
        try:
            settings = self._running().settings
            sender = _ProgressSender(connection, self._name, lambda: self._ending is not None)

            def progress(done: int, total: int) -> None:
                settings.require(how)  # it may have been allowed when the save began, and is no more
                sender(done, total)

            return record_to_json(self._savers[how](path, progress=progress, **options))
        finally:
            self._saving.release()

    def _dirty(self, connection: socket.socket, request: Json) -> Json:
        guest = self._running()
        if connection not in self._watching:
            self._watching[connection] = DirtySession(guest.watch_writes())
        return self._watching[connection].answer(request)


class _ProgressSender:
    """Tells the client how far a save is, without ever waiting for it; ends the save if it has gone."""

    def __init__(self, connection: socket.socket, name: str, has_ended: Callable[[], bool]) -> None:
        self._connection = connection
        self._name = name
        self._has_ended = has_ended
        self._next = 0.0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLRDHUP | select.POLLOUT)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PROGRESS_INTERVAL
        if self._has_ended():
            raise GuestStateError(f"guest {self._name!r} ended while it was being saved")
        events = dict(self._poll.poll(0)).get(self._connection.fileno(), 0)
        if events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
            raise SaveError(f"the checkpoint of guest {self._name!r} was given up by who asked for it")
        # POLLOUT means that most of the socket's buffer is free (unix_writable in net/unix/af_unix.c), so
        # this short line goes whole. A client that does not read misses some progress, and nothing else.
        if events & select.POLLOUT:
            try:
                self._connection.sendall(encode({"progress": [done, total]}))
            except OSError as error:
                raise SaveError(f"the checkpoint of guest {self._name!r} was given up by who asked for it") from error


def _pause(guest: ManagedGuest, _request: Json) -> Json:
    guest.pause()
    return {}


def _resume(guest: ManagedGuest, request: Json) -> Json:
    calls = integer_of(request, "calls", 0)
    if calls < 0:
        raise UsageError(f"a guest cannot be paused after {calls} hypercalls", hint="0 stands for never")
    guest.resume(calls)
    return {}


def _registers(guest: ManagedGuest, _request: Json) -> Json:
    return guest.registers()


def _read(guest: ManagedGuest, request: Json) -> Json:
    address, size = integer_of(request, "address"), integer_of(request, "size")
    if not 0 <= size <= MAX_TRANSFER:
        raise UsageError(f"a read of {size} bytes", hint=f"ask for 0 to {MAX_TRANSFER} bytes at a time")
    return {"data": base64.b64encode(guest.read_memory(address, size)).decode("ascii")}


def _write(guest: ManagedGuest, request: Json) -> Json:
    address = integer_of(request, "address")
    try:
        data = base64.b64decode(text_of(request, "data"), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the data to write is not base64") from None
    guest.write_memory(address, data)
    return {}


def _sample(guest: ManagedGuest, request: Json) -> Json:
    interval = request.get("interval", SAMPLE_INTERVAL)
    if type(interval) not in (int, float):
        raise UsageError(f"sample: interval has to be a number of seconds, not {interval!r:.80}")
    guest.sample_working_set(integer_of(request, "pages", SAMPLE_PAGES), float(interval))
    return {}


def _files(guest: ManagedGuest, request: Json) -> Json:
    """They go to a new file, which the client names: they can be far more than a line may have."""
    path = path_of(request, "path")
    fields = guest.files_state().to_json()
    with path.open("x") as file:
        json.dump(fields, file)
    return {}


def _restore_report(guest: ManagedGuest, _request: Json) -> Json:
    report = guest.restore_report
    if report is None:
        raise GuestStateError("nobody noted how this guest was restored, if it was", hint="restore it with --report")
    return record_to_json(report())


def _refuse(connection: socket.socket, error: MemvmError) -> None:
    """One last answer; a client that has gone does without."""
    with suppress(OSError):
        connection.sendall(encode({"error": error_to_json(error)}))


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # not connected any more is what was wanted
        connection.shutdown(socket.SHUT_RDWR)
