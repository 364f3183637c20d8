"""The guest that touches pages on command, built once a session."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toucher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built tests/memory/toucher.c."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here: apt-get install gcc libc6-dev")
    path = tmp_path_factory.mktemp("toucher") / "toucher"
    source = Path(__file__).parent / "toucher.c"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-static", "-o", path, source], check=True)
    return path
