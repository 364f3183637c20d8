"""The manager's own memory while it has most to do: a live save, a lazy restore, an eager restore.

What is counted is its private memory, as /proc/PID/smaps has it (Private_Clean and Private_Dirty of all mappings),
without the mapping of guest RAM: those pages are the guest's, and are there once however many map them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memvm.units import MIB
from tools.benchmarks.figures import Figure, Limit
from tools.benchmarks.guest_process import GuestProcess, save
from tools.benchmarks.lazy import wait_until_loaded
from tools.benchmarks.setting import Setting, warm_memory
from tools.benchmarks.ticking import RAM_MIB, WARM, ticker

LIMIT = Limit(value_at_most=64 + RAM_MIB / 100)
_PERIOD = 0.02
_GUEST_RAM = "/memfd:memvm-ram"


def measure(setting: Setting) -> list[Figure]:
    """The most that any sample saw, in one run of each."""
    file = setting.directory / "memory.ckpt"
    most = {}
    with ticker(setting) as guest, watched(guest) as samples:
        save(guest.name, file, "--live")
    most["save"] = max(samples)
    for how in ("lazy", "eager"):
        warm_memory(WARM)
        with (
            GuestProcess("bench-restored", "restore", [f"--{how}", str(file)]) as guest,
            watched(guest) as samples,
        ):
            guest.wait_for_lines(1)
            wait_until_loaded(guest)
        most[how] = max(samples)
    what = {"save": "a live save", "lazy": "a lazy restore", "eager": "an eager restore"}
    worst = max(most, key=most.__getitem__)
    return [
        Figure(
            "memory",
            f"the manager's private memory at most, in {what[worst]}",
            most[worst],
            "MiB",
            limit=LIMIT,
        ),
        *(
            Figure(f"memory.{name}", f"the same in {what[name]}", value, "MiB", limit=LIMIT)
            for name, value in most.items()
        ),
    ]


@contextmanager
def watched(guest: GuestProcess) -> Iterator[list[float]]:
    """Samples of a manager's private memory in MiB, as long as the context lasts."""
    samples: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_PERIOD):
            samples.append(private_memory(guest.pid) / MIB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def private_memory(pid: int) -> int:
    """Bytes of memory that only this process has, without guest RAM."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the first line of a mapping: its addresses and its file
            counts = _GUEST_RAM not in rest
        elif counts and name in ("Private_Clean:", "Private_Dirty:"):
            total += int(rest.split()[0]) * 1024
    return total
