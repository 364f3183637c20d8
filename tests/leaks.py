"""What a test can leave behind: descriptors, processes, threads, mappings of memory files, run-time files.

A `Census` is taken before a test; what is there afterwards and was not there before is a leak, unless
it goes away within a short grace time. Guests and managers are looked for among all new processes of
this machine, because one that outlived its parent belongs to nobody: a process is ours if it descends
from this one, names our run-time directory in its environment, or is a guest that no manager traces.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GUEST_EXECUTABLE = "/memfd:memvm"
"""How /proc names the executable of a guest: a memory file that memvm made."""


@dataclass(frozen=True)
class Census:
    """What this process and its run-time directory hold at one moment."""

    descriptors: frozenset[tuple[int, str]]
    processes: frozenset[int]
    threads: frozenset[int]
    mappings: frozenset[str]
    files: frozenset[Path]


def take_census(runtime_dir: Path) -> Census:
    """Count everything now."""
    return Census(
        descriptors=frozenset(_descriptors()),
        processes=frozenset(_numbers("/proc")),
        threads=frozenset(_numbers("/proc/self/task")),
        mappings=frozenset(_memory_file_mappings()),
        files=frozenset(runtime_dir.rglob("*")),
    )


def leaks_since(before: Census, runtime_dir: Path, grace: float) -> list[str]:
    """A line for each thing that is new since `before` and does not go away in `grace` seconds."""
    deadline = time.monotonic() + grace
    while leaks := _leaks_now(before, runtime_dir):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return leaks


def _leaks_now(before: Census, runtime_dir: Path) -> list[str]:
    now = take_census(runtime_dir)
    leaks = [f"descriptor {fd} → {target}" for fd, target in sorted(now.descriptors - before.descriptors)]
    described = (_description(pid, runtime_dir) for pid in sorted(now.processes - before.processes))
    leaks += [line for line in described if line]
    leaks += [
        f"thread {tid} ({_read_text(f'/proc/self/task/{tid}/comm')})" for tid in sorted(now.threads - before.threads)
    ]
    leaks += [f"mapping {line}" for line in sorted(now.mappings - before.mappings)]
    leaks += [f"run-time file {path}" for path in sorted(now.files - before.files)]
    return leaks


def _descriptors() -> Iterator[tuple[int, str]]:
    for fd in _numbers("/proc/self/fd"):
        try:
            yield fd, str(Path(f"/proc/self/fd/{fd}").readlink())
        except FileNotFoundError:
            continue  # the one that listed the directory


def _memory_file_mappings() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:" in line:
            yield line


def _numbers(directory: str) -> Iterator[int]:
    return (int(entry.name) for entry in Path(directory).iterdir() if entry.name.isdigit())


def _description(pid: int, runtime_dir: Path) -> str:
    """A description of the process if it is one of ours, "" if it is not or has gone."""
    if os.getpid() in _ancestors(pid):
        relation = "child of this process"
    elif str(runtime_dir).encode() in _read_bytes(f"/proc/{pid}/environ"):
        relation = "outlived its parent"
    elif _executable(pid).startswith(GUEST_EXECUTABLE) and not _is_traced(pid):
        relation = "guest without a manager"
    else:
        return ""
    name, state, _parent = _status(pid)
    command = _read_bytes(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return f"process {pid} ({relation}, state {state}): {command or name}" if state else ""


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = _status(pid)[2]
        if pid:
            yield pid


def _status(pid: int) -> tuple[str, str, int]:
    """Name, state letter and parent of a process; ("", "", 0) if it has gone (proc_pid_stat(5))."""
    text = _read_text(f"/proc/{pid}/stat")
    if not text:
        return "", "", 0
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return name, state, int(parent)


def _is_traced(pid: int) -> bool:
    return "\nTracerPid:\t0\n" not in _read_text(f"/proc/{pid}/status")


def _executable(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:  # gone, a zombie, or another user's
        return ""


def _read_text(path: str) -> str:
    return _read_bytes(path).decode(errors="replace").strip()


def _read_bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # gone, a zombie, or another user's
        return b""
