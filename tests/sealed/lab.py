"""A platform, a verifier, a key keeper and sealed guests for tests, all of them processes of memvm's own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import memvm
from memvm.managed import ManagedProcess
from memvm.manager.launch import News, manager_command
from tests.support import MemvmCli

POLICY = """\
[verifier]
audiences = ["lab", "keeper"]
roots = ["platform/root.pem"]
references = ["references.json"]
reference-keys = ["maker.key.pub"]

[policy]
id = "lab"
"""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "LANG": "C", "HOME": "/"}
_ENVIRONMENT = ("--clear-env", *(f"--env={name}={value}" for name, value in ENVIRONMENT.items()))


class SealedLab:
    """A directory with a platform and a key keeper, whose verifier knows one program as a sealed guest."""

    def __init__(
        self,
        directory: Path,
        cli: MemvmCli,
        program: Path,
        arguments: Sequence[str] = (),
        ram: str = "64M",
        policy: str = "",
        platform: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> None:
        """`policy` is what its table [policy] has beside the id; the platform and the guest get these options."""
        self.directory, self.cli = directory, cli
        self.environment = {"MEMVM_PLATFORM_DIR": str(directory / "platform")}
        self.run("platform", "init", *platform)
        self.run("keeper", "key", directory / "keeper.pem")
        self.run("reference", "key", directory / "maker.key")
        self.words: tuple[str, ...] = (
            *_ENVIRONMENT,
            f"--ram={ram}",
            "--sealed",
            f"--key-keeper={directory / 'keeper.pem.pub'}",
            *(f"--setting={setting}" for setting in settings),
        )
        self.command = (str(program), *arguments)
        digest = self.run("measure", *self.words, "--", *self.command).strip()
        signed = self.run("reference", "sign", "--key", directory / "maker.key", f"guest={digest}")
        (directory / "references.json").write_text(signed)
        (directory / "policy.toml").write_text(POLICY + policy)
        self.verifier = self.keeper = ""

    def run(self, *words: str | Path) -> str:
        """A command on this platform, which has to succeed; what it wrote."""
        return self.cli(*words, code=0, env=self.environment).text

    @contextmanager
    def served(self) -> Iterator[SealedLab]:
        """While it is entered, verifier and key keeper answer."""
        with ExitStack() as running:
            policy, state = self.directory / "policy.toml", self.directory / "state"
            serve: tuple[str | Path, ...] = (
                "verifier",
                "serve",
                "--json",
                "--policy",
                policy,
                "--state",
                state,
                "--port",
                "0",
            )
            self.verifier = url_of(running.enter_context(self.cli.start(*serve, env=self.environment)))
            key = self.directory / "keeper.pem"
            serve = ("keeper", "serve", "--json", "--key", key, "--verifier", self.verifier, "--port", "0")
            self.keeper = url_of(running.enter_context(self.cli.start(*serve, env=self.environment)))
            yield self

    @contextmanager
    def launched(self, *options: str | Path, cwd: Path | None = None) -> Iterator[memvm.Guest]:
        """The guest, running; its standard input and output are pipes."""
        with guest_of(self.environment, "run", *self.words, *options, "--", *self.command, cwd=cwd) as guest:
            yield guest

    @contextmanager
    def restored(self, checkpoint: Path, *options: str) -> Iterator[memvm.Guest]:
        """The guest from a checkpoint."""
        with guest_of(self.environment, "restore", *self.restoring(checkpoint, *options)) as guest:
            yield guest

    def restoring(self, checkpoint: Path, *options: str) -> tuple[str | Path, ...]:
        """The words for that."""
        asked = (f"--verifier={self.verifier}", "--audience=keeper", f"--key-keeper={self.keeper}")
        return (*asked, *options, checkpoint)


@contextmanager
def guest_of(
    environment: Mapping[str, str], command: str, *words: str | Path, cwd: Path | None = None
) -> Iterator[memvm.Guest]:
    """A guest whose manager is `memvm COMMAND WORDS`, with pipes; ended at the end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(
        manager_command([command, f"--ready-fd={writing}", *map(str, words)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[writing],
        cwd=cwd,
        env={**os.environ, **environment},
    )
    os.close(writing)
    news = News(reading)
    try:
        name, _ = news.read_start()
    except BaseException:
        news.close()
        process.kill()
        process.communicate()
        raise
    with memvm.Guest.adopted(name, ManagedProcess(process, news, (process.stdin, process.stdout, None))) as guest:
        yield guest


def ask(guest: memvm.Guest) -> str:
    """What the program says to a line."""
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(b"\n")
    guest.stdin.flush()
    return guest.stdout.readline().decode()


def ready(guest: memvm.Guest) -> memvm.Guest:
    """The guest, once its secret is in its memory."""
    assert guest.stdout is not None
    assert guest.stdout.readline() == b"ready\n"
    return guest


def url_of(server: subprocess.Popen[bytes]) -> str:
    """Where a service is that was started with --json."""
    assert server.stdout is not None
    return str(json.loads(server.stdout.readline())["url"])
