"""What this machine can do for memvm, found out by doing it.

Nothing here looks at the kernel's version. Each capability is tried, in this process or in a child that
lives for milliseconds, and what fails says why and what to do. The last word is a trial guest: a stub that
goes through every step of a real guest's start. `probe` never raises because of what a machine lacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memvm.disk.vector_xts import vector_code
from memvm.errors import HostError
from memvm.linux import libc, memfd, ptrace, seccomp
from memvm.linux.pagemap import Pagemap
from memvm.linux.secret_memory import Guard, SecretMemory
from memvm.linux.userfaultfd import (
    SYSCALL_USERFAULTFD,
    UFFD_USER_MODE_ONLY,
    Feature,
    RegisterMode,
    Userfaultfd,
)
from memvm.machine import surveys
from memvm.machine.layout import RAM_BASE
from memvm.machine.stub import Stub
from memvm.machine.stub_image import stub_image
from memvm.machine.vcpu import XCR0_OFFSET, feature_names, xsave_features
from memvm.memory.ram import GuestRam
from memvm.memory.uffd_engine import REQUIRED
from memvm.memory.write_scan import WANTED
from memvm.units import GIB, MIB, PAGE_SIZE, format_size

_SYSCALL_MPROTECT = 10  # arch/x86/entry/syscalls/syscall_64.tbl
_SECCOMP_GET_ACTION_AVAIL = 2  # include/uapi/linux/seccomp.h
_IN_CONTAINER = "in a container, allow it: docker run --security-opt seccomp=unconfined --cap-add SYS_PTRACE"
_EXPECTED = (OSError, HostError, ImportError, ValueError, ptrace.ThreadGone)
"""What a trial raises where a machine cannot do it. Anything else is a bug in memvm, and is raised."""


@dataclass(frozen=True)
class Capability:
    """One thing that this machine can or cannot do."""

    name: str
    available: bool
    detail: str
    """What was found, or how the trial failed."""
    advice: str = ""
    """What to do about it; empty where there is nothing to do."""
    required: bool = False
    """Without it no guest can run; all else only costs a feature, room or speed."""


def probe(runtime_dir: Path | None = None) -> list[Capability]:
    """Try everything; takes about a tenth of a second. Call it from a thread that traces nothing else.

    `runtime_dir` is where managers keep their sockets; it is looked at if it is given, and not made.
    """
    capabilities = [_platform()]
    for name, trial, required, advice in _TRIALS:
        capabilities.append(_tried(name, trial, required, advice))
    capabilities += _guest_capabilities()
    for name, survey, advice in _SURVEYS:
        capabilities.append(_surveyed(name, survey, advice))
    if runtime_dir is not None:
        capabilities.append(
            _tried("run-time directory", lambda: surveys.runtime_directory(runtime_dir), True, _DIRECTORY_ADVICE)
        )
    return capabilities


def _tried(name: str, trial: Callable[[], str], required: bool, advice: str) -> Capability:
    """A trial either works, and returns what it found, or raises."""
    try:
        return Capability(name, True, trial(), required=required)
    except _EXPECTED as error:
        return Capability(name, False, str(error), advice, required)


def _surveyed(name: str, survey: Callable[[], tuple[bool, str]], advice: str) -> Capability:
    """A survey reads what the machine says of itself: whether it is enough, and what it is."""
    try:
        enough, detail = survey()
    except _EXPECTED as error:
        return Capability(name, False, str(error), advice)
    return Capability(name, enough, detail, "" if enough else advice)


def _platform() -> Capability:
    system = os.uname()
    fits = system.sysname == "Linux" and system.machine == "x86_64"
    detail = f"{system.sysname} {system.release} on {system.machine}"
    return Capability("platform", fits, detail, "" if fits else "memvm runs on x86-64 Linux only", required=True)


# Trials: each raises what the kernel raised.


def _guest_ram() -> str:
    ram = GuestRam(RAM_BASE, GIB)
    try:
        ram.write(RAM_BASE, b"\x01")
        used = os.fstat(ram.fd).st_blocks * 512
    finally:
        ram.close()
    return f"1 GiB made and mapped; one byte written takes {format_size(used)}"


def _executable_memory_file() -> str:
    fd = memfd.create_executable("memvm-probe", stub_image())
    try:
        # Without the pipe that it wants to wait on, the stub ends at once.
        pid = os.posix_spawn(f"/proc/self/fd/{fd}", ["memvm-probe"], {})
    finally:
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(f"the program in the memory file ended with wait status {status:#x}")
    setting = surveys.setting("/proc/sys/vm/memfd_noexec")
    return "a program in a memory file ran" + (f" (vm.memfd_noexec = {setting})" if setting else "")


def _ptrace() -> str:
    with _idle_child() as pid:
        ptrace.seize(pid, ptrace.Option.EXITKILL)
        ptrace.interrupt(pid)
        ptrace.wait(pid)
        ptrace.get_registers(pid)
    scope = surveys.setting("/proc/sys/kernel/yama/ptrace_scope")
    return "seized and stopped a child" + (f" (kernel.yama.ptrace_scope = {scope})" if scope else "")


def _pidfd() -> str:
    with _idle_child() as pid:
        os.close(os.pidfd_open(pid))
    return "opened one of a child"


@contextlib.contextmanager
def _idle_child() -> Iterator[int]:
    """A child that waits for the end of its standard input, and is killed after the block: its pid."""
    wait_end, keep_alive = os.pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", "import os; os.read(0, 1)"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, wait_end, 0)],
        )
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)
            _wait_until_ended(pid)
    finally:
        os.close(wait_end)
        os.close(keep_alive)


def _wait_until_ended(pid: int) -> None:
    while os.WIFSTOPPED(ptrace.wait(pid)[1]):
        pass


def _user_notification() -> str:
    action = ctypes.c_uint32(seccomp.Action.USER_NOTIF)
    libc.syscall(seccomp.SYSCALL_SECCOMP, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.addressof(action))
    return "known to the kernel"


def _userfaultfd() -> str:
    offered = _handshake(Userfaultfd.offer)
    lacking = REQUIRED & ~offered
    if lacking:
        raise OSError(f"the kernel's userfaultfd lacks {_names(lacking)}")
    _handshake(lambda uffd: uffd.enable(REQUIRED))
    missing = Feature(sum(Feature)) & ~offered
    kept_from = surveys.setting("/proc/sys/vm/unprivileged_userfaultfd")
    return (
        f"user-mode faults as uid {os.getuid()}, features {int(offered):#x}"
        + (f" without {_names(missing)}" if missing else "")
        + (f" (vm.unprivileged_userfaultfd = {kept_from})" if kept_from else "")
    )


def _handshake(exchange: Callable[[Userfaultfd], Feature]) -> Feature:
    fd = libc.syscall(SYSCALL_USERFAULTFD, os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    try:
        return exchange(Userfaultfd(fd))
    finally:
        os.close(fd)


def _names(features: Feature) -> str:
    return ", ".join(feature.name or hex(feature) for feature in features)


def _write_notes() -> str:
    """Notes one write to a page of this process, as a WriteScan does it in a guest."""
    fd = libc.syscall(SYSCALL_USERFAULTFD, os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, fd)
        uffd = Userfaultfd(fd)
        uffd.enable(WANTED)
        page = cleanup.enter_context(mmap.mmap(-1, PAGE_SIZE))
        view = ctypes.c_char.from_buffer(page)
        start = ctypes.addressof(view)
        del view  # or the mapping could not be closed
        pagemap = Pagemap(os.getpid())
        cleanup.callback(pagemap.close)
        uffd.register(start, PAGE_SIZE, RegisterMode.WP)
        uffd.write_protect(start, PAGE_SIZE)
        page[0] = 1
        found = list(pagemap.written(start, start + PAGE_SIZE))
    if found != [(start, start + PAGE_SIZE)]:
        raise OSError(f"one page was written, and the kernel noted {len(found)} ranges")
    return "memvm dirty costs guests no faults (WP_ASYNC with PAGEMAP_SCAN)"


def _memory_for_keys() -> str:
    with SecretMemory(PAGE_SIZE) as tried:
        guard = tried.guard
    if guard is Guard.ORDINARY:
        raise OSError("this user may lock no memory: keys may be written to swap")
    if guard is Guard.LOCKED:
        return "locked, and in no core dump; the kernel has no memfd_secret, which would keep root out, too"
    return "memfd_secret: in no swap and no core dump, and not even root reads it in /proc"


_TRIALS: list[tuple[str, Callable[[], str], bool, str]] = [
    (
        "guest RAM",
        _guest_ram,
        True,
        "raise the limits on address space and file size (ulimit -v unlimited; ulimit -f unlimited)",
    ),
    (
        "executable memory file",
        _executable_memory_file,
        True,
        f"as root: sysctl vm.memfd_noexec=0; {_IN_CONTAINER}",
    ),
    (
        "ptrace of children",
        _ptrace,
        True,
        f"as root: sysctl kernel.yama.ptrace_scope=1 (2 and 3 forbid it); {_IN_CONTAINER}",
    ),
    ("process descriptors", _pidfd, True, f"pidfd_open came with Linux 5.3; {_IN_CONTAINER}"),
    ("seccomp user notification", _user_notification, True, f"it came with Linux 5.0; {_IN_CONTAINER}"),
    (
        "userfaultfd",
        _userfaultfd,
        False,
        f"guests run with --engine mprotect; for userfaultfd, Linux 5.19 or later is needed; {_IN_CONTAINER}",
    ),
    (
        "noted writes",
        _write_notes,
        False,
        "memvm dirty uses write guards instead, a fault for each page written between two looks; Linux 6.7 brought "
        "WP_ASYNC and PAGEMAP_SCAN",
    ),
    (
        "memory for keys",
        _memory_for_keys,
        False,
        "let this user lock some: ulimit -l 8192, which /etc/security/limits.conf (memlock) may have to allow; or "
        "encrypt the swap",
    ),
]


# The trial guest.


def _guest_capabilities() -> list[Capability]:
    """Take a stub through the whole start of a guest, as far as it goes."""
    found: list[Capability] = []
    try:
        with _trial_stub() as (stub, ram):
            found.append(_xsave(ptrace.get_xstate(stub.pid)))
            found.append(_engine(stub, ram))
            found.append(_sealed(stub, ram))
    except _EXPECTED as error:
        advice = "first see to what is missing above"
        found.append(Capability("trial guest", False, str(error), advice, required=True))
    return found


@contextlib.contextmanager
def _trial_stub() -> Iterator[tuple[Stub, GuestRam]]:
    ram = GuestRam(RAM_BASE, 4 * MIB)
    stub = Stub()
    try:
        stub.start(ram)
        yield stub, ram
    finally:
        if stub.pid:
            os.kill(stub.pid, signal.SIGKILL)  # also if there was no pidfd to be had
            _wait_until_ended(stub.pid)
        stub.close()
        ram.close()


def _xsave(area: bytes) -> Capability:
    names = feature_names(xsave_features(area, XCR0_OFFSET))
    return Capability("XSAVE area", True, f"{len(area)} bytes: {', '.join(names)}", required=True)


def _engine(stub: Stub, ram: GuestRam) -> Capability:
    """Which fault engine `--engine auto` takes, and why: userfaultfd if it works on a guest's memory."""
    try:
        fd = stub.open_userfaultfd(ram)
        try:
            uffd = Userfaultfd(fd)
            uffd.enable(REQUIRED)
            uffd.register(ram.base, ram.size, RegisterMode.MISSING | RegisterMode.WP)
            uffd.unregister(ram.base, ram.size)
        finally:
            os.close(fd)
    except OSError as error:
        return Capability("fault engine", True, f"mprotect, because userfaultfd does not work here: {error}")
    return Capability("fault engine", True, "userfaultfd, which works on a guest's memory (--engine auto)")


def _sealed(stub: Stub, ram: GuestRam) -> Capability:
    # Sealing itself ends with an mprotect behind the filter: like a real guest's, it is to be a ptrace stop.
    listener = stub.seal(ram, "memvm-probe", frozenset({_SYSCALL_MPROTECT}))
    try:
        together = listener.hand_over_on_one_cpu()
    finally:
        os.close(listener.fd)
    detail = "a guest process was started, filtered and answered"
    if together:
        return Capability("trial guest", True, f"{detail}, with synchronous wake-ups", required=True)
    advice = "Linux 6.6 brought synchronous wake-ups: with them, guest and manager hand over faster"
    return Capability("trial guest", True, f"{detail}, without synchronous wake-ups", advice, required=True)


def _disk_encryption() -> tuple[bool, str]:
    code, detail = vector_code()
    return code is not None, detail


_SURVEYS: list[tuple[str, Callable[[], tuple[bool, str]], str]] = [
    ("CPUs", surveys.cpus, "with one CPU, loading and saving take time from the guest"),
    ("memory", surveys.memory, "give guests less RAM (--ram), or free some"),
    (
        "mappings",
        surveys.map_count,
        f"as root: sysctl vm.max_map_count={surveys.DEFAULT_MAP_COUNT}; the mprotect engine needs many",
    ),
    (
        "huge pages for shared memory",
        surveys.huge_pages,
        "sparse guest RAM takes 2 MiB where a guest touches a byte; as root: "
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
    ),
    (
        "limits",
        surveys.limits,
        f"ulimit -n {surveys.COMFORTABLE_DESCRIPTORS} or more; ulimit -v unlimited and ulimit -f unlimited: "
        "guest RAM counts against both",
    ),
    (
        "compression",
        surveys.zstandard,
        "install zstandard with its C backend: pip install --force-reinstall zstandard",
    ),
    (
        "disk encryption at full speed",
        _disk_encryption,
        "disks are decrypted a sector at a time, by the cryptography package, at less than a tenth of that speed",
    ),
]

_DIRECTORY_ADVICE = "set MEMVM_RUNTIME_DIR to a directory of your own with a short path"
