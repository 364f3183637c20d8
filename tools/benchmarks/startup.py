"""What a user waits for before memvm does anything: `memvm --help` beside an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from tools.benchmarks.figures import Figure, Limit
from tools.benchmarks.setting import Setting, environment, in_turn, memvm_command

MORE_MS = 60.0
_TIMES = 8
"""Starts of each for one run: they are short."""


def measure(setting: Setting) -> list[Figure]:
    """The difference of the medians."""
    commands = {"help": [*memvm_command(), "--help"], "pass": [sys.executable, "-c", "pass"]}
    for command in commands.values():
        _seconds(command)  # the first start writes what Python compiled
    times: dict[str, list[float]] = {"help": [], "pass": []}
    for run in range(setting.runs * _TIMES):
        for name in in_turn(run, "help", "pass"):
            times[name].append(_seconds(commands[name]) * 1000)
    nothing = median(times["pass"])
    return [
        Figure(
            name="startup",
            what=f"memvm --help, less the {nothing:.1f} ms of python3 -c pass (the same interpreter)",
            value=median(times["help"]) - nothing,
            unit="ms",
            limit=Limit(value_at_most=MORE_MS),
            samples=tuple(times["help"]),
        )
    ]


def _seconds(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.monotonic() - began
