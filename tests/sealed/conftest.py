"""A program with a secret, and a lab that knows it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sealed.lab import SealedLab
from tests.support import MemvmCli

SEED = 20_260_729
_SIZE = 64
_U64 = (1 << 64) - 1


def secret() -> bytes:
    """What the program makes of SEED."""
    state, made = SEED, bytearray()
    for _ in range(_SIZE):
        state = (state * 6364136223846793005 + 1442695040888963407) & _U64
        made.append(state >> 56)
    return bytes(made)


@pytest.fixture(scope="session")
def secret_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """secret.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here: apt-get install gcc")
    folder = tmp_path_factory.mktemp("secret")
    folder.chmod(0o755)
    program = folder / "secret"
    subprocess.run([compiler, "-O2", "-static", "-o", program, Path(__file__).with_name("secret.c")], check=True)
    return program


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, secret_program: Path, memvm_cli: MemvmCli) -> Iterator[SealedLab]:
    """A lab whose verifier and key keeper answer."""
    folder = tmp_path_factory.mktemp("lab")
    with SealedLab(folder, memvm_cli, secret_program, [str(SEED)]).served() as lab:
        yield lab
