"""Fixtures of the program tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs.inputs import make_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Megabytes of input, by name."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


Compile = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def compile_static(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles C source statically with a given compiler ("gcc" or "musl-gcc"); each once a session."""
    folder = tmp_path_factory.mktemp("programs")
    built: dict[tuple[str, str], Path] = {}

    def build(source: str, compiler: str) -> Path:
        key = (source, compiler)
        if key not in built:
            program = folder / f"program{len(built)}"
            command = [compiler, "-O2", "-static", "-xc", "-", "-o", str(program), "-lm"]
            subprocess.run(command, input=source.encode(), check=True)
            built[key] = program
        return built[key]

    return build
