"""The running guests, as `memvm ps` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from memvm.machine.config import GuestStatus
from memvm.manager.rundir import Entry
from memvm.report.table import printable, table
from memvm.units import format_duration, format_size


@dataclass(frozen=True)
class ProcessFigures:
    """What the kernel says of a process; None where it has gone, or is not ours to ask about."""

    rss: int | None
    """Bytes of memory that it has mapped and in RAM, shared pages included."""
    cpu_time: float | None
    """Seconds of user and system time."""


@dataclass(frozen=True)
class RunningGuest:
    """One guest: who it is, what its manager says (None if that does not answer), what the kernel says."""

    name: str
    program: str
    manager_pid: int
    status: GuestStatus | None
    manager_process: ProcessFigures
    guest_process: ProcessFigures


def program_of(entry: Entry, status: GuestStatus | None) -> str:
    """What a guest runs: as it was started, or, of one that was restored, the program's name from the checkpoint."""
    if status is None or not status.restored_from:
        return entry.program
    return PurePath(status.program).name or entry.program


def guests_text(guests: Sequence[RunningGuest]) -> str:
    """A table, a line a guest."""
    right = ("PID", "UP", "RAM", "TOUCHED", "DEFERRED", "CPU", "FAULTS", "MANAGER")
    headings = ("NAME", "STATE", *right, "PROGRAM", "FROM")
    return table(headings, [_row(guest) for guest in guests], right=right)


def _row(guest: RunningGuest) -> list[str]:
    status, program = guest.status, printable(guest.program)
    manager = "-" if guest.manager_process.rss is None else format_size(guest.manager_process.rss)
    if status is None:
        unknown = ["-"] * 6
        return [guest.name, "not answering", str(guest.manager_pid), *unknown, manager, program, ""]
    cpu = guest.guest_process.cpu_time
    return [
        guest.name,
        status.state.value,
        str(guest.manager_pid),
        format_duration(status.uptime),
        format_size(status.ram_size),
        format_size(status.ram_touched),
        format_size(status.ram_deferred),
        "-" if cpu is None else format_duration(cpu),
        f"{status.faults:,}",
        manager,
        program,
        _origin(status),
    ]


def _origin(status: GuestStatus) -> str:
    """Which checkpoint a guest was restored from, and as which clone."""
    file = PurePath(status.restored_from).name
    return f"{file}, clone {status.clone} of {status.clones}" if status.clone else file
