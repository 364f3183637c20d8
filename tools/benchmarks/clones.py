"""Many guests from one checkpoint: how long 50 clones take to start, and how much memory they are beside one guest.

The guest has 256 MiB of touched memory, all of it data, and prints a line five times a second. A clone has started when
its first line has come. What is counted as memory is all of it, on both sides alike: the proportional set size of every
process (managers, guests, and the parent of the clones) without memvm's memory files, these files once each, however
many have them mapped, and page tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil

from memvm.units import MIB
from tools.benchmarks.figures import Figure, Limit, Reference
from tools.benchmarks.guest_process import GuestProcess, Line, save
from tools.benchmarks.lazy import wait_until_loaded
from tools.benchmarks.setting import Setting, warm_file, warm_memory

CLONES = 50
MEMORY_MIB = 256
RAM_MIB = 288
_PERIOD_MS = 200
_START = Limit(value_at_most=5.0)
_MEMORY = Limit(ratio_at_most=2.0)
_FILES = "/memfd:memvm-"


def measure(setting: Setting) -> list[Figure]:
    """Medians over the runs."""
    file = setting.directory / "clones.ckpt"
    _save_guest(setting, file)
    starts, sizes, alone = [], [], []
    for _ in range(setting.runs):
        warm_memory(2 * RAM_MIB * MIB)
        warm_file(file)
        with GuestProcess("bench-one", "restore", ["--eager", str(file)]) as guest:
            guest.wait_for_lines(1)
            wait_until_loaded(guest)
            alone.append(memory_of(guest.pid) / MIB)
        warm_memory(2 * RAM_MIB * MIB)
        with GuestProcess("bench-clone", "restore", ["--clones", str(CLONES), str(file)]) as parent:
            parent.wait_for(lambda lines: len(_names(lines)) == CLONES)
            firsts = dict(reversed([(_name(line), line.arrival) for line in parent.lines]))
            starts.append(max(firsts.values()) - parent.began)
            sizes.append(memory_of(parent.pid) / MIB)
    return [
        Figure(
            "clones.start",
            f"until each of {CLONES} clones of a guest of {MEMORY_MIB} MiB has written its first line",
            median(starts),
            "s",
            limit=_START,
            samples=tuple(starts),
        ),
        Figure(
            "clones.memory",
            f"memory of these {CLONES} clones with all their processes",
            median(sizes),
            "MiB",
            reference=Reference(median(alone), "the same guest, restored alone"),
            limit=_MEMORY,
            samples=tuple(sizes),
        ),
    ]


def _save_guest(setting: Setting, file: Path) -> None:
    warm_memory(2 * RAM_MIB * MIB)
    arguments = [str(MEMORY_MIB), "0", str(_PERIOD_MS), "0", "full"]
    words = ["--ram", f"{RAM_MIB}M", "--", setting.guest("ticker"), *arguments]
    with GuestProcess("bench-original", "run", words) as guest:
        guest.wait_for_lines(2)
        save(guest.name, file)


def _name(line: Line) -> str:
    return line.text.partition(" ")[0]


def _names(lines: list[Line]) -> set[str]:
    return set(map(_name, lines))


def memory_of(pid: int) -> int:
    """Bytes of memory that a process and its descendants take, what they share counted once."""
    parent = psutil.Process(pid)
    processes = [process.pid for process in (parent, *parent.children(recursive=True))]
    files = {identity: size for process in processes for identity, size in _memory_files(process)}
    return sum(map(_private, processes)) + sum(files.values())


def _private(pid: int) -> int:
    """A process's proportional share of all that is no memory file of memvm's, and its page tables (proc(5))."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the first line of a mapping: its addresses and its file
            counts = _FILES not in rest
        elif counts and name == "Pss:":
            total += int(rest.split()[0]) * 1024
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmPTE:"):
            total += int(line.split()[1]) * 1024
    return total


def _memory_files(pid: int) -> Iterator[tuple[int, int]]:
    """Inode and bytes of the memory files that a process has open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(entry.readlink()).startswith(_FILES):
                facts = entry.stat()
                yield facts.st_ino, facts.st_blocks * 512
        except FileNotFoundError:
            continue  # closed meanwhile
