"""How long `memvm run` takes for a program that does nothing, and how much more for python3 saying one line."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from statistics import median

from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.setting import BenchmarkError, Setting, environment, in_turn, memvm_command

_TIMES = 3
_GIVEN = ("/usr", "/lib", "/lib64", "/etc")


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs."""
    program = [setting.guest("syscallbench"), "1"]
    commands = {"memvm": [*memvm_command(), "run", "--", *program], "native": program}
    times: dict[str, list[float]] = {"memvm": [], "native": []}
    for run in range(setting.runs * _TIMES):
        for name in in_turn(run, "memvm", "native"):
            times[name].append(_milliseconds(commands[name]))
    samples = tuple(times["memvm"])
    native = Reference(median(times["native"]), "the same program, not a guest")
    figure = Figure("run", "memvm run of a program that does nothing", median(samples), "ms", native, samples=samples)
    return [figure, _dynamic(setting, program)]


def _dynamic(setting: Setting, static: list[str]) -> Figure:
    """What loading and running python3 takes: the rest of the command is the same for a static program."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        raise BenchmarkError("there is no python3 in /usr/bin")
    given = [f"--ro={folder}" for folder in _GIVEN if Path(folder).is_dir()]
    native = [python, "-c", "print(1)"]
    more: list[float] = []
    alone: list[float] = []
    for run in range(setting.runs * _TIMES):
        took: dict[str, float] = {}
        for name in in_turn(run, "static", "dynamic"):
            program = static if name == "static" else native
            took[name] = _milliseconds([*memvm_command(), "run", *given, "--", *program])
        more.append(took["dynamic"] - took["static"])
        alone.append(_milliseconds(native))
    reference = Reference(median(alone), "python3 -c 'print(1)', not a guest")
    what = "what memvm run of python3 -c 'print(1)' takes on top of a static program"
    return Figure("run.dynamic", what, median(more), "ms", reference, Limit(ratio_at_most=4.0), tuple(more))


def _milliseconds(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return (time.monotonic() - began) * 1000
