"""What all benchmarks share: how often, where, with which programs, and how a timing is made fair."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
GUESTS = ROOT / "guests"
_SOURCES = Path(__file__).resolve().parent


class BenchmarkError(Exception):
    """A benchmark cannot be run; the message says why."""


@dataclass(frozen=True)
class Setting:
    """One run of tools/bench."""

    runs: int
    directory: Path
    """For checkpoint files and compiled references: on a real disk, and deleted in the end."""

    def guest(self, name: str) -> str:
        """The path of a demo guest's program. Raises BenchmarkError."""
        program = GUESTS / "build" / name
        if not program.exists():
            raise BenchmarkError(f"{program} is not built: tools/build_guests.py builds it")
        return str(program)

    def compile(self, name: str, *options: str) -> str:
        """Compile NAME.c of this folder, with further options; the program's path. Raises BenchmarkError."""
        program = self.directory / name
        if not program.exists():
            command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", f"-I{GUESTS / 'include'}"]
            command += ["-o", str(program), str(_SOURCES / f"{name}.c"), *options]
            built = subprocess.run(command, check=False, capture_output=True, text=True)
            if built.returncode != 0:
                raise BenchmarkError(f"{name}.c does not compile:\n{built.stderr}")
        return str(program)


def memvm_command() -> list[str]:
    """The command line as users have it: the installed script, or else the module."""
    script = Path(sys.executable).with_name("memvm")
    return [str(script)] if script.exists() else [sys.executable, "-m", "memvm"]


def environment() -> dict[str, str]:
    """For child processes: Python keeps its compiled modules, as it does for everybody by default."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def warm_memory(size: int) -> None:
    """Touch and free memory, right before a timing.

    In a virtual machine free memory goes back to the host within seconds, and touching it again is several
    times as slow. What is measured next would pay for that or not, by chance.
    """
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def warm_file(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def in_turn(run: int, *names: str) -> tuple[str, ...]:
    """Things to compare, in turn forwards and backwards."""
    return names if run % 2 == 0 else names[::-1]
