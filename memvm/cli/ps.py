"""`memvm ps`: the running guests."""

from __future__ import annotations

import argparse

from memvm.cli.parser import add_json
from memvm.errors import ControlError, GuestStateError, NoSuchGuest
from memvm.manager.client import connect, running
from memvm.manager.rundir import Entry
from memvm.report.guests import ProcessFigures, RunningGuest, program_of

PATIENCE = 2.0
"""Seconds that each manager has to answer in."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm ps`."""
    parser.epilog = """\
PID is the manager's process. RAM is what the guest may use, TOUCHED what of it holds memory, DEFERRED what
is still in the checkpoint. CPU is the guest's time, MANAGER its manager's memory. FROM is the checkpoint that
it was restored from, and which of the clones it is; PROGRAM is then the name of the program in it.
"""
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask every manager, and list what they say."""
    from memvm.report.guests import guests_text
    from memvm.report.records import to_json

    guests = [guest for entry in running() if (guest := _look_at(entry)) is not None]
    print(to_json(guests) if arguments.json else guests_text(guests))
    return 0


def _look_at(entry: Entry) -> RunningGuest | None:
    """What a manager says of its guest; None if both are gone by now."""
    status = None
    try:
        with connect(entry.name, PATIENCE) as client:
            status = client.status(PATIENCE)
    except (NoSuchGuest, GuestStateError):
        return None
    except ControlError:
        pass  # it runs and does not answer, and is listed as such
    return RunningGuest(
        name=entry.name,
        program=program_of(entry, status),
        manager_pid=entry.pid,
        status=status,
        manager_process=_figures(entry.pid),
        guest_process=_figures(0 if status is None else status.guest_pid),
    )


def _figures(pid: int) -> ProcessFigures:
    import psutil

    if pid <= 0:
        return ProcessFigures(None, None)
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return ProcessFigures(process.memory_info().rss, times.user + times.system)
    except psutil.Error:  # gone, or not ours to ask about
        return ProcessFigures(None, None)
