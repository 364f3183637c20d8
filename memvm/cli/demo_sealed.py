"""What happens in `memvm demo --sealed`: the right worker, all kinds of wrong ones, a save and a restore."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from memvm.attest.relay import HttpRelay
from memvm.cli.demo_lab import ENDED_BY, SEALED, DemoLab, Ended, wrapped
from memvm.errors import AttestationError, ImageError, MemvmError

_LINE = b"what nobody but the worker may read\n"
_LINES = 3000
_SAYS = b" words in "
"""What is in the worker's image, and can be changed there."""
_LONGEST_PARENT = 40
"""Characters: addresses of sockets lie in the directory, and have to be short (unix(7))."""


def show(worker: Path) -> int:
    """Play it; 0 if everybody who should was given the secret, and nobody else was. Raises MemvmError."""
    if _SAYS not in worker.read_bytes():
        raise ImageError(f"{worker}: this is not the worker", hint="it is built from guests/worker")
    parent = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="memvm-demo-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"
    ) as folder:
        lab = DemoLab(Path(folder), worker)
        for number in ENDED_BY:
            signal.signal(number, lab.ending.take)
        story = Story(lab)
        story.play()
    return story.judge()


class Story:
    """What happens, and what should have."""

    def __init__(self, lab: DemoLab) -> None:
        self._lab = lab
        self._wrong: list[str] = []
        self._text = _LINE * _LINES

    def play(self) -> None:
        """All of it. Raises MemvmError."""
        lab = self._lab
        print(
            "1. A secret text comes onto an encrypted disk, and its key to a broker; the right worker is measured",
            flush=True,
        )
        lab.set_up(self._text)
        print("   Somebody keeps a copy of the disk, and a line is added to the text", flush=True)
        self._copy_disk("old.img")
        self._text += _LINE
        lab.write(self._text)
        with lab.served():
            print(f"   VERIFIER is {lab.verifier}, BROKER {lab.broker}, KEEPER {lab.keeper}", flush=True)
            print("\n2. The right worker, sealed, is attested, gets the key, and counts", flush=True)
            command = ("run", "--name", "right", *lab.given(), *lab.launch(SEALED))
            lab.show(command)
            with lab.running("right", *command) as worker:
                self.expect_line(worker.line)
                print("\n3. What is not what was measured gets nothing", flush=True)
                self._changed_image()
                self._changed_settings()
                self._stale_token()
                self._changed_header()
                self._rolled_back()
                print("\n4. The right worker is saved while it runs, encrypted, and ended", flush=True)
                lab.do("checkpoint", "--live", "right", "right.ckpt")
                self.expect_line(worker.ask)
                lab.do("kill", "right")
            print(
                "\n5. Its checkpoint's key goes to an attested platform; it is attested again, and goes on", flush=True
            )
            command = lab.restoring("right.ckpt")
            lab.show(command)
            with lab.running("restored", *command) as worker:
                self.expect_line(worker.ask)
                self._second()
                self.expect_line(worker.ask)

    def _changed_image(self) -> None:
        lab = self._lab
        program = lab.directory / "worker"
        right = program.read_bytes()
        changed = bytearray(right)
        changed[changed.index(_SAYS)] ^= 1
        self._begin("a changed image: one bit of the program")
        program.write_bytes(changed)
        try:
            ended = lab.memvm("run", *lab.given(), *lab.launch(SEALED))
        finally:
            program.write_bytes(right)
        self.expect_refusal(ended, "is of no known program")

    def _changed_settings(self) -> None:
        lab = self._lab
        self._begin("changed settings: the same program, not sealed, with debug on")
        ended = lab.memvm("run", *lab.given(), *lab.launch(("--setting", "debug=on:refuse")))
        self.expect_refusal(ended, "debug=on at launch")

    def _changed_header(self) -> None:
        lab = self._lab
        self._begin("another disk header: a copy of the disk that was given another passphrase")
        self._copy_disk("header.img")
        lab.change_header("header.img")
        ended = lab.memvm("run", *lab.given("header.img"), *lab.launch(SEALED))
        self.expect_refusal(ended, "another nonce, broker, disk, header")

    def _rolled_back(self) -> None:
        lab = self._lab
        self._begin("a disk that was rolled back: the copy of before")
        ended = lab.memvm("run", *lab.given("old.img"), *lab.launch(SEALED))
        self.expect_refusal(ended, "not the one that the platform saw last")

    def _copy_disk(self, name: str) -> None:
        for suffix in ("", ".tags"):
            shutil.copy(self._lab.directory / f"data.img{suffix}", self._lab.directory / f"{name}{suffix}")

    def _stale_token(self) -> None:
        """What a manager could do that keeps what it carries."""
        lab = self._lab
        self._begin(
            "a stale token: a manager has kept that of the right worker, and opens another exchange with the broker"
        )
        lab.do("attest", "right", "--verifier", lab.verifier, "--audience", "broker", "--out", "right.jwt")
        token, relay = (lab.directory / "right.jwt").read_bytes().strip(), HttpRelay(lab.broker)
        nonce, _ = relay.challenge(lab.disk)
        try:
            relay.key(lab.disk, nonce, token)
        except AttestationError as error:
            ended = Ended(1, "", f"{error.message}\n")
        else:
            ended = Ended(0, "the broker gave the key\n", "")
        self.expect_refusal(ended, "the token is not of this exchange")

    def _second(self) -> None:
        lab = self._lab
        self._begin("a second guest from the same checkpoint")
        self.expect_refusal(lab.memvm(*lab.restoring("right.ckpt")), "contraindicated")

    def _begin(self, title: str) -> None:
        print(f"   - {title}", flush=True)

    @property
    def _counted(self) -> str:
        return f"{len(self._text.split())} words in {len(self._text)} bytes"

    def expect_line(self, say: Callable[[], str]) -> None:
        """The right worker says what it counted."""
        try:
            self.expect_count(Ended(0, say(), ""))
        except MemvmError as error:
            self.expect_count(Ended(1, "", error.message))

    def expect_count(self, ended: Ended) -> None:
        """This is what the right worker says."""
        self._tell(ended)
        if (ended.status, ended.out.strip()) != (0, self._counted):
            self._fail(f"the right worker should have said: {self._counted}")

    def expect_refusal(self, ended: Ended, reason: str) -> None:
        """This is what is said where nobody is given anything, and among it is the reason."""
        self._tell(ended)
        if ended.status == 0 or reason not in ended.said or self._counted in ended.said:
            self._fail(f"this should have been refused, because: {reason}")

    def _tell(self, ended: Ended) -> None:
        for line in ended.said.splitlines():
            print(wrapped("     ", line), flush=True)

    def _fail(self, what: str) -> None:
        print(f"     WRONG: {what}")
        self._wrong.append(what)

    def judge(self) -> int:
        """Say how it went, in a word; the exit status."""
        if self._wrong:
            print(f"\nWRONG: {len(self._wrong)} of these were not as they should have been")
            return 1
        print(
            "\nRight: the worker that was measured got the key each time that it proved what it is. Nothing else did."
        )
        return 0
