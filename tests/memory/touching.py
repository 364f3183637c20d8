"""A machine with the guest of toucher.c in it: real faults, made one by one from here."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from memvm.machine.config import EngineChoice, ExitStatus, GuestConfig, RunOptions
from memvm.machine.layout import RAM_BASE
from memvm.machine.machine import Machine
from memvm.machine.streams import OpenFile, Stream
from memvm.memory.deferred import DeferredPages
from memvm.memory.pages import PageRun
from memvm.memory.protection import Prot
from memvm.memory.snapshot import Snapshot
from memvm.units import MIB, PAGE_SIZE
from tests.memory.sources import WORDS, FakeSource, page_of

AREA = 0x2000000
PAGES = 2048
FIRST = (AREA - RAM_BASE) // PAGE_SIZE
"""The number of the area's first page in guest RAM; commands count from 0 there."""
_COMMAND = struct.Struct("=4Q")
_ANSWER = struct.Struct("=3Q")


class Answer(NamedTuple):
    """What the guest says to a command."""

    first: int
    alike: int
    error: int


class GuestEnded(Exception):
    """The guest ended instead of answering."""


class Touching:
    """The guest, running; every method of the lower half has the guest do something and waits until it has.

    Pages are counted from the start of the area. `defer` and the like come before `start`.
    """

    def __init__(self, program: Path, engine: str, patience: float) -> None:
        config = GuestConfig(str(program), (str(program),), ram_size=64 * MIB)
        self._take(Machine.launch(config, RunOptions("touching", engine=EngineChoice(engine))), patience)

    @classmethod
    def again(cls, machine: Machine, patience: float) -> Touching:
        """One that was saved and brought back, to be started with `go_on`."""
        touching = cls.__new__(cls)
        touching._take(machine, patience)
        return touching

    def _take(self, machine: Machine, patience: float) -> None:
        self._patience = patience
        self.machine = machine
        self.ram, self.engine = self.machine.ram, self.machine.engine
        their_input, self._to_guest = os.pipe()
        self._from_guest, their_output = os.pipe()
        nothing = os.open(os.devnull, os.O_WRONLY)
        self._theirs = (their_input, their_output, nothing)
        files = self.machine.guest.files
        files.release()
        files.streams = [Stream(index, fd) for index, fd in enumerate(self._theirs)]
        files.table = {stream.index: OpenFile(stream) for stream in files.streams}

    def defer(self, source: FakeSource) -> DeferredPages:
        """Put a source behind the area; its page numbers are of guest RAM."""
        deferred = DeferredPages(self.ram, self.engine, source)
        deferred.begin(source.runs)
        return deferred

    def start(self) -> None:
        """Let the guest run, and wait until it has its area."""
        self.machine.start()
        assert not self._answer().error

    def go_on(self, page: int, value: int) -> None:
        """Let it run on from its checkpoint, and wait until it is done with the command that it was at, if any.

        The page must hold that value, and no other page: what the guest says of it is told from other answers by that.
        """
        self.machine.start()
        self.begin("r", page)
        while (answer := self.finish()).first != value:
            assert answer == Answer(0, 0, 0)

    def __enter__(self) -> Touching:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.machine.close()
        for fd in (*self._theirs, self._to_guest, self._from_guest):
            os.close(fd)

    def ended(self) -> ExitStatus:
        """How the guest ended; it has to, soon."""
        status = self.machine.wait(self._patience)
        assert status is not None, "the guest has not ended"
        return status

    def snapshot(self) -> Snapshot:
        """A snapshot, prepared."""
        snapshot = Snapshot(self.ram, self.engine)
        snapshot.prepare()
        return snapshot

    def instant(self, snapshot: Snapshot) -> list[PageRun]:
        """The snapshot's instant."""
        return self.machine.frozen(snapshot.instant)

    # What the guest does.

    def begin(self, what: str, page: int, count: int = 1, value: int = 0) -> None:
        """Give a command, and do not wait for the answer."""
        os.write(self._to_guest, _COMMAND.pack(ord(what), page, count, value))

    def finish(self) -> Answer:
        """Wait for the answer to a command. Raises GuestEnded."""
        answer = self._answer()
        assert not answer.error, "a system call of the guest's failed"
        # The guest goes on before everybody has been told of its last fault.
        self.wait_for(lambda: self._all_are_answered() or self.machine.wait(0) is not None)
        return answer

    def _all_are_answered(self) -> bool:
        return sum(self.engine.latencies.buckets) == self.engine.faults

    def answers_within(self, seconds: float) -> bool:
        """Whether an answer comes in this time."""
        return bool(select.select([self._from_guest], [], [], seconds)[0])

    def _answer(self) -> Answer:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            ending = self.machine.wait(0)
            if self.answers_within(0.01):
                return Answer(*_ANSWER.unpack(os.read(self._from_guest, _ANSWER.size)))
            if ending is not None:
                raise GuestEnded(ending)
        raise AssertionError("the guest has not answered")

    def read(self, page: int) -> int:
        """The page's one value; fails unless all words of it are alike."""
        self.begin("r", page)
        answer = self.finish()
        assert answer.alike == WORDS, f"page {page} is half {answer.first:#x}"
        return answer.first

    def read_word(self, page: int) -> int:
        """The page's first word; the others may be different."""
        self.begin("r", page)
        return self.finish().first

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that will, soon."""
        deadline = time.monotonic() + self._patience
        while not condition():
            assert time.monotonic() < deadline, "it has not come true"
            time.sleep(0.001)

    def write(self, page: int, value: int, count: int = 1) -> None:
        """Store a value in the first word of each page of a range."""
        self.begin("w", page, count, value)
        self.finish()

    def fill(self, page: int, value: int, count: int = 1) -> None:
        """Store a value in all words of a range of pages."""
        self.begin("f", page, count, value)
        self.finish()

    def madvise(self, page: int, count: int = 1) -> None:
        """MADV_DONTNEED."""
        self.begin("d", page, count)
        self.finish()

    def remap(self, page: int, count: int = 1) -> None:
        """munmap, and mmap again."""
        self.begin("u", page, count)
        self.finish()

    def mprotect(self, page: int, count: int, protection: Prot) -> None:
        """Change rights."""
        self.begin("p", page, count, protection)
        self.finish()

    def read_call(self, page: int, value: int) -> None:
        """Have a read(2) of the guest's fill the page: the manager writes to it."""
        self.begin("R", page, 1, PAGE_SIZE)
        os.write(self._to_guest, page_of(value))
        self.finish()

    def write_call(self, page: int) -> None:
        """Have a write(2) of the guest's take the page: the manager reads it."""
        self.begin("S", page, 1, PAGE_SIZE)
        self.finish()
