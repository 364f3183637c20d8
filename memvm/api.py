"""memvm for Python programs: a `Guest` is a manager process started from here, and its control socket.

    with memvm.Guest(["busybox", "sort"], ram="256M", stdin=subprocess.PIPE) as guest:
        guest.checkpoint("/tmp/sort.ckpt")          # while it runs
    with memvm.restore("/tmp/sort.ckpt", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as again:
        ...

The manager is the same process as that of `memvm run`: the guest has a name, and `memvm ps`, `checkpoint`
and the others work on it. Leaving the `with` block kills the guest if it still runs.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.disks import Disk, disk_options
from memvm.errors import ControlError, GuestStateError, NoSuchGuest, UsageError
from memvm.machine.config import SAMPLE_INTERVAL, SAMPLE_PAGES, ExitStatus, GuestStatus, RunState
from memvm.managed import ManagedProcess, Stream
from memvm.manager.client import Client, TraceBatch, connect
from memvm.manager.guest import Progress
from memvm.manager.protocol import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_LEVEL,
    DEFAULT_SUSPEND_TIME,
    record_from_json,
)
from memvm.options import StrPath, manager_options, view_options

if TYPE_CHECKING:
    from memvm.checkpoint.save import SaveReport
    from memvm.checkpoint.suspend import SuspendReport
    from memvm.manager.configuration import Config
    from memvm.manager.dirty import DirtyLook
    from memvm.recording.restored import RestoreReport

_PATIENCE = 15.0
"""Seconds that a manager gets to end its guest in, before it is killed itself."""
PROMPTLY = 0.2
"""Seconds that the end of most guests takes far less than; with others it is asked what they wait for."""
_SHORTEST_LOOK, _LONGEST_LOOK = 0.0005, 0.02
"""Seconds between two looks whether a guest stands still: one that soon does is seen soon, another costs little."""


class Guest:
    """A running guest, and the manager process that runs it.

    `stdin`, `stdout` and `stderr` are its streams where PIPE was asked for, else None; `name` is what it
    is called, `pid` the manager's process. Methods may be called from several threads; each raises
    GuestStateError once the guest has ended, and ControlError if the manager cannot be spoken to.
    """

    def __init__(
        self,
        argv: Sequence[StrPath],
        *,
        ram: str | int = "1G",
        env: Mapping[str, str] | None = None,
        name: str | None = None,
        ro: Sequence[StrPath] = (),
        rw: Sequence[StrPath] = (),
        pass_through: Sequence[StrPath] = (),
        disks: Sequence[StrPath | Disk] = (),
        cwd: StrPath = "",
        hostname: str = "memvm",
        cpus: int = 1,
        engine: str = "auto",
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        time_limit: float | None = None,
        strict: bool = False,
        strace: bool = False,
        cpu: int | None = None,
        pause_after_calls: int = 0,
        settings: Mapping[str, str] | None = None,
        locked: bool = False,
        verifier: str = "",
        tpm: bool = False,
        sealed: bool = False,
        key_keeper: StrPath = "",
    ) -> None:
        """Start a program as a guest; returns when it runs.

        `argv[0]` is looked up in PATH if it has no slash. `ro`, `rw` and `pass_through` are directories, as "DIR" or
        "DIR:PATH", that it sees: to read, to change in memory only, and to change; `cwd` is where in its tree it
        begins. Of `disks` (memvm disk), each is a file, and then ciphertext for the guest, or a memvm.Disk.
        `hostname` and `cpus` are what it is told of its machine. `ram` is in bytes or as in "512M". `env` is the
        whole environment of the guest; None gives it PATH, TERM, LANG and HOME of this process. `time_limit` is
        in seconds. With `pause_after_calls` it is paused when it has made so many hypercalls: for a program with one
        thread, a moment that is the same in each run. `settings` are security settings, as {"debug": "off:refuse"};
        `locked` makes all others the strictest (memvm config --list). `verifier` is the URL where the guest is attested
        if it asks for a token; with `tpm`, its run-time register is anchored in the platform's TPM.
        Nobody but root can look into a `sealed` guest; `key_keeper` is a file with the public key of who keeps the key
        of its checkpoints.
        Raises what `memvm run` reports: ImageError, HostError, UsageError, SettingRefused, GuestStateError if the
        name is taken.
        """
        if isinstance(argv, str) or not argv:
            raise UsageError("argv has to be a sequence of at least the program", hint='say ["sort", "-n"]')
        options = manager_options(name, engine, time_limit, strict, strace, cpu, tpm, pause_after_calls)
        options += [f"--setting={setting}={value}" for setting, value in (settings or {}).items()]
        options += [f"--verifier={verifier}"] * bool(verifier) + ["--sealed"] * sealed
        options += [f"--key-keeper={os.fspath(key_keeper)}"] * bool(key_keeper)
        command = ["run", *options, f"--ram={ram}", *["--locked"] * locked]
        command += view_options(ro, rw, pass_through) + disk_options(disks)
        command += [f"--cwd={os.fspath(cwd)}", f"--hostname={hostname}", f"--cpus={cpus}"]
        operands = ["--", *(os.fspath(word) for word in argv)]
        manager = ManagedProcess.start(command, operands, env, (stdin, stdout, stderr))
        self._take(manager.await_guest(), manager)

    def _take(self, name: str, manager: ManagedProcess) -> None:
        self._manager, self.name = manager, name
        self.stdin, self.stdout, self.stderr = manager.streams
        self.pid: int = manager.process.pid

    @classmethod
    def adopted(cls, name: str, manager: ManagedProcess) -> Guest:
        """The guest, running already, of a manager that was started otherwise."""
        guest = cls.__new__(cls)
        guest._take(name, manager)
        return guest

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self._manager.ending is None else f"ended with {self._manager.ending.code}"
        return f"<memvm.Guest {self.name!r}, {state}>"

    def close(self) -> None:
        """Kill the guest if it still runs, and release its streams; idempotent."""
        try:
            if self._manager.ending is None:
                self._manager.process.send_signal(signal.SIGTERM)  # to a process that has gone it sends nothing
                self._see_it_end()
        finally:
            self._manager.close_streams()

    def _see_it_end(self) -> None:
        with suppress(TimeoutError):
            self.wait(PROMPTLY)
            return
        kill_if_paused(self)
        with suppress(TimeoutError):
            self.wait(_PATIENCE)
            return
        self._manager.process.kill()  # the guest dies with its manager
        self.wait()

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait for the guest's end, and tell how it ended.

        Raises TimeoutError after `timeout` seconds, and what made the manager fail if that was the end.
        A guest that writes to a pipe which nobody reads never ends, as with subprocess.Popen.wait.
        """
        return self._manager.wait(timeout)

    def checkpoint(
        self,
        path: StrPath,
        *,
        live: bool = True,
        parent: StrPath | None = None,
        level: int = DEFAULT_LEVEL,
        block_size: int = DEFAULT_BLOCK_SIZE,
        progress: Progress | None = None,
    ) -> SaveReport:
        """Save the guest to a file; it goes on running.

        A `live` checkpoint lets it run meanwhile, otherwise it is frozen until all is written; either way
        the file holds the state of one instant. With `parent`, an earlier checkpoint of the guest, it has only what
        changed since, and needs that one to be restored. `level` is zstd's, `block_size` (bytes) the unit in which
        the file is written. `progress` is told bytes done and in all; an exception from it, or Ctrl-C,
        gives the save up. Raises SaveError if the file cannot be written or the parent is another guest's,
        CheckpointError if the parent is missing or damaged; an older file is whole then.
        """
        from memvm.checkpoint.save import SaveReport

        with self._connect() as client:
            report = client.checkpoint(
                Path(path),
                live=live,
                parent=None if parent is None else Path(parent),
                level=level,
                block_size=block_size,
                progress=progress,
            )
        return record_from_json(SaveReport, report)

    def suspend(
        self,
        path: StrPath,
        *,
        level: int = DEFAULT_LEVEL,
        block_size: int = DEFAULT_BLOCK_SIZE,
        time: float = DEFAULT_SUSPEND_TIME,
        data: int | None = None,
        progress: Progress | None = None,
    ) -> SuspendReport:
        """Save the guest to a file and end it; `restore` brings it back.

        It runs while most of its memory is stored, and is stopped for the rest: when little is left, or after `time`
        seconds, or when `data` bytes are stored (twice what it holds, if not given). The other options, and what is
        raised, are as with `checkpoint`; if something goes wrong, the guest runs on.
        """
        from memvm.checkpoint.suspend import SuspendReport

        with self._connect() as client:
            report = client.suspend(
                Path(path), level=level, block_size=block_size, time=time, data=data, progress=progress
            )
        self.wait()
        return record_from_json(SuspendReport, report)

    def pause(self) -> None:
        """Stop the guest where it is."""
        with self._connect() as client:
            client.pause()

    def resume(self, calls: int = 0) -> None:
        """Let a paused guest go on; with `calls`, until it has made so many more hypercalls."""
        with self._connect() as client:
            client.resume(calls)

    def wait_until_paused(self, timeout: float | None = None) -> GuestStatus:
        """Wait until the guest stands still, after `pause_after_calls` or resume(calls=...): its status then.

        Raises TimeoutError after `timeout` seconds, and GuestStateError if the guest has ended, or ends first.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        interval = _SHORTEST_LOOK
        with self._connect() as client:
            while (status := client.status()).state is not RunState.PAUSED:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"the guest was not paused within {timeout} s")
                time.sleep(interval)
                interval = min(2 * interval, _LONGEST_LOOK)
        return status

    def kill(self) -> ExitStatus:
        """End the guest; one that has ended already is no error."""
        try:
            with self._connect() as client:
                client.kill("killed by the program that started it")
        except GuestStateError:
            pass  # it was just ending
        return self.wait()

    def status(self) -> GuestStatus:
        """The guest's figures: state, memory, faults, hypercalls."""
        with self._connect() as client:
            return client.status()

    def attest(self, verifier: str, *, audience: str = "", kind: str = "ietf", authority: StrPath = "") -> str:
        """Have the guest attested by the verifier at a URL, and return the token: what it says is for who reads it.

        `kind` is ietf, veraison or cwt (then in base64); `authority` a file with certificates to believe. Raises
        AttestationError if the verifier gave no token.
        """
        with self._connect() as client:
            return str(client.attest(verifier, audience, kind, os.fspath(authority))["token"])

    def config(self) -> Config:
        """The guest's security settings, and what was changed since its launch."""
        with self._connect() as client:
            return client.config()

    def change_setting(self, name: str, value: str) -> None:
        """Change a security setting; what that does was settled at launch. Raises SettingRefused."""
        with self._connect() as client:
            client.change_setting(name, value)

    def registers(self) -> dict[str, int]:
        """The general registers by name. They are of one instant, and soon old unless it is paused."""
        with self._connect() as client:
            return client.registers()

    def read_memory(self, address: int, size: int) -> bytes:
        """`size` bytes of guest RAM; pages that are still in a checkpoint are loaded first.

        Raises BadPage or UsageError for addresses that are not in the guest.
        """
        with self._connect() as client:
            return client.read_memory(address, size)

    def write_memory(self, address: int, data: bytes) -> None:
        """Change guest RAM, read-only pages included. Raises BadPage or UsageError as read_memory does."""
        with self._connect() as client:
            client.write_memory(address, data)

    @contextmanager
    def dirty(self) -> Iterator[Callable[[], DirtyLook]]:
        """Watch which pages of guest RAM are written, or given back, within a `with` block.

        The block gets a function that tells what changed since it was last called, or since the block began:

            with guest.dirty() as look:
                time.sleep(1)
                print(look().bytes_written)

        Page N is at address RAM_BASE + N * 4096 (memvm.machine.layout). Where the kernel can (Linux 6.7), it costs the
        guest next to nothing; otherwise each page's first write after a look costs a page fault.
        """
        with self._connect() as client:
            client.dirty()
            try:
                yield lambda: client.dirty(pages=True)
            finally:
                client.hang_up()

    def restore_report(self) -> RestoreReport:
        """How the restore of this guest went until now: times, demand faults, and how well pages were prefetched.

        Raises GuestStateError unless it was restored with `report` or `score`.
        """
        with self._connect() as client:
            return client.restore_report()

    def trace(
        self,
        pages: Sequence[tuple[int, int]] | None = None,
        access: str = "rw",
        *,
        again: float | None = None,
        instruction: bool = False,
        events: int | None = None,
        seconds: float | None = None,
    ) -> Iterator[TraceBatch]:
        """The guest's accesses to its pages as they happen, until there are so many `events`, the time is over, or
        the guest has ended.

        `pages` are runs (first, count) of guest RAM, all if not given; `access` is r, w or rw. Each page is heard of
        once (of both, at its first access and its first write), and, with `again`, anew after so many seconds.
        """
        with self._connect() as client:
            yield from client.trace(
                pages=pages, access=access, again=again, instruction=instruction, events=events, seconds=seconds
            )

    def sample_working_set(self, pages: int = SAMPLE_PAGES, interval: float = SAMPLE_INTERVAL) -> None:
        """Estimate the working set from now on: what the guest accesses within `interval` seconds.

        It costs the guest at most one page fault for each of `pages` in that time; none ends it. `status` has the
        estimate.
        """
        with self._connect() as client:
            client.sample_working_set(pages, interval)

    def _connect(self) -> Client:
        ended = GuestStateError(f"guest {self.name!r} has ended")
        if self._manager.ending is not None:
            raise ended
        try:
            client = connect(self.name)
        except NoSuchGuest:  # it has ended just now, and nobody has waited for that yet
            raise ended from None
        if client.manager_pid != self.pid:  # ours has ended, and another took its name
            client.__exit__()
            raise ended
        return client


def restore(
    path: StrPath,
    *,
    lazy: bool = True,
    policy: str | None = None,
    background: bool = True,
    record: bool = False,
    report: bool = False,
    score: bool = False,
    window: float | None = None,
    parents: Sequence[StrPath] = (),
    name: str | None = None,
    ro: Sequence[StrPath] = (),
    rw: Sequence[StrPath] = (),
    pass_through: Sequence[StrPath] = (),
    disks: Sequence[StrPath | Disk] = (),
    without_disks: bool = False,
    accept_changed_files: bool = False,
    engine: str = "auto",
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    time_limit: float | None = None,
    strict: bool = False,
    strace: bool = False,
    cpu: int | None = None,
    pause_after_calls: int = 0,
    tpm: bool = False,
    verifier: str = "",
    audience: str = "",
    key_keeper: str = "",
) -> Guest:
    """Bring a guest back from a checkpoint; returns when it runs.

    A `lazy` one runs at once and its pages are loaded as it touches them, and in the `background`; the file
    has to stay until all are. Otherwise all is loaded first. `policy` says which pages are loaded before the guest
    runs: "active" (what the save saw it use; the default), "recorded" (what an earlier restore saw), "demand",
    "sequential", "eager", or a class of your own as "pkg.module:Class". With `record`, the pages that it uses in the
    first `window` seconds are noted beside the file for "recorded". With `report`, Guest.restore_report tells how
    the restore went; with `score` also how well the pages were chosen, which slows the guest in the window.

    `ro`, `rw` and `pass_through` take the place of what it saw there before; a directory that it may change on the host
    has to be given again, and so have its `disks`, in their order, unless it may go on `without_disks`. A file that it
    has open and that was changed meanwhile is an error, unless `accept_changed_files`. `verifier`, `audience` and
    `key_keeper` (two URLs, and a name for the latter) are needed for the checkpoint of a sealed guest: who attests this
    platform, for whom, and who then releases the key. `parents` are where checkpoints are that it was saved on top of,
    if they were moved. The other options are as for Guest.
    Raises CheckpointError if a file is missing, damaged or does not fit this machine, AttestationError if the key is
    not released, and UsageError for a policy that there is not or that misbehaves; nothing runs then.
    """
    how = ["--lazy" if lazy else "--eager"] if policy is None else [f"--policy={policy}"]
    if not lazy and policy not in (None, "eager"):
        raise UsageError(f"a restore with policy {policy!r} is lazy", hint="leave lazy=False or the policy away")
    how += ["--no-background"] * (not background) + ["--record"] * record + ["--report"] * report + ["--score"] * score
    if window is not None:
        how.append(f"--window={window:f}")
    options = manager_options(name, engine, time_limit, strict, strace, cpu, tpm, pause_after_calls)
    options += [f"--parent={os.fspath(parent)}" for parent in parents]
    options += view_options(ro, rw, pass_through) + disk_options(disks)
    options += ["--accept-changed-files"] * accept_changed_files + ["--without-disks"] * without_disks
    asked = {"verifier": verifier, "audience": audience, "key-keeper": key_keeper}
    options += [f"--{option}={value}" for option, value in asked.items() if value]
    command, operands = ["restore", *options, *how], ["--", os.fspath(path)]
    manager = ManagedProcess.start(command, operands, None, (stdin, stdout, stderr))
    return Guest.adopted(manager.await_guest(), manager)


def kill_if_paused(guest: Guest) -> None:
    """End a guest that stands still: it would hear no signal until it goes on, and is not let go on for that."""
    try:
        with guest._connect() as client:
            if client.status().state is RunState.PAUSED:
                client.kill("it was paused when the program that started it closed it")
    except (ControlError, GuestStateError):
        pass  # it is just ending, or its manager does not answer, which whoever waits for its end will see
