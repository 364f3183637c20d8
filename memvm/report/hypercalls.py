"""The system calls that guests can make: one object for text and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memvm.machine.hypercalls.table import Entry
from memvm.report.table import table


@dataclass(frozen=True)
class AnsweredCall:
    """A system call that memvm answers."""

    number: int
    name: str
    arguments: tuple[str, ...]
    summary: str


def answered_calls(entries: Iterable[Entry]) -> list[AnsweredCall]:
    """The table of hypercalls as a report, in the order of the numbers."""
    return [
        AnsweredCall(entry.number, entry.name, tuple(argument.name for argument in entry.arguments), entry.summary)
        for entry in sorted(entries, key=lambda entry: entry.number)
    ]


def calls_text(calls: Sequence[AnsweredCall]) -> str:
    """A line for each call: its number, its name with its arguments, and what a guest gets."""
    rows = [(str(call.number), f"{call.name}({', '.join(call.arguments)})", call.summary) for call in calls]
    return table(("number", "call", "what a guest gets"), rows, right={"number"})
