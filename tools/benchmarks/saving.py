"""How fast guests are while they are saved, beside before, and how often a save writes to its file.

Guests with 1 GiB of touched memory, of which they use a tenth: one that scans, one that walks a graph, and a key-value
store that is its own client. Each prints a line for every so many steps; lines a second are its speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from memvm.manager.client import Client
from memvm.manager.protocol import DEFAULT_BLOCK_SIZE
from memvm.units import MIB
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess
from tools.benchmarks.setting import Setting, warm_memory

SPEED = Limit(ratio_at_least=0.5)
RAM_MIB = 1216
GUESTS = {
    "scan": ("1024", "0", "102"),
    "walk": ("1024", "0", "20000", "102"),
    "kv": ("960", "66", "0", "1000"),
}
"""The demo guests, with arguments that make them touch a gigabyte and work within a tenth of it: some 26,500 pages.

Those of kv are 66 MiB of values, and what leads to them: half as much again."""
_CONSTANT_WRITES = 4
"""Writes that are not of storage blocks: sections and commit record; and blocks that were not full."""
_BEFORE = 1.5
"""Seconds for which a guest's speed is measured before it is saved."""

Save = Callable[[Client, Path], dict[str, Any]]


class Slowed(NamedTuple):
    """What one save did to one guest."""

    before: float
    """Lines a second."""
    during: float
    report: dict[str, Any]


def measure(setting: Setting) -> list[Figure]:
    """The slowest guest of all runs, for each kind of save."""
    return [
        *_figures(setting, "save", "a live checkpoint", lambda client, path: client.checkpoint(path, live=True)),
        *_figures(setting, "suspend", "a suspend, until the guest stands still", Client.suspend),
    ]


def _figures(setting: Setting, name: str, what: str, save: Save) -> list[Figure]:
    figures, writes = [], list[tuple[int, int]]()
    for guest in GUESTS:
        slowed = [slow_down(setting, guest, save) for _ in range(setting.runs)]
        worst = min(slowed, key=lambda one: one.during / one.before)
        figures.append(
            Figure(
                f"{name}.speed.{guest}",
                f"lines a second of {guest} during {what}",
                worst.during,
                "/s",
                Reference(worst.before, "before it"),
                SPEED,
                tuple(one.during for one in slowed),
            )
        )
        for one in slowed:
            blocks = ceil(one.report["bytes_file"] / DEFAULT_BLOCK_SIZE)
            writes.append((one.report["block_writes"] - blocks, one.report["block_writes"]))
    extra, count = max(writes)
    figures.append(
        Figure(
            f"{name}.writes",
            f"writes of storage blocks in {what} ({count}) beyond the file's size divided by a block's",
            extra,
            "writes",
            limit=Limit(value_at_most=_CONSTANT_WRITES),
        )
    )
    return figures


def slow_down(setting: Setting, guest: str, save: Save) -> Slowed:
    """Save a guest once."""
    warm_memory((RAM_MIB + 128) * MIB)
    words = ["--ram", f"{RAM_MIB}M", "--", setting.guest(guest), *GUESTS[guest]]
    with GuestProcess(f"bench-{guest}", "run", words) as process, _client(process) as client:
        process.wait_for_lines(100)
        time.sleep(_BEFORE)
        began = time.monotonic()
        report = save(client, setting.directory / f"{guest}.ckpt")
        ended = time.monotonic()
        if "rounds" in report:  # suspended: it stood still, and its manager took some time to end
            ended = began + report["seconds"] - report["frozen_seconds"]
        lines = [line.arrival for line in process.lines]
    before = sum(began - _BEFORE <= arrival < began for arrival in lines) / _BEFORE
    return Slowed(before, sum(began <= arrival < ended for arrival in lines) / (ended - began), report)


def _client(process: GuestProcess) -> Client:
    process.wait_for_lines(1)
    return process.client()
