"""What a live checkpoint does to the guest that is being saved: how long it stands still, how late its lines are."""

from __future__ import annotations

import time

from tools.benchmarks.figures import Figure, Limit
from tools.benchmarks.guest_process import longest_wait, most_late, save
from tools.benchmarks.setting import Setting, warm_memory
from tools.benchmarks.ticking import HOT_MIB, PERIOD, WARM, ticker

FROZEN_MS = 20.0
LATE_MS = 50.0


def measure(setting: Setting) -> list[Figure]:
    """The worst of all runs: a limit on what may ever happen is not met on average."""
    frozen, late, waits, before = [], [], [], []
    file = setting.directory / "freeze.ckpt"
    with ticker(setting) as guest:
        for _ in range(setting.runs):
            warm_memory(WARM)
            quiet = len(guest.lines)
            guest.wait_for_lines(quiet + 100)
            first = len(guest.lines) - 1
            report = save(guest.name, file, "--live")
            guest.wait_for_lines(len(guest.lines) + 10)
            lines = guest.lines[first:]
            frozen.append(report["frozen_seconds"] * 1000)
            late.append(most_late(lines) * 1000)
            waits.append(longest_wait(lines, PERIOD) * 1000)
            before.append(longest_wait(guest.lines[quiet:first], PERIOD) * 1000)
            time.sleep(0.1)
    hot = f"1 GiB touched, a quarter zero, {HOT_MIB} MiB written between two lines"
    return [
        Figure(
            "freeze",
            f"the longest that the guest stood still in a live save ({hot})",
            max(frozen),
            "ms",
            limit=Limit(FROZEN_MS),
            samples=tuple(frozen),
        ),
        Figure(
            "freeze.late",
            "the latest line during the save, by the guest's clock",
            max(late),
            "ms",
            limit=Limit(LATE_MS),
            samples=tuple(late),
        ),
        Figure(
            "freeze.wait",
            "the latest line during the save, where it is received",
            max(waits),
            "ms",
            limit=Limit(LATE_MS),
            samples=tuple(waits),
        ),
        Figure(
            "freeze.quiet",
            "the latest line while nothing was saved, where it is received",
            max(before),
            "ms",
            samples=tuple(before),
        ),
    ]
