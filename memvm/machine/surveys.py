"""What this machine says of itself: room, limits and settings that decide how well guests run.

Each survey tells whether there is enough, and what there is, in words. It may raise OSError (or
ImportError) where the kernel, or an installation, has not even that.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from memvm.units import GIB, format_size

DEFAULT_MAP_COUNT = 65530
COMFORTABLE_DESCRIPTORS = 256
COMFORTABLE_SPACE = 8 * GIB
"""Address space, and file size: guest RAM counts once against each, the host view once more."""
_SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its final zero
_SOCKET_NAME_ROOM = 40
"""Bytes that a guest's name and the socket's own add to the run-time directory's path."""


def cpus() -> tuple[bool, str]:
    """CPUs that this process may use, and whether it may choose among them."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed)
    detail = f"{len(allowed)} of {os.cpu_count()} allowed, affinity can be set"
    return len(allowed) > 1, detail


def memory() -> tuple[bool, str]:
    """Memory that new guests could have."""
    import psutil

    memory = psutil.virtual_memory()
    return (
        memory.available >= GIB,
        f"{format_size(memory.available)} of {format_size(memory.total)} available",
    )


def map_count() -> tuple[bool, str]:
    """The bound on mappings of one process: how finely mprotect can cut guest RAM."""
    limit = int(setting("/proc/sys/vm/max_map_count") or 0)
    return limit >= DEFAULT_MAP_COUNT, f"vm.max_map_count = {limit}"


def huge_pages() -> tuple[bool, str]:
    """Whether memory files get huge pages unasked, which makes sparse RAM dense."""
    text = setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if not text:
        return True, "the kernel has none"
    chosen = text.partition("[")[2].partition("]")[0]
    return chosen not in ("always", "force"), f"shmem_enabled is {chosen}"


def limits() -> tuple[bool, str]:
    """The resource limits that guests and managers run into (getrlimit(2))."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    file_size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    enough = (
        _allows(descriptors, COMFORTABLE_DESCRIPTORS)
        and _allows(space, COMFORTABLE_SPACE)
        and _allows(file_size, COMFORTABLE_SPACE)
    )
    return enough, (
        f"descriptors {_limit_text(descriptors)}, "
        f"address space {_limit_text(space, format_size)}, file size {_limit_text(file_size, format_size)}"
    )


def _allows(limit: int, wanted: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= wanted


def _limit_text(limit: int, shown: Callable[[float], str] = str) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else shown(limit)


def zstandard() -> tuple[bool, str]:
    """Which zstd library compresses checkpoints, and through which binding."""
    import zstandard

    library = ".".join(map(str, zstandard.ZSTD_VERSION))
    return zstandard.backend == "cext", f"zstd {library} by the {zstandard.backend} backend"


def runtime_directory(path: Path) -> str:
    """Whether managers could put their sockets there: asks, and makes nothing."""
    if len(os.fsencode(path)) + _SOCKET_NAME_ROOM > _SOCKET_PATH_LIMIT:
        raise OSError(f"{path} is too long for the address of a socket")
    there = path
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OSError(f"{there} is not a directory that this user can write to")
    if there == path and path.stat().st_uid != os.getuid():
        raise OSError(f"{path} belongs to another user (uid {path.stat().st_uid})")
    return f"{path}" if there == path else f"{path}, to be made when the first guest starts"


def setting(path: str) -> str:
    """The text of a kernel setting; "" where this kernel does not have it."""
    try:
        return Path(path).read_text().strip()
    except FileNotFoundError:
        return ""
