"""What a system call costs the guest that the manager answers: getppid in a loop."""

from __future__ import annotations

import re
import subprocess
from statistics import median

from tools.benchmarks.figures import Figure, Reference
from tools.benchmarks.setting import BenchmarkError, Setting, environment, in_turn, memvm_command

CALLS = 50_000
_ANSWER = re.compile(r"ns_per_call (\d+)")


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs."""
    program = setting.guest("syscallbench")
    commands = {"memvm": [*memvm_command(), "run", "--", program], "native": [program]}
    times: dict[str, list[float]] = {"memvm": [], "native": []}
    for run in range(setting.runs):
        for name in in_turn(run, "memvm", "native"):
            times[name].append(_microseconds([*commands[name], str(CALLS)]))
    samples = tuple(times["memvm"])
    native = Reference(median(times["native"]), "the same loop, not a guest")
    return [
        Figure(
            "hypercall",
            "a getppid of the guest's, answered by the manager",
            median(samples),
            "µs",
            native,
            samples=samples,
        )
    ]


def _microseconds(command: list[str]) -> float:
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    match = _ANSWER.search(result.stdout)
    if match is None:
        raise BenchmarkError(f"no time in {result.stdout!r}")
    return int(match[1]) / 1000
