"""The C programs of tests/machine/programs/, built when a test first asks for one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tools.build_guests import INCLUDE

PROGRAMS = Path(__file__).parent / "programs"
OPTIONS = ["-std=gnu11", "-O2", "-w", "-static", f"-I{INCLUDE}"]  # they do on purpose what gcc warns of

CProgram = Callable[[str], Path]


@pytest.fixture(scope="session")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> CProgram:
    """The path of a program by the name of its source."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here: apt-get install gcc libc6-dev")
    directory = tmp_path_factory.mktemp("programs")

    @cache
    def build(name: str) -> Path:
        program = directory / name
        subprocess.run(["gcc", *OPTIONS, PROGRAMS / f"{name}.c", "-o", program, "-lm"], check=True)
        return program

    return build
