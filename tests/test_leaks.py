"""The leak count sees each kind of thing that a test can leave behind."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from memvm.linux.memfd import create_executable
from tests.leaks import leaks_since, take_census

CleanUp = Callable[[], object]


def leave_descriptor(runtime_dir: Path) -> tuple[str, CleanUp]:
    fd = os.open("/dev/null", os.O_RDONLY)
    return f"descriptor {fd} → /dev/null", lambda: os.close(fd)


def leave_thread(runtime_dir: Path) -> tuple[str, CleanUp]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()

    def clean_up() -> None:
        end.set()
        thread.join()

    return f"thread {thread.native_id}", clean_up


def leave_mapping(runtime_dir: Path) -> tuple[str, CleanUp]:
    fd = os.memfd_create("memvm-ram")
    os.ftruncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096)
    os.close(fd)
    return "mapping ", mapping.close


def leave_file(runtime_dir: Path) -> tuple[str, CleanUp]:
    path = runtime_dir / "stale.sock"
    path.touch()
    return f"run-time file {path}", path.unlink


def leave_child(runtime_dir: Path) -> tuple[str, CleanUp]:
    child = subprocess.Popen(["sleep", "1000"])

    def clean_up() -> None:
        child.kill()
        child.wait()

    return f"process {child.pid} (child of this process", clean_up


def leave_zombie(runtime_dir: Path) -> tuple[str, CleanUp]:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return f"process {child.pid} (child of this process, state Z)", child.wait


def leave_orphan(runtime_dir: Path) -> tuple[str, CleanUp]:
    """A process in a session of its own whose parent has ended, as a manager is."""
    pid = _start_orphan("s.Popen(['sleep', '1000'], stdout=s.DEVNULL, start_new_session=True)")
    return f"process {pid} (outlived its parent", psutil.Process(pid).kill


def leave_guest(runtime_dir: Path) -> tuple[str, CleanUp]:
    """A process that runs a memory file of memvm's, without environment and tracer."""
    fd = create_executable("memvm-stub", Path(shutil.which("sleep") or "sleep").read_bytes())
    try:
        pid = _start_orphan(f"s.Popen(['/proc/self/fd/{fd}', '1000'], stdout=s.DEVNULL, pass_fds=[{fd}], env={{}})", fd)
    finally:
        os.close(fd)
    return f"process {pid} (guest without a manager", psutil.Process(pid).kill


def _start_orphan(expression: str, *descriptors: int) -> int:
    program = f"import subprocess as s; print({expression}.pid)"
    return int(subprocess.check_output([sys.executable, "-c", program], pass_fds=descriptors))


@pytest.mark.parametrize(
    "leave",
    [
        leave_descriptor,
        leave_thread,
        leave_mapping,
        leave_file,
        leave_child,
        leave_zombie,
        leave_orphan,
        leave_guest,
    ],
)
def test_a_leak_is_seen_until_it_is_cleaned_up(
    leave: Callable[[Path], tuple[str, CleanUp]], runtime_dir: Path, time_scale: float
) -> None:
    before = take_census(runtime_dir)
    expected, clean_up = leave(runtime_dir)
    try:
        leaks = leaks_since(before, runtime_dir, grace=0)
    finally:
        clean_up()
    assert any(leak.startswith(expected) for leak in leaks), leaks
    assert leaks_since(before, runtime_dir, grace=10 * time_scale) == []
