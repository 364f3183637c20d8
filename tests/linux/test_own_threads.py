"""Threads that the kernel refuses, on the running kernel; and a guest whose manager gets fewer than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memvm.errors import HostError
from memvm.linux.own_threads import Thread

ROOT = Path(__file__).parents[2]
NOBODY = 65534
LEAST = 4
"""Threads without which no guest runs; how many there are beyond depends on the machine."""
REFUSED = f"""
import os, resource, sys
from memvm.errors import HostError
from memvm.linux.own_threads import Thread
if os.geteuid() == 0:  # whom no limit holds
    try:
        os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
    except OSError:
        sys.exit("there is no other user here")
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
thread = Thread(target=print, name="worker")
try:
    thread.start()
except HostError as error:
    print(error)
thread.join()
"""
FEWER = """
import sys, threading
from memvm.cli.main import main
name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
start, left = getattr(threading, name), [int(sys.argv[1])]
def start_some(*arguments, **options):
    left[0] -= 1
    if left[0] < 0:
        raise RuntimeError("can't start new thread")
    return start(*arguments, **options)
setattr(threading, name, start_some)
sys.exit(main(sys.argv[2:]))
"""


def run(code: str, *words: str | Path, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def test_a_user_has_no_more_threads(time_scale: float) -> None:
    result = run(REFUSED, timeout=30 * time_scale)
    if "no other user" in result.stderr:
        pytest.skip("the limit holds every user but root, and there is no other one here")
    assert result.stderr == ""
    assert result.stdout.startswith("the thread 'worker' cannot be started: there are too many processes and threads")
    assert "this user may have 1 (ulimit -u)" in result.stdout


def test_one_that_never_ran_is_not_waited_for() -> None:
    thread = Thread(target=print)
    thread.join()
    thread = Thread(target=lambda: None)
    thread.start()
    with pytest.raises(RuntimeError, match="only be started once"):
        thread.start()
    thread.join()


def test_memvm_starts_no_others() -> None:
    makers = [path.name for path in (ROOT / "memvm").rglob("*.py") if "threading.Thread(" in path.read_text()]
    assert makers == []


@pytest.mark.parametrize("threads", range(7))
def test_a_guest_whose_manager_gets_too_few_threads(threads: int, guests: dict[str, Path], time_scale: float) -> None:
    result = run(FEWER, str(threads), "run", "--ram", "64M", "--", guests["sleeper"], "0", "1", timeout=30 * time_scale)
    if threads >= LEAST and result.returncode == 0:
        return
    assert result.returncode == HostError.exit_code
    said, hint = result.stderr.splitlines()
    assert said.startswith("memvm: the thread ")
    assert "cannot be started: there are too many processes and threads" in said
    assert hint.startswith("  try: ")
