"""A guest without a machine, so that managers can be tested by themselves; and a `memvm` made with it.

    python -m tests.manager.fakes run -- sleep          runs until it is ended
                                         cat            copies its input to its output, then ends
                                         exit N         ends at once with status N
                                         crash          ends as one does that was ended by SIGSEGV
                                         stubborn       cannot be killed

A checkpoint of it is a text file. Saving to a file whose name has "slow" in it, and restoring from one, takes
a minute unless it is given up.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from memvm.errors import BadPage, GuestStateError, ImageError, SaveError
from memvm.machine.config import ExitStatus, GuestConfig, GuestStatus, RunOptions, RunState
from memvm.machine.files_state import FilesState
from memvm.machine.settings import Name, Setting, Settings, default_settings
from memvm.memory.dirty import DirtyPages
from memvm.memory.pages import PageRun
from memvm.memory.traces import Traces

RAM_START, RAM_SIZE = 0x10000, 2 << 20
BAD_PAGE = RAM_START + RAM_SIZE
CRASH_REPORT = "the guest was ended by SIGSEGV at address 0x0\n  rip 0x401000  main+4"


@dataclass(frozen=True)
class FakeSaveOptions:
    live: bool
    level: int
    block_size: int
    parent: Path | None = None


@dataclass(frozen=True)
class FakeSaveReport:
    bytes_raw: int
    bytes_file: int
    pages_data: int
    pages_zero: int
    seconds: float
    frozen_seconds: float
    path: str
    parent: str = ""


@dataclass(frozen=True)
class FakeSuspendOptions:
    level: int
    block_size: int
    time: float
    data: int | None


@dataclass(frozen=True)
class FakeSuspendReport:
    bytes_raw: int
    bytes_file: int
    bytes_again: int
    pages_active: int
    seconds: float
    frozen_seconds: float
    path: str


@dataclass(frozen=True)
class FakeRestoreOptions:
    lazy: bool
    background: bool = True
    parents: tuple[Path, ...] = ()
    policy: str = ""
    observing: object = None
    views: tuple[Any, ...] = ()
    accept_changed_files: bool = False
    disks: int = 0
    without_disks: bool = False


class FakeWatch:
    """Every look finds two pages written and one punched; of a `many`, the first is told in very many pieces."""

    means = "made up"

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest

    def look(self) -> DirtyPages:
        written = [PageRun(16, 2)]
        if self._guest.argv[0] == "many":
            written = [PageRun(2 * page, 1) for page in range(50_000)]
        return DirtyPages(0.5, written, [PageRun(200_000, 1)])

    def close(self) -> None:
        self._guest.watches -= 1


class FakeGuest:
    """Does what ManagedGuest says, with a thread for a program."""

    def __init__(
        self,
        argv: tuple[str, ...],
        name: str = "fake",
        env: Mapping[str, str] | None = None,
        settings: Mapping[Name, Setting] | None = None,
        restored_from: str = "",
    ) -> None:
        self.argv = argv
        self.name = name
        self.env = env or {}
        self.restored_from = restored_from
        self.ram = bytearray(RAM_SIZE)
        self.paused = False
        self.closed = False
        self.watches = 0
        self.settings = Settings({**default_settings(), **(settings or {})})
        self._ending: ExitStatus | None = None
        self._ended = threading.Event()

    @classmethod
    def launch(cls, config: GuestConfig, options: RunOptions) -> FakeGuest:
        name = Path(config.program).name
        if name not in ("sleep", "cat", "exit", "crash", "stubborn", "env"):
            raise ImageError(f"{config.program}: not a program", hint="take another")
        return cls((name, *config.argv[1:]), options.name, config.env, config.settings)

    @property
    def restore_report(self) -> Callable[[], Any] | None:
        return None

    @property
    def traces(self) -> Traces:
        raise GuestStateError("a guest without memory cannot be traced")

    def regions(self) -> list[tuple[int, int, str]]:
        return []

    def start(self) -> None:
        what = self.argv[0]
        if what == "exit":
            self.end(ExitStatus(int(self.argv[1])))
        elif what == "crash":
            self.end(ExitStatus(139, 11, CRASH_REPORT))
        elif what == "env":
            os.write(1, "".join(f"{k}={v}\n" for k, v in sorted(self.env.items())).encode())
            self.end(ExitStatus(0))
        elif what == "cat":
            threading.Thread(target=self._cat, daemon=True).start()

    def _cat(self) -> None:
        while data := os.read(0, 4096):
            os.write(1, data)
        self.end(ExitStatus(0))

    def end(self, ending: ExitStatus) -> None:
        self._ending = ending
        self._ended.set()

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        self._ended.wait(timeout)
        return self._ending

    def take_signal(self, number: int) -> bool:
        return False

    def pause(self) -> None:
        if self.paused:
            raise GuestStateError(f"guest {self.name!r} is paused already")
        self.paused = True

    def resume(self, calls: int = 0) -> None:
        self.paused = False

    def sample_working_set(self, pages: int, interval: float) -> None:
        raise GuestStateError("a guest without memory has no working set")

    def kill(self, reason: str = "") -> None:
        if self.argv[0] != "stubborn":
            self.end(ExitStatus(137, 9, reason))

    def status(self) -> GuestStatus:
        return GuestStatus(
            name=self.name,
            program=f"/usr/bin/{self.argv[0]}",
            state=RunState.PAUSED if self.paused else RunState.RUNNING,
            manager_pid=os.getpid(),
            guest_pid=os.getpid(),
            engine="fake",
            ram_size=RAM_SIZE,
            ram_touched=4096,
            ram_deferred=0,
            cpu_time=0.5,
            uptime=2.0,
            hypercalls=7,
            unknown_calls={"socket": 1},
            faults=3,
            restored_from=self.restored_from,
        )

    def registers(self) -> dict[str, int]:
        return {"rip": 0x401000, "rsp": 0x7FFFFFFFFFFFFFFF}

    def read_memory(self, address: int, size: int) -> bytes:
        offset = self._offset(address, size)
        return bytes(self.ram[offset : offset + size])

    def write_memory(self, address: int, data: bytes) -> None:
        offset = self._offset(address, len(data))
        self.ram[offset : offset + len(data)] = data

    def files_state(self) -> FilesState:
        return FilesState()

    def watch_writes(self) -> FakeWatch:
        self.watches += 1
        return FakeWatch(self)

    def _offset(self, address: int, size: int) -> int:
        if not RAM_START <= address <= address + size <= BAD_PAGE:
            raise BadPage(address // 4096, f"page {address // 4096:#x} is not in the guest")
        return address - RAM_START

    def close(self) -> None:
        self.closed = True
        if self._ending is None:
            self.end(ExitStatus(137, 9, "closed"))


def fake_save(
    guest: FakeGuest, path: Path, options: FakeSaveOptions, progress: Callable[[int, int], None]
) -> FakeSaveReport:
    if path.name == "full":
        raise SaveError(f"{path}: no space left", hint="make room")
    pending = path.with_suffix(".pending")
    pending.write_text(" ".join(guest.argv))
    try:
        _work(path, progress)
    except BaseException:
        pending.unlink()
        raise
    pending.rename(path)
    return FakeSaveReport(RAM_SIZE, path.stat().st_size, 1, 511, 1.25, 0.004, str(path))


def fake_suspend(
    guest: FakeGuest, path: Path, options: FakeSuspendOptions, progress: Callable[[int, int], None]
) -> FakeSuspendReport:
    fake_save(guest, path, FakeSaveOptions(True, options.level, options.block_size), progress)
    guest.end(ExitStatus(0, reason=f"suspended to {path}"))
    return FakeSuspendReport(RAM_SIZE, path.stat().st_size, 4096, 7, 1.25, 0.004, str(path))


def fake_restore(
    path: Path, options: RunOptions, how: FakeRestoreOptions, progress: Callable[[int, int], None]
) -> FakeGuest:
    _work(path, progress)
    return FakeGuest(tuple(path.read_text().split()), options.name, restored_from=str(path))


def _work(path: Path, progress: Callable[[int, int], None]) -> None:
    steps = 6000 if "slow" in path.name else 3
    for step in range(steps + 1):
        progress(step, steps)
        time.sleep(0.01)


def save_keywords(guest: FakeGuest) -> Callable[..., FakeSaveReport]:
    """fake_save as a manager's server calls it."""

    def save(
        path: Path,
        *,
        live: bool,
        parent: Path | None,
        level: int,
        block_size: int,
        progress: Callable[[int, int], None],
    ) -> FakeSaveReport:
        return fake_save(guest, path, FakeSaveOptions(live, level, block_size, parent), progress)

    return save


def suspend_keywords(guest: FakeGuest) -> Callable[..., FakeSuspendReport]:
    """fake_suspend as a manager's server calls it."""

    def suspend(
        path: Path,
        *,
        level: int,
        block_size: int,
        time: float,
        data: int | None,
        progress: Callable[[int, int], None],
    ) -> FakeSuspendReport:
        return fake_suspend(guest, path, FakeSuspendOptions(level, block_size, time, data), progress)

    return suspend


def fake_modules() -> dict[str, ModuleType]:
    """What stands in for the machine and the checkpoints, by module name."""
    contents: dict[str, dict[str, object]] = {
        "memvm.machine.machine": {"Machine": FakeGuest},
        "memvm.checkpoint.save": {
            "SaveOptions": FakeSaveOptions,
            "SaveReport": FakeSaveReport,
            "save": fake_save,
        },
        "memvm.checkpoint.suspend": {
            "SuspendOptions": FakeSuspendOptions,
            "SuspendReport": FakeSuspendReport,
            "suspend": fake_suspend,
        },
        "memvm.checkpoint.restore": {"RestoreOptions": FakeRestoreOptions, "restore": fake_restore},
    }
    modules = {}
    for name, names in contents.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(names)
    return modules


def main() -> int:
    """`memvm` with fake guests."""
    sys.modules.update(fake_modules())
    signal.alarm(120)  # whatever a test forgets
    from memvm.__main__ import main as memvm

    return memvm()


if __name__ == "__main__":
    sys.exit(main())
