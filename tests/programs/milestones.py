"""Saves one run of a program at several moments, while it goes on, and lets each of the checkpoints finish the work.

Where interrupted.py ends the run that was saved, this one has it go on from save to save: a start for all of them, and
a run that is disturbed several times. What a guest had printed when a checkpoint has its instant is put in front of
what that checkpoint's restore prints.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import memvm
from memvm.errors import GuestStateError
from tests.programs.interrupted import (
    PATIENCE,
    GoingOn,
    Job,
    Manner,
    Moment,
    await_moment,
    cut_output,
    start_restored,
)


def finish_from_milestones(
    job: Job, moments: Sequence[Moment], calls: int, manners: Sequence[Manner], folder: Path
) -> list[bytes]:
    """The whole output of a run that was saved live at these moments, as each of the restores completes it.

    If it has ended before the last of them, all come sooner, and by the number of calls instead of the clock; `calls`
    is how many it makes in an undisturbed run.
    """
    folder.mkdir()
    for attempt in _and_sooner(moments, calls):
        if _save_all(job, attempt, manners[0].engine, folder):
            break
    else:
        raise AssertionError(f"{job.argv[0]} was never caught running")
    with ExitStack() as stack:
        guests = []
        for number, manner in enumerate(manners):
            files = _checkpoint(folder, number), _output(folder, number)
            # What only demand brings comes from the file as long as the guest runs.
            restored = start_restored(job, manner, *files, background=manner.policy != "demand")
            guests.append(stack.enter_context(restored))
        for guest in guests:
            ending = guest.wait(PATIENCE)
            assert ending.code == 0, ending
    return [_output(folder, number).read_bytes() for number in range(len(manners))]


def _and_sooner(moments: Sequence[Moment], calls: int) -> Iterator[Sequence[Moment]]:
    if any(moment.seconds for moment in moments):
        yield moments
        moments = [Moment(calls=calls * (number + 1) // (len(moments) + 1)) for number in range(len(moments))]
    while any(moment.calls for moment in moments):
        yield [Moment(calls=max(1, moment.calls)) for moment in moments]
        moments = [Moment(calls=moment.calls // 2) for moment in moments]


def _save_all(job: Job, moments: Sequence[Moment], engine: str, folder: Path) -> bool:
    """Whether the guest, and the saves of it, came that far."""
    output = folder / "output"
    began = time.monotonic()
    with (
        job.stdin.open("rb") as given,
        output.open("wb") as taken,
        job.start(given, taken, engine=engine, pause_after_calls=moments[0].calls) as guest,
    ):
        try:
            for number, moment in enumerate(moments):
                if moment.seconds:
                    await_moment(guest, Moment(max(0.001, began + moment.seconds - time.monotonic())))
                else:
                    _let_run_to(guest, moment)
                going_on = GoingOn(guest, _calls_meanwhile(moments[number:]))
                guest.checkpoint(_checkpoint(folder, number), progress=going_on)
                shutil.copy(output, _output(folder, number))
                cut_output(_output(folder, number), _checkpoint(folder, number))
            guest.kill()
        except GuestStateError:  # it has ended
            return False
    return True


def _calls_meanwhile(moments: Sequence[Moment]) -> int:
    """How many calls a guest may make while it is saved at the first of these moments: not beyond the second."""
    some = 1 + moments[0].calls // 16
    if not moments[0].calls:
        return 0
    return min(some, moments[1].calls - moments[0].calls) if len(moments) > 1 else some


def _let_run_to(guest: memvm.Guest, moment: Moment) -> None:
    """Let a guest that stands still, or is about to, go on until it has made so many calls in all."""
    await_moment(guest, moment)
    made = guest.status().hypercalls
    if made < moment.calls:
        guest.resume(moment.calls - made)
        await_moment(guest, moment)


def _checkpoint(folder: Path, number: int) -> Path:
    return folder / f"{number}.ckpt"


def _output(folder: Path, number: int) -> Path:
    return folder / f"{number}.output"
