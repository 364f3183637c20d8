"""Programs with several threads: as guests they print what they print by themselves, also when they are saved, live,
at three moments, and restored lazily."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.programs.interrupted import Job, Manner, seeded_moments
from tests.programs.milestones import finish_from_milestones
from tests.programs.undisturbed import Undisturbed, run_undisturbed
from tests.support import MemvmCli

SOURCES = Path(__file__).parent / "threaded"
COMPILED = {
    "C++": ["g++", "-O2", "-pthread", "crowd.cpp", "-o"],
    "C++, static": ["g++", "-O2", "-pthread", "-static", "crowd.cpp", "-o"],
    "Rust, static": ["rustc", "-O", "-C", "target-feature=+crt-static", "crowd.rs", "-o"],
    "Go, static": ["go", "build", "-o"],
    "Java": ["javac", "Crowd.java", "-d"],
}
"""How each is compiled; the name of what is to be made comes last, and for Go the source after it."""
COMMANDS = {
    "python3": ["/usr/bin/python3", f"{SOURCES}/crowd.py"],
    "xz -T2": ["xz", "-T2", "-1", "--block-size=256KiB", "-c", "text"],
    "sort --parallel": ["sort", "--parallel=2", "-S", "200M", "text"],
    "Node.js": ["node", f"{SOURCES}/crowd.js"],
    "openssl speed": ["openssl", "speed", "-seconds", "1", "-bytes", "1024", "sha256"],
}
PROGRAMS = [*COMPILED, *COMMANDS]
MANNERS = [Manner("live", policy, "userfaultfd") for policy in ("active", "demand", "sequential")]


@pytest.fixture(scope="module")
def undisturbed(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, memvm_cli: MemvmCli
) -> Callable[[str], Undisturbed]:
    """Runs a program, once for all that want to know."""

    @cache
    def run(name: str) -> Undisturbed:
        compiled = tmp_path_factory.mktemp("compiled")
        if name in COMPILED:
            program = str(_compile(name, compiled))
            argv = [_found("java"), "-Xmx256m", "-cp", program, "Crowd"] if name == "Java" else [program]
        else:
            command, *arguments = COMMANDS[name]
            argv = [_found(command), *(str(inputs[word]) if word in inputs else word for word in arguments)]
        folders = sorted({str(inputs["text"].parent), str(SOURCES), str(compiled)})
        job = Job(tuple(argv), inputs["empty"], ram="4G", cwd="/", ro=("/", *folders))
        return run_undisturbed(job, memvm_cli)

    return run


def _compile(name: str, folder: Path) -> Path:
    compiler, *arguments = COMPILED[name]
    program = folder / "crowd"
    if compiler == "javac":
        program.mkdir()
    arguments += [str(program), *["crowd.go"] * (compiler == "go")]
    _found(compiler)
    for_go = {"GOCACHE": f"{folder}/cache", "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run([compiler, *arguments], cwd=SOURCES, env={**os.environ, **for_go}, check=True)
    return program


def _found(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} here")
    return found


def _without_figures(output: bytes) -> bytes:
    """What openssl prints, without how quick it was."""
    return re.sub(rb" *\d+\.\d+k", b" RATE", output)


@pytest.mark.parametrize("name", PROGRAMS)
def test_output_is_that_of_the_native_run(name: str, undisturbed: Callable[[str], Undisturbed]) -> None:
    run = undisturbed(name)
    assert run.guest.code == run.native.returncode == 0
    assert _without_figures(run.guest.out) == _without_figures(run.native.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_saved_in_the_middle_and_restored(name: str, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    run = undisturbed(name)
    moments = seeded_moments(name, run.seconds, len(MANNERS))
    outputs = finish_from_milestones(run.job, moments, run.calls, MANNERS, tmp_path / "saved")
    for output, moment in zip(outputs, moments, strict=True):
        assert _without_figures(output) == _without_figures(run.native.stdout), f"{name}, saved at {moment}"
