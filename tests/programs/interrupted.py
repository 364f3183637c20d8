"""Runs a program as a guest, saves it in the middle, kills it, and lets a restore finish the work.

Standard input and output are regular files. The checkpoint remembers how far the guest was in each at its instant: the
output is cut there, so that what the guest printed between instant and death does not count twice, and the restored
guest reads on where it was. The sum has to be what an undisturbed run prints.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import IO, Any, NamedTuple

import memvm
from memvm.checkpoint.file_reader import CheckpointFile
from memvm.checkpoint.hint_file import hint_path
from memvm.errors import GuestStateError
from memvm.machine.config import RunState
from memvm.machine.state import GuestState
from tests.checkpoint.lives import SCALE

_FIRST_CALLS = 64
"""After how many hypercalls a guest is saved that was too quick to be saved by the clock."""
_WINDOW = 0.05
"""Seconds in which the first of two restores notes what the second one is to bring."""
PATIENCE = 60 * SCALE

SAVES = ("live", "stopped", "suspend", "incremental-live", "incremental-stopped")
"""How a guest is saved; an incremental save is on top of a live one in half the time."""
POLICIES = ("demand", "sequential", "active", "recorded", "eager")
ENGINES = ("userfaultfd", "mprotect")


@dataclass(frozen=True)
class Manner:
    """How a guest is saved and brought back."""

    save: str
    policy: str
    engine: str

    def __str__(self) -> str:
        return f"{self.save}-{self.policy}-{self.engine}"


MANNERS = [Manner(*each) for each in product(SAVES, POLICIES, ENGINES)]
_DECK = random.Random("manners").sample(MANNERS, len(MANNERS))


def dealt(first: int, count: int) -> list[Manner]:
    """So many manners off a shuffled deck, which begins again at its end: who asks for all in turn has all."""
    return [_DECK[number % len(_DECK)] for number in range(first, first + count)]


@dataclass(frozen=True)
class Job:
    """A program with its arguments and its input."""

    argv: tuple[str, ...]
    stdin: Path
    ram: str = "256M"
    cwd: str = ""
    ro: tuple[str, ...] = ()
    """Directories of the host's that it may read."""
    rw: tuple[str, ...] = ()
    """Those that it may change what it sees of."""

    def start(self, stdin: IO[bytes], stdout: IO[bytes], **options: Any) -> memvm.Guest:
        """Run it as a guest."""
        what: dict[str, Any] = {"ram": self.ram, "ro": self.ro, "rw": self.rw, "cwd": self.cwd, "env": {}}
        return memvm.Guest(list(self.argv), stdin=stdin, stdout=stdout, **what, **options)

    def native(self) -> bytes:
        """What it prints when it runs by itself; it does so once."""
        return _native(self)


@cache
def _native(job: Job) -> bytes:
    with job.stdin.open("rb") as given:
        return subprocess.run(job.argv, stdin=given, stdout=subprocess.PIPE, check=True, env={}).stdout


class Moment(NamedTuple):
    """When a guest is saved: after some time, or where it stands when it has made so many hypercalls."""

    seconds: float = 0.0
    calls: int = 0

    def and_sooner(self) -> Iterator[Moment]:
        """This one and, for a guest that has ended by then, others: the last comes in time for any guest."""
        for share in (1, 2, 4) if self.seconds else ():
            yield Moment(self.seconds / share)
        calls = self.calls or _FIRST_CALLS
        while calls:
            yield Moment(calls=calls)
            calls //= 2


def finish_after_save(job: Job, moment: Moment, manner: Manner, folder: Path) -> bytes:
    """The whole output of a run that was saved at that moment, or sooner if it had ended by then."""
    path, output = folder / "middle.ckpt", folder / "output"
    hint_path(path).unlink(missing_ok=True)
    if not any(_run_and_save(job, sooner, manner, path, output) for sooner in moment.and_sooner()):
        raise AssertionError(f"{job.argv[0]} was never caught running")
    written = output.stat().st_size
    cut_output(output, path)
    assert manner.save != "suspend" or output.stat().st_size == written, "a suspended guest wrote nothing more"
    if manner.policy == "recorded":
        with start_restored(job, manner, path, output, record=True, window=_WINDOW) as guest:
            _await_hints(guest, path)
        cut_output(output, path)
    # What only demand brings comes from the file as long as the guest runs.
    with start_restored(job, manner, path, output, background=manner.policy != "demand") as guest:
        ending = guest.wait(PATIENCE)
    assert ending.code == 0, ending
    return output.read_bytes()


def _run_and_save(job: Job, moment: Moment, manner: Manner, path: Path, output: Path) -> bool:
    """Whether the guest, and a save of it, came that far."""
    with job.stdin.open("rb") as given, output.open("wb") as taken:
        how, _, live = manner.save.rpartition("-")
        first = Moment(moment.seconds / 2, (moment.calls + 1) // 2) if how else moment
        guest = job.start(given, taken, engine=manner.engine, pause_after_calls=first.calls)
        with guest:
            try:
                await_moment(guest, first)
                if manner.save == "suspend":
                    guest.suspend(path)
                    return True
                parent = path.with_name("before.ckpt") if how else None
                if parent is not None:
                    guest.checkpoint(parent)
                    rest = Moment(moment.seconds / 2, moment.calls - first.calls)
                    if rest.calls:
                        guest.resume(rest.calls)
                    await_moment(guest, rest)
                going_on = GoingOn(guest, moment.calls and 1 + moment.calls // 16)
                guest.checkpoint(path, live=live == "live", parent=parent, progress=going_on)
                guest.kill()  # many handle the signal that would end them, and cannot while they stand still
            except GuestStateError:  # it has ended
                return False
            return True


def await_moment(guest: memvm.Guest, moment: Moment) -> None:
    """Wait for this moment in the life of a guest that was told to pause then. Raises GuestStateError if it ended."""
    if moment.seconds:
        if not _let_run(guest, moment.seconds):
            raise GuestStateError("it has ended")
        return
    deadline = time.monotonic() + PATIENCE
    while moment.calls and guest.status().state is not RunState.PAUSED:
        assert time.monotonic() < deadline, f"{guest} has not made {moment.calls} hypercalls"
        _let_run(guest, 0.002)


class GoingOn:
    """Lets a guest that stands still for its save go on for a while when the save has its instant, which is before it
    first tells of its progress: the guest then changes memory that is yet to be saved, and does not end."""

    def __init__(self, guest: memvm.Guest, calls: int) -> None:
        """Let it make so many calls; with none, it does not stand still, or shall not go on."""
        self._guest, self._calls = guest, calls

    def __call__(self, _done: int, _total: int) -> None:
        if self._calls:
            self._guest.resume(self._calls)
            self._calls = 0


def _let_run(guest: memvm.Guest, seconds: float) -> bool:
    """Whether it still runs after some time."""
    try:
        guest.wait(seconds)
    except TimeoutError:
        return True
    return False


def _await_hints(guest: memvm.Guest, path: Path) -> None:
    """They are written at the end of the window, or of the guest."""
    deadline = time.monotonic() + PATIENCE
    while not hint_path(path).exists():
        if not _let_run(guest, 0.005):
            break
        assert time.monotonic() < deadline, "nothing was noted for the next restore"
    assert hint_path(path).exists()


@contextmanager
def start_restored(job: Job, manner: Manner, path: Path, output: Path, **options: Any) -> Iterator[memvm.Guest]:
    """The guest of a checkpoint, which reads on where it was, and whose output is appended."""
    with job.stdin.open("rb") as given, output.open("r+b") as taken:
        taken.seek(0, 2)
        with memvm.restore(
            path, policy=manner.policy, engine=manner.engine, stdin=given, stdout=taken, **options
        ) as guest:
            yield guest


def cut_output(output: Path, path: Path) -> None:
    """Leave in the file what the guest had written when its checkpoint has its instant."""
    with CheckpointFile.open(path) as file:
        header = file.header
        state = GuestState.from_json(file.state, header.ram_base, header.ram_size, str(path))
    offset = state.streams[1].offset
    assert offset is not None
    with output.open("r+b") as file_out:
        file_out.truncate(offset)


def seeded_moments(seed: str, whole: float, count: int) -> list[Moment]:
    """Moments in a run that takes `whole` seconds, ascending; the same at every run of the tests."""
    chance = random.Random(seed)
    return [Moment(seconds=whole * share) for share in sorted(chance.uniform(0.02, 0.9) for _ in range(count))]


def seeded_calls(seed: str, calls: int, count: int) -> list[Moment]:
    """Moments in a run that makes so many hypercalls, the last of which ends it; ascending."""
    return [Moment(calls=chosen) for chosen in sorted(random.Random(seed).sample(range(1, calls), count))]
