"""What somebody of the same machine tries on processes: the numbers of those are the arguments, JSON is the answer.

A program of its own, of the standard library alone, so that a test can run it as any user. For each process and attack
it tells what it got, or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/ptrace.h
_PROCESS_VM_READV, _PROCESS_VM_WRITEV, _PTRACE, _PIDFD_OPEN, _PIDFD_GETFD = 310, 311, 101, 434, 438
_MOVE_PAGES, _GET_ROBUST_LIST, _PRLIMIT64, _KCMP = 279, 274, 302, 312
_RLIMIT_CORE = 4
_NOTHING = 4096
"""An address where nothing is mapped."""
_PTRACE_ATTACH, _PTRACE_SEIZE, _PTRACE_DETACH = 16, 0x4206, 17
_RAM_BASE = 0x400000


def _call(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def memory(pid: int) -> object:
    with open(f"/proc/{pid}/mem", "rb", buffering=0):
        return "open"


def readv(pid: int) -> object:
    buffer = ctypes.create_string_buffer(64)
    ours = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 64)
    theirs = (ctypes.c_ulong * 2)(_RAM_BASE, 64)
    return _call(_PROCESS_VM_READV, pid, ctypes.addressof(ours), 1, ctypes.addressof(theirs), 1, 0)


def writev(pid: int) -> object:
    """Where it would do no harm: whether it may is asked first."""
    buffer = ctypes.create_string_buffer(b"x", 1)
    ours = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 1)
    theirs = (ctypes.c_ulong * 2)(_NOTHING, 1)
    return _call(_PROCESS_VM_WRITEV, pid, ctypes.addressof(ours), 1, ctypes.addressof(theirs), 1, 0)


def move_pages(pid: int) -> object:
    """Where each page is, which tells those that are there."""
    pages, status = (ctypes.c_ulong * 1)(_RAM_BASE), (ctypes.c_int * 1)()
    return _call(_MOVE_PAGES, pid, 1, ctypes.addressof(pages), 0, ctypes.addressof(status), 0)


def robust_list(pid: int) -> object:
    head, size = ctypes.c_ulong(), ctypes.c_ulong()
    return _call(_GET_ROBUST_LIST, pid, ctypes.addressof(head), ctypes.addressof(size))


def compare(pid: int) -> object:
    """Whether two descriptors are of one file."""
    return _call(_KCMP, pid, pid, 0, 0, 1)


def allow_core(pid: int) -> object:
    limit = (ctypes.c_ulong * 2)(2**64 - 1, 2**64 - 1)
    return _call(_PRLIMIT64, pid, _RLIMIT_CORE, ctypes.addressof(limit), 0)


def seize(pid: int) -> object:
    _call(_PTRACE, _PTRACE_SEIZE, pid, 0, 0)
    return "traced"


def attach(pid: int) -> object:
    _call(_PTRACE, _PTRACE_ATTACH, pid, 0, 0)
    os.waitpid(pid, 0)
    _call(_PTRACE, _PTRACE_DETACH, pid, 0, 0)
    return "traced"


def take_descriptor(pid: int) -> object:
    pidfd = _call(_PIDFD_OPEN, pid, 0)
    failed = OSError(errno.EBADF, "none")
    for number in range(64):
        try:
            return _call(_PIDFD_GETFD, pidfd, number, 0)
        except OSError as error:
            if error.errno != errno.EBADF:
                failed = error
    raise failed


def list_descriptors(pid: int) -> object:
    return [path.name for path in Path(f"/proc/{pid}/fd").iterdir()]


def open_descriptor(pid: int) -> object:
    """By its name, which need not be listed."""
    return _first_opened((f"/proc/{pid}/fd/{number}" for number in range(64)), os.O_RDONLY | os.O_NONBLOCK)


def open_mapping(pid: int) -> object:
    return [path.name for path in Path(f"/proc/{pid}/map_files").iterdir()]


def open_mapping_by_name(pid: int) -> object:
    """Guest RAM by its address, which is known, whatever its first mapping's size is."""
    folder = f"/proc/{pid}/map_files"
    return _first_opened(
        (f"{folder}/{_RAM_BASE:x}-{_RAM_BASE + pages * 4096:x}" for pages in range(1, 512)), os.O_RDONLY
    )


def write_descriptor(pid: int) -> object:
    """Of memory files, which could be mapped then."""
    return _first_opened((f"/proc/{pid}/fd/{number}" for number in range(64)), os.O_RDWR | os.O_NONBLOCK)


def _first_opened(names: Iterable[str], flags: int) -> str:
    """The first of some files that can be opened. Raises OSError, why the last one could not, if none can."""
    failed: OSError | None = None
    for name in names:
        try:
            os.close(os.open(name, flags))
        except OSError as error:
            failed = error
        else:
            return name
    raise failed or OSError(errno.EBADF, "none")


def _opened(name: str, flags: int = os.O_RDONLY) -> Callable[[int], object]:
    def attack(pid: int) -> object:
        os.close(os.open(f"/proc/{pid}/{name}".replace("SELF", str(pid)), flags))
        return "open"

    return attack


def _linked(name: str) -> Callable[[int], object]:
    return lambda pid: str(Path(f"/proc/{pid}/{name}").readlink())


def _readable(name: str) -> Callable[[int], object]:
    return lambda pid: bool(Path(f"/proc/{pid}/{name}").read_bytes()) or "empty"


ATTACKS: dict[str, Callable[[int], object]] = {
    "/proc/PID/mem": memory,
    "/proc/PID/task/TID/mem": _opened("task/SELF/mem"),
    "/proc/PID/mem to write": _opened("mem", os.O_WRONLY),
    "process_vm_readv": readv,
    "process_vm_writev": writev,
    "move_pages": move_pages,
    "get_robust_list": robust_list,
    "kcmp": compare,
    "prlimit core": allow_core,
    "ptrace seize": seize,
    "ptrace attach": attach,
    "pidfd_getfd": take_descriptor,
    "/proc/PID/fd": list_descriptors,
    "/proc/PID/fd/N": open_descriptor,
    "/proc/PID/fd/N to write": write_descriptor,
    "/proc/PID/map_files": open_mapping,
    "/proc/PID/map_files by name": open_mapping_by_name,
    "/proc/PID/clear_refs": _opened("clear_refs", os.O_WRONLY),
    **{f"/proc/PID/{name}": _opened(name) for name in ("pagemap", "root", "cwd", "ns/mnt", "exe", "timers")},
    **{f"link /proc/PID/{name}": _linked(name) for name in ("root", "cwd", "exe", "ns/user")},
    **{
        f"/proc/PID/{name}": _readable(name)
        for name in (
            *("maps", "smaps", "smaps_rollup", "numa_maps", "environ", "auxv", "syscall", "stack"),
            *("personality", "io"),
        )
    },
}


def main() -> None:
    """Try everything."""
    found: dict[str, dict[str, object]] = {}
    for pid in map(int, sys.argv[1:]):
        outcome = found[str(pid)] = {}
        for name, attack in ATTACKS.items():
            child = os.fork()  # what is traced is let go of when its tracer ends
            if child == 0:
                with suppress(BaseException):
                    try:
                        result: object = ["got", attack(pid)]
                    except OSError as error:
                        result = ["failed", errno.errorcode.get(error.errno or 0, str(error))]
                    os.write(3, json.dumps(result).encode())
                os._exit(0)
            os.waitpid(child, 0)
            outcome[name] = json.loads(os.pread(3, 1 << 16, 0) or b'["failed", "crashed"]')
            os.ftruncate(3, 0)
            os.lseek(3, 0, os.SEEK_SET)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    note = os.memfd_create("outcome")
    os.dup2(note, 3)
    main()
