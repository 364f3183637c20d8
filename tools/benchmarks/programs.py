"""What real programs cost as guests, beside the same programs natively: computing, memory, calls, files, threads.

Each program tells itself how long its work took, so that what a guest takes to start is not in it; of python3 the
whole is timed, less the same command with a program that only exits. Native and guest take turns.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.setting import BenchmarkError, Setting, environment, in_turn, memvm_command, warm_memory

PYTHON = "/usr/bin/python3"
_SHARED = Path("/dev/shm")
_TOUCHED_MIB = 512
_INSERTS = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("create table t(a integer primary key, b text)")
began = time.monotonic_ns()
for number in range(int(sys.argv[2])):
    connection.execute("insert into t values (?, ?)", (number, f"{number * 7 % 1000} of them"))
print(time.monotonic_ns() - began)
connection.close()
"""


class Workload(NamedTuple):
    """One program, and what its figure has to reach."""

    name: str
    what: str
    argv: tuple[str, ...]
    limit: Limit
    unit: str = "ms"
    per_unit: float = 1e6
    """Nanoseconds in the unit."""


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs."""
    program = setting.compile("workloads", "-static", "-pthread")
    if not Path(PYTHON).exists():
        raise BenchmarkError(f"there is no {PYTHON}")
    with tempfile.TemporaryDirectory(dir=setting.directory) as folder:
        figures = [_figure(setting, workload, folder) for workload in _workloads(program, f"{folder}/new.db")]
    if _SHARED.is_dir():
        with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
            figures.append(_figure(setting, _inserts_in_memory(f"{folder}/new.db"), folder))
    figures.append(_threads(setting, program))
    figures.append(_python_start(setting, program))
    return figures


def _workloads(program: str, database: str) -> list[Workload]:
    return [
        Workload(
            "programs.compute", "a loop of arithmetic", (program, "compute", "150000000"), Limit(ratio_at_most=1.03)
        ),
        Workload(
            "programs.touch",
            f"a write to each page of {_TOUCHED_MIB} MiB of new memory",
            (program, "touch", str(_TOUCHED_MIB)),
            Limit(ratio_at_most=1.2),
        ),
        Workload("programs.getppid", "a getppid", (program, "getppid", "50000"), Limit(value_at_most=15), "µs", 1e3),
        Workload("programs.clock", "a clock_gettime", (program, "clock", "2000000"), Limit(), "µs", 1e3),
        Workload(
            "programs.inserts",
            "10,000 inserts in a database in memory (sqlite3, from python3)",
            (PYTHON, "-c", _INSERTS, ":memory:", "10000"),
            Limit(ratio_at_most=1.2),
        ),
        Workload(
            "programs.inserts.file",
            "1,000 inserts in a file of the guest's tree, each a transaction; natively in a directory on the disk",
            (PYTHON, "-c", _INSERTS, database, "1000"),
            Limit(ratio_at_most=6),
        ),
    ]


def _inserts_in_memory(database: str) -> Workload:
    """Natively without a disk either: what is left is the price of a transaction's thirty or so system calls."""
    argv = (PYTHON, "-c", _INSERTS, database, "1000")
    return Workload("programs.inserts.shm", f"the same, beside a native run in {_SHARED}", argv, Limit())


def _figure(setting: Setting, workload: Workload, folder: str) -> Figure:
    times: dict[str, list[float]] = {"memvm": [], "native": []}
    commands = {"memvm": _guest(workload.argv, f"--rw={folder}"), "native": list(workload.argv)}
    for run in range(setting.runs * 2):
        for name in in_turn(run, "memvm", "native"):
            warm_memory(2 * _TOUCHED_MIB << 20)
            times[name].append(_told(commands[name])[0] / workload.per_unit)
            for left in Path(folder).iterdir():
                left.unlink()
    native = Reference(median(times["native"]), "the same program, not a guest")
    return Figure(
        workload.name,
        workload.what,
        median(times["memvm"]),
        workload.unit,
        native,
        workload.limit,
        tuple(times["memvm"]),
    )


def _threads(setting: Setting, program: str) -> Figure:
    """How much two threads get done beside one."""
    argv = (program, "threads", "60000000")
    gains: dict[str, list[float]] = {"memvm": [], "native": []}
    commands = {"memvm": _guest(argv, "--cpus=2"), "native": list(argv)}
    for run in range(setting.runs * 2):
        for name in in_turn(run, "memvm", "native"):
            one, two = _told(commands[name])
            gains[name].append(2 * one / two)
    return Figure(
        "programs.threads",
        "the work that two threads of a guest get done, by that of one",
        median(gains["memvm"]),
        "CPUs",
        Reference(median(gains["native"]), "the same program, not a guest"),
        Limit(value_at_least=1.8),
        tuple(gains["memvm"]),
    )


def _python_start(setting: Setting, program: str) -> Figure:
    """What a start of python3 takes as a guest, less a guest that only exits."""
    prints = (PYTHON, "-c", "print(1)")
    commands: dict[str, Callable[[], object]] = {
        "python": lambda: _run(_guest(prints)),
        "exit": lambda: _run(_guest((program, "getppid", "1"))),
        "native": lambda: _run(list(prints)),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for name in commands:
        commands[name]()  # the first start brings files into the cache
    for run in range(setting.runs * 4):
        for name in list(commands) if run % 2 == 0 else list(reversed(commands)):
            began = time.monotonic()
            commands[name]()
            times[name].append((time.monotonic() - began) * 1000)
    exits = median(times["exit"])
    return Figure(
        "programs.python3",
        f"python3 -c 'print(1)' as a guest, less the {exits:.0f} ms of a guest that only exits",
        median(times["python"]) - exits,
        "ms",
        Reference(median(times["native"]), "the same command, not a guest"),
        Limit(ratio_at_most=4),
        tuple(times["python"]),
    )


def _guest(argv: Sequence[str], *options: str) -> list[str]:
    return [*memvm_command(), "run", "--ram=2G", "--ro=/", f"--ro={Path(argv[0]).parent}", *options, "--", *argv]


def _told(command: list[str]) -> list[float]:
    """The figures that a program prints."""
    try:
        return [float(word) for word in _run(command).split()]
    except ValueError as error:
        raise BenchmarkError(f"{' '.join(command)}: no figure: {error}") from None


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(), cwd="/")
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
