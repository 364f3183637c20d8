"""What every test gets: a leak count around it, a private run-time directory, and the fixtures below.

MEMVM_TEST_TIME_SCALE multiplies every time limit of the suite (a float, 1 by default), for slow machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.leaks import leaks_since, take_census
from tests.support import MemvmCli

# How long an example takes, or is looked for, depends on who else uses the machine, and on nothing that is tested.
hypothesis.settings.register_profile(
    "memvm", hypothesis.settings(), deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("memvm")

ROOT = Path(__file__).parent.parent
GRACE = 10.0
"""Seconds that things which are ending have to end in."""


@pytest.fixture(scope="session")
def time_scale() -> float:
    """The factor by which every time limit is to be multiplied."""
    return float(os.environ.get("MEMVM_TEST_TIME_SCALE", "1"))


@pytest.fixture(scope="session", autouse=True)
def runtime_dir() -> Iterator[Path]:
    """The run-time directory of this session: private, and short, as socket addresses have to be."""
    parent = tempfile.gettempdir()
    path = Path(tempfile.mkdtemp(prefix="mv", dir=parent if len(parent) < 40 else "/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMVM_RUNTIME_DIR", str(path))
        patch.setenv("MEMVM_PLATFORM_DIR", "/nonexistent/platform")  # whatever the user has made is not for tests
        yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works() -> None:
    """Give Ctrl-C its default meaning, which a shell takes from what it starts in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_leaks(runtime_dir: Path, time_scale: float) -> Iterator[None]:
    """Fails a test that leaves anything behind, with a list of what."""
    before = take_census(runtime_dir)
    yield
    if leaks := leaks_since(before, runtime_dir, GRACE * time_scale):
        pytest.fail("the test left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(scope="session")
def guests() -> dict[str, Path]:
    """The built demo guests by name."""
    from tools.build_guests import build

    return build()


@pytest.fixture(scope="session")
def busybox() -> Path:
    """A static busybox: a real program that is many."""
    found = shutil.which("busybox")
    if found is None:
        pytest.skip("no busybox here: apt-get install busybox-static")
    linking = subprocess.run(["ldd", found], check=False, capture_output=True, text=True, env={"LC_ALL": "C"})
    if "not a dynamic executable" not in linking.stderr and "statically linked" not in linking.stdout:
        pytest.skip(f"{found} is not static: apt-get install busybox-static")
    return Path(found)


@pytest.fixture(scope="session")
def memvm_cli(time_scale: float, runtime_dir: Path) -> MemvmCli:
    """Runs the command line; see tests/support.py."""
    return MemvmCli(time_scale)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say above the last line which earlier steps of tools/check failed: that line cannot tell."""
    if failed := os.environ.get("MEMVM_CHECK_FAILED"):
        terminalreporter.write_sep("=", "tools/check failed before these tests", red=True)
        terminalreporter.write_line(failed)
