"""A program that runs to its end twice, by itself and as a guest, and what both runs tell."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from typing import NamedTuple

from tests.programs.interrupted import Job
from tests.support import CliResult, MemvmCli

_CALL = re.compile(r"^\w+\(.*\) = .*\n", re.MULTILINE)
"""A line that --strace prints."""


class Undisturbed(NamedTuple):
    """Both runs."""

    job: Job
    guest: CliResult
    calls: int
    """How many hypercalls it made."""
    native: subprocess.CompletedProcess[bytes]
    """The same job without memvm."""
    seconds: float
    """How long that took."""

    def check(self) -> None:
        """A guest's output, complaints and status are those of the native run."""
        assert self.guest.err == self.native.stderr.decode()
        assert self.guest.code == self.native.returncode
        assert self.guest.out == self.native.stdout


def run_undisturbed(job: Job, memvm_cli: MemvmCli) -> Undisturbed:
    """Run it both ways, in the root directory and without an environment."""
    views = [*(f"--ro={view}" for view in job.ro), *(f"--rw={view}" for view in job.rw)]
    options = ["--strace", "--clear-env", "--cwd=/", "--ram", job.ram, *views]
    with job.stdin.open("rb") as given:
        began = time.monotonic()
        native = subprocess.run(job.argv, stdin=given, capture_output=True, check=False, env={}, cwd="/")
        seconds = time.monotonic() - began
        given.seek(0)
        guest = memvm_cli("run", *options, "--", *job.argv, stdin=given)
    words, calls = _CALL.subn("", guest.err)
    return Undisturbed(job, replace(guest, err=words), calls, native, seconds)
