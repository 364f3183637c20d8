"""Runs python3's regression tests natively and as a guest, and tells what came of them otherwise there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.programs.regression.modules import OTHERWISE

PYTHON = os.environ.get("MEMVM_TEST_PYTHON", "/usr/bin/python3")
"""The python3 whose tests are run."""
_WITHIN = Path(__file__).with_name("within.py").read_text()
"""Its text, since neither a guest nor another user may have a way to the file."""
_NOBODY = 65534
_ENVIRONMENT = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_RAM = "4G"
"""A thread's stack is 8 MiB of it, though little of that is touched, and some tests have a hundred."""


class Outcomes(NamedTuple):
    """What came of the tests of one module."""

    module: str
    by_name: dict[str, str]
    """Each test's outcome: passed, skipped or failed."""
    words: dict[str, str]
    """Why, for those that have not passed."""
    seconds: float

    def count(self, outcome: str) -> int:
        """How many tests had it."""
        return sum(each == outcome for each in self.by_name.values())


class Run(NamedTuple):
    """How python3 ended, and what it told until then."""

    modules: dict[str, Outcomes]
    code: int
    complaints: str


def run_natively(modules: Sequence[str], limit: float) -> Run:
    """Run them without memvm, for at most `limit` seconds.

    Never as root, who may do what no guest may: some tests set the clock.
    """
    return _run([PYTHON], modules, limit, _NOBODY if os.geteuid() == 0 else None)


def run_as_guest(modules: Sequence[str], limit: float) -> Run:
    """Run them in a guest that sees the host's files, and may change what it sees of them."""
    options = [f"--ram={_RAM}", "--rw=/", "--cwd=/tmp", "--clear-env"]
    options.append(f"--time-limit={limit:.0f}s")
    options += [f"--env={name}={value}" for name, value in _ENVIRONMENT.items()]
    return _run([sys.executable, "-m", "memvm", "run", *options, "--", PYTHON], modules, limit + 20)


def _run(command: Sequence[str], modules: Sequence[str], limit: float, user: int | None = None) -> Run:
    ours = {name: value for name, value in os.environ.items() if name.startswith(("MEMVM_", "PYTHONPATH"))}
    done = subprocess.run(
        [*command, "-P", "-c", _WITHIN, *modules],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
        cwd="/tmp",
        user=user,
        group=user,
        extra_groups=None if user is None else (),
        env={**_ENVIRONMENT, **(ours if command[0] == sys.executable else {})},
    )
    told = {line["module"]: Outcomes(**line) for line in map(json.loads, done.stdout.splitlines())}
    return Run(told, done.returncode, done.stderr[-4000:])


def otherwise(native: Outcomes, guest: Outcomes) -> Iterator[str]:
    """The tests that pass natively and not in a guest, without those of which that is known, and why not."""
    for name, outcome in native.by_name.items():
        came = guest.by_name.get(name, "missing")
        if outcome == "passed" and came != "passed" and not any(known in name for known in OTHERWISE):
            yield f"{name}: {came}: {guest.words.get(name, '')}"
