"""The manager's process of a guest that a Python program has started: its start, its streams, its end."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

from memvm.errors import HostError, MemvmError
from memvm.linux.own_threads import too_many
from memvm.machine.config import ExitStatus
from memvm.manager.launch import News, manager_command
from memvm.manager.protocol import error_from_json, record_from_json

Stream = int | IO[bytes] | None
"""As for subprocess.Popen: PIPE, DEVNULL, a descriptor, a file, or None to share this process's stream."""


class Process(Protocol):
    """A process, as subprocess.Popen has it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def kill(self) -> None: ...


class ManagedProcess:
    """The manager of one guest, which is its child. Methods may be called from several threads."""

    def __init__(self, process: Process, news: News, streams: Sequence[IO[bytes] | None]) -> None:
        """Takes over a process that somebody has started, what it tells, and the other ends of its streams."""
        self.process = process
        self._news = news
        self.streams = streams
        self.ending: ExitStatus | None = None
        """How the guest ended, once `wait` knows."""
        self._waiting = threading.Lock()

    @classmethod
    def start(
        cls, command: Sequence[str], operands: Sequence[str], env: Mapping[str, str] | None, streams: Sequence[Stream]
    ) -> ManagedProcess:
        """Run a command of memvm's that starts a guest; `env` is the guest's environment. Raises HostError, OSError."""
        import subprocess

        reading, writing = os.pipe2(os.O_CLOEXEC)
        passed = [writing]
        arguments = [*command, f"--ready-fd={writing}"]
        try:
            if env is not None:
                passed.append(_environment_file(env))
                arguments += ["--clear-env", f"--env-fd={passed[1]}"]
            stdin, stdout, stderr = streams
            process = subprocess.Popen(
                manager_command([*arguments, *operands]), stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=passed
            )
        except BlockingIOError as error:
            os.close(reading)
            raise too_many("the guest's manager") from error
        except BaseException:
            os.close(reading)
            raise
        finally:
            for fd in passed:
                os.close(fd)
        return cls(process, News(reading), (process.stdin, process.stdout, process.stderr))

    def await_guest(self) -> str:
        """Wait until the guest runs; its name. Raises what kept it from running, and everything is released then."""
        try:
            return self._read_start()
        except BaseException:
            self.process.kill()
            self._reap()
            self.close_streams()
            raise

    def _read_start(self) -> str:
        try:
            name, _pid = self._news.read_start()
        except EOFError:
            raise HostError(
                f"the manager ended with status {self.process.wait()} before the guest ran",
                hint="its standard error says why",
            ) from None
        except MemvmError:
            self.process.send_signal(signal.SIGTERM)  # it is ending by itself, unless it talks nonsense
            self.process.wait()
            raise
        return name

    def wait(self, timeout: float | None) -> ExitStatus:
        """Wait for the guest's end. Raises TimeoutError after `timeout` seconds, and what made the manager fail."""
        if not self._waiting.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"the guest has not ended within {timeout} s")
        try:
            return self._wait(timeout)
        finally:
            self._waiting.release()

    def _wait(self, timeout: float | None) -> ExitStatus:
        if self.ending is None:
            news = self._news.read(timeout)
            self._reap()
            if news is None:
                code = self.process.returncode
                self.ending = ExitStatus(
                    128 - code if code < 0 else code, reason="the manager died, and the guest with it"
                )
            elif "error" in news:
                error = error_from_json(news["error"])
                self.ending = ExitStatus(error.exit_code, reason=str(error))
                raise error
            else:
                self.ending = record_from_json(ExitStatus, news.get("ended"))
        return self.ending

    def _reap(self) -> None:
        self.process.wait()
        self._news.close()

    def close_streams(self) -> None:
        """Close our ends of its streams; idempotent."""
        for stream in self.streams:
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # input that the guest will never read; closed all the same


def _environment_file(env: Mapping[str, str]) -> int:
    """A memory file with the guest's environment: other users can see a command line, and not this."""
    fd = os.memfd_create("environment", os.MFD_CLOEXEC)
    with open(fd, "w", closefd=False) as file:
        json.dump(dict(env), file)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
