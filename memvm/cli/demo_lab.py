"""Those who take part in `memvm demo --sealed`: processes of memvm's own, on loopback, and one directory for all.

Everything is done by memvm's commands, as people would give them; what is printed behind a $ is what was done.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from memvm.errors import HostError
from memvm.manager.launch import manager_command

_PATIENCE = 120.0
"""Seconds in which a command has to end, and a guest to say something."""
_ENDING = 10.0
"""Seconds that a process has to end in when it is asked to."""
_WIDTH = 110
_QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000")
"""The passphrase is a file of random bytes, which nobody guesses, however quickly he can try."""
_VERIFIER = """\
[verifier]
audiences = ["broker", "keeper"]
roots = ["platform/root.pem"]
references = ["references.json"]
reference-keys = ["maker.key.pub"]
"""
_BROKER = """\
[broker]
identity = "broker"
verifier = "{verifier}"
verifier-keys = ["verifier/verifier.pub"]
[disks.{disk}]
programs = ["worker"]
"""

ENDED_BY = (signal.SIGTERM, signal.SIGHUP)

SEALED = ("--sealed", "--key-keeper", "keeper.pem.pub")
_LAUNCH = ("--ram", "64M", "--clear-env", "--locked")


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All of it."""
        return self.out + self.err


class Ending:
    """The end of this process by a signal: an exception, so that it first ends all those that it has started."""

    def __init__(self) -> None:
        self._is_postponed = False
        self._signal = 0

    def take(self, number: int, _frame: object = None) -> None:
        """What a signal does: its handler."""
        self._signal = self._signal or number
        if not self._is_postponed:
            self._end()

    def _end(self) -> None:
        for number in ENDED_BY:  # once is enough
            signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + self._signal)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Who is being started can be ended once he is known."""
        self._is_postponed = True
        try:
            yield
        finally:
            self._is_postponed = False
        if self._signal:
            self._end()


class DemoLab:
    """A directory, and what is done in it. Commands run there, and find there the platform and the guests."""

    def __init__(self, directory: Path, program: Path) -> None:
        self.directory = directory
        self._environment = {
            **os.environ,
            "MEMVM_PLATFORM_DIR": str(directory / "platform"),
            "MEMVM_RUNTIME_DIR": str(directory / "run"),
        }
        (directory / "worker").write_bytes(program.read_bytes())
        (directory / "worker").chmod(0o755)
        for name in ("secret.key", "new.key"):
            (directory / name).write_bytes(os.urandom(32))
        self.ending = Ending()
        self._shown: set[str] = set()
        self.disk = self.verifier = self.broker = self.keeper = self.broker_key = ""

    def memvm(self, *words: str, shown: bool = True) -> Ended:
        """A command, to its end. Raises HostError if it takes too long."""
        if shown:
            self.show(words)
        with self._process(words, subprocess.DEVNULL, subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                raise HostError(f"memvm {shlex.join(words)}: it took longer than {_PATIENCE:.0f} s") from None
        return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def do(self, *words: str, shown: bool = True) -> str:
        """A command that has to succeed; what it wrote. Raises HostError."""
        ended = self.memvm(*words, shown=shown)
        if ended.status != 0:
            raise HostError(f"memvm {shlex.join(words)}: {ended.said.strip()}")
        return ended.out.strip()

    def _shortened(self, text: str) -> str:
        """What all guests have in common is shown once."""
        for common in (shlex.join(self._asked), shlex.join(_LAUNCH), shlex.join(_QUICK)):
            if common in self._shown:
                text = text.replace(f" {common}", " …")
            elif common in text:
                self._shown.add(common)
        return text

    def show(self, words: Sequence[str]) -> None:
        """Print a command. Addresses and the broker's key, which differ from run to run, are shown by name."""
        text = self._shortened(shlex.join(["memvm", *words]))
        names = {"VERIFIER": self.verifier, "BROKER": self.broker, "KEEPER": self.keeper, "KEY": self.broker_key}
        for name, stands_for in names.items():
            text = text.replace(stands_for, name) if stands_for else text
        print(wrapped("   $ ", text, " \\"), flush=True)

    def set_up(self, text: bytes, right: Sequence[str] = SEALED) -> None:
        """Make everybody's keys, and a disk with this text, for the worker that is launched so. Raises HostError."""
        self.do("platform", "init", shown=False)
        self.do("keeper", "key", "keeper.pem", shown=False)
        self.do("reference", "key", "maker.key", shown=False)
        self.broker_key = self.do("broker", "key", "--state", "broker", shown=False)
        size = f"{-(-len(text) * 2 // (1 << 16)) * 64}K"
        self.do("disk", "create", "--integrity", "--size", size, "--key-file", "secret.key", *_QUICK, "data.img")
        self.write(text)
        self.disk = self.do("broker", "add", "--state", "broker", "--key-file", "secret.key", "--disk", "data.img")
        digest = self.do("measure", *self.launch(right))
        signed = self.do("reference", "sign", "--key", "maker.key", f"worker={digest}", shown=False)
        (self.directory / "references.json").write_text(signed)
        (self.directory / "verifier.toml").write_text(_VERIFIER)

    def write(self, text: bytes) -> None:
        """Have this be on the disk. Raises HostError."""
        (self.directory / "text").write_bytes(text)
        self.do("disk", "import", "--key-file", "secret.key", "data.img", "text")
        (self.directory / "text").unlink()

    def change_header(self, disk: str) -> None:
        """Give a disk another passphrase. Raises HostError."""
        self.do("disk", "rekey", *_QUICK, "--key-file", "secret.key", "--new-key-file", "new.key", disk)

    @contextmanager
    def served(self) -> Iterator[None]:
        """While it is entered, verifier, broker and key keeper answer. Raises HostError."""
        with ExitStack() as running:
            serve = ("serve", "--json", "--port", "0")
            self.verifier = running.enter_context(
                self._server("verifier", *serve, "--policy", "verifier.toml", "--state", "verifier")
            )
            policy = _BROKER.format(verifier=self.verifier, disk=self.disk)
            (self.directory / "broker.toml").write_text(policy)
            self.broker = running.enter_context(
                self._server("broker", *serve, "--policy", "broker.toml", "--state", "broker")
            )
            self.keeper = running.enter_context(
                self._server("keeper", *serve, "--key", "keeper.pem", "--verifier", self.verifier)
            )
            yield

    @contextmanager
    def _server(self, name: str, *words: str) -> Iterator[str]:
        with self.running(name, name, *words) as server:
            yield str(json.loads(server.line())["url"])

    @contextmanager
    def running(self, log: str, *words: str) -> Iterator[Running]:
        """A command that runs on; what it says on standard error goes to a file of that name, with .log."""
        path = self.directory / f"{log}.log"
        with path.open("wb") as file, self._process(words, subprocess.PIPE, file) as process:
            yield Running(process, path)

    @contextmanager
    def _process(self, words: Sequence[str], stdin: int, stderr: int | BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
        """A command, ended at the end if it has not ended."""
        process: subprocess.Popen[bytes] | None = None
        try:
            with self.ending.postponed():
                process = subprocess.Popen(
                    manager_command(words),
                    bufsize=0,
                    cwd=self.directory,
                    env=self._environment,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                )
            yield process
        finally:
            if process is not None:
                with process:
                    _end(process)

    def launch(self, sealing: Sequence[str]) -> tuple[str, ...]:
        """What says which guest it is."""
        return (*sealing, *_LAUNCH, "--", "./worker", self.broker_key)

    def given(self, disk: str = "data.img") -> tuple[str, ...]:
        """What a guest is given that is no part of it. It only reads its disk."""
        return ("--disk", disk, "--disk-read-only", *self._asked)

    @property
    def _asked(self) -> tuple[str, ...]:
        return ("--verifier", self.verifier, "--audience", "broker", "--broker", self.broker)

    def restoring(self, checkpoint: str) -> tuple[str, ...]:
        """How a guest is brought back."""
        keeper = ("--key-keeper", self.keeper, "--keeper-audience", "keeper")
        return ("restore", *keeper, *self.given(), checkpoint)


class Running(NamedTuple):
    """A command that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    def line(self) -> str:
        """The next line that it says. Raises HostError if there is none."""
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        found = bytearray()
        while not found.endswith(b"\n"):
            if not poll.poll(_PATIENCE * 1000):
                raise HostError(f"{self.log.stem} has said nothing for {_PATIENCE:.0f} s")
            received = self.process.stdout.read(1)
            if not received:
                raise HostError(f"{self.log.stem} ended before its time: {self.log.read_text(errors='replace')}")
            found += received
        return found.decode(errors="replace").strip()

    def ask(self) -> str:
        """What a worker answers to a line."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the next line tells
            self.process.stdin.write(b"\n")
        return self.line()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and what belongs to it, if it has not ended."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wrapped(indent: str, text: str, joint: str = "") -> str:
    """Text in lines that are not too long."""
    inside = " " * (len(indent) + (2 if joint else 0))
    lines = textwrap.wrap(
        text,
        _WIDTH - len(joint),
        initial_indent=indent,
        subsequent_indent=inside,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{joint}\n".join(lines)
