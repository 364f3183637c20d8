"""How soon a saved guest goes on: a lazy restore beside an eager one, from the start of the command.

The first new line may come from a pass over the hot set that was nearly done when the guest was saved; the second line
needs a whole pass. The file is in the page cache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess, longest_wait, most_late, save
from tools.benchmarks.setting import BenchmarkError, Setting, in_turn, warm_file, warm_memory
from tools.benchmarks.ticking import PERIOD, WARM, ticker

FIRST = Limit(value_at_most=300.0, ratio_at_most=0.2)
LOADED = Limit(ratio_at_most=1.5)
LATE_MS = 100.0
_POLL = 0.01
_TIMEOUT = 60.0


@dataclass(frozen=True)
class _Restore:
    """One restore; times in ms from the start of the command."""

    first: float
    second: float
    loaded: float
    late: float
    wait: float


def measure(setting: Setting) -> list[Figure]:
    """Medians of the times; the worst lateness of all runs."""
    file = setting.directory / "lazy.ckpt"
    with ticker(setting) as guest:
        save(guest.name, file, "--live")
    results: dict[str, list[_Restore]] = {"lazy": [], "eager": []}
    for run in range(setting.runs):
        for how in in_turn(run, "eager", "lazy"):
            warm_file(file)
            warm_memory(WARM)
            results[how].append(_restore(file, how))
    lazy, eager = results["lazy"], results["eager"]
    eager_first = median(result.first for result in eager)
    first = tuple(result.first for result in lazy)
    second = tuple(result.second for result in lazy)
    loaded = tuple(result.loaded for result in lazy)
    late = tuple(result.late for result in lazy)
    wait = tuple(result.wait for result in lazy)
    eager_what = Reference(eager_first, "eager restore to its first new line")
    return [
        Figure("lazy", "lazy restore to the first new line", median(first), "ms", eager_what, FIRST, first),
        Figure(
            "lazy.second",
            "lazy restore to the second new line",
            median(second),
            "ms",
            Reference(median(result.second for result in eager), "eager restore to its second line"),
            samples=second,
        ),
        Figure(
            "lazy.loaded",
            "lazy restore until all is loaded",
            median(loaded),
            "ms",
            eager_what,
            LOADED,
            loaded,
        ),
        Figure(
            "lazy.late",
            "the latest line after the first, by the guest's clock",
            max(late),
            "ms",
            limit=Limit(LATE_MS),
            samples=late,
        ),
        Figure(
            "lazy.wait",
            "the latest line after the first, where it is received",
            max(wait),
            "ms",
            limit=Limit(LATE_MS),
            samples=wait,
        ),
    ]


def _restore(file: Path, how: str) -> _Restore:
    with GuestProcess("bench-restored", "restore", [f"--{how}", str(file)]) as guest:
        guest.wait_for_lines(1)
        loaded = wait_until_loaded(guest)
        guest.wait_for_lines(len(guest.lines) + 50)
        lines = list(guest.lines)
    return _Restore(
        first=(lines[0].arrival - guest.began) * 1000,
        second=(lines[1].arrival - guest.began) * 1000,
        loaded=(loaded - guest.began) * 1000,
        late=most_late(lines[1:]) * 1000,
        wait=longest_wait(lines, PERIOD) * 1000,
    )


def wait_until_loaded(guest: GuestProcess) -> float:
    """When the last deferred page was loaded (time.monotonic)."""
    deadline = time.monotonic() + _TIMEOUT
    with guest.client() as client:
        while time.monotonic() < deadline:
            if client.status().ram_deferred == 0:
                return time.monotonic()
            time.sleep(_POLL)
    raise BenchmarkError(f"guest {guest.name} was not loaded within {_TIMEOUT:.0f} s")
