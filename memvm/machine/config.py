"""What a guest is started with, what it looks like from outside while it runs, and how it ended.

Named tuples, here and in all that a restore needs: dataclasses would be a sixth of what a guest waits for, since
they import much and each is compiled when it is made. Nor are annotations text in this module, as they are elsewhere:
typing compiles each one that is.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from memvm.machine.settings import Name, Setting
from memvm.units import GIB

if TYPE_CHECKING:  # most guests are given no files
    from memvm.files.specs import ViewSpec

SAMPLE_PAGES, SAMPLE_INTERVAL = 128, 1.0
"""How the working set is sampled unless somebody says otherwise: pages, and seconds for each sample."""


class EngineChoice(StrEnum):
    """Which fault engine to use; AUTO probes for userfaultfd and falls back to mprotect."""

    AUTO = "auto"
    USERFAULTFD = "userfaultfd"
    MPROTECT = "mprotect"


class RunState(StrEnum):
    """Where a guest is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class RunOptions(NamedTuple):
    """How a manager runs a guest, new or restored; nothing of this is part of the guest's state."""

    name: str
    engine: EngineChoice = EngineChoice.AUTO
    strict: bool = False
    """An unknown hypercall ends the guest with an error instead of ENOSYS."""
    strace: bool = False
    """Print each hypercall, decoded, with its answer on standard error."""
    cpu: int | None = None
    """CPU for the guest and the threads that answer it; None lets the manager choose."""
    pause_after: int = 0
    """The guest is paused when it has made so many hypercalls; 0 for never."""
    sealed: bool = False
    """Keep everybody else of this user out of the guest's process, and its registers out of crash reports."""


class GuestConfig(NamedTuple):
    """What a new guest is: the program, its arguments and environment, its RAM size in bytes, files and identity."""

    program: str
    """A path; with views also a name, which is looked for in the PATH of `env`."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = MappingProxyType({})
    ram_size: int = GIB
    views: "tuple[ViewSpec, ...]" = ()
    """What it is given of the host's files."""
    cwd: str = ""
    """Where in its tree it begins; "" for the host's working directory if its tree has that, and else the root."""
    hostname: str = "memvm"
    cpus: int = 1
    """How many CPUs it is told that it has."""
    settings: Mapping[Name, Setting] = MappingProxyType({})
    """Security settings that are not those of default_settings."""
    key_keeper: bytes | None = None
    """Of a sealed guest: the public key (X25519) of who keeps the key of its checkpoints; empty if it has none."""


class ExitStatus(NamedTuple):
    """How a guest ended."""

    code: int
    """Exit status as a shell would report it: the guest's own, or 128 + signal number."""
    signal: int | None = None
    reason: str = ""
    """For people: empty for an ordinary exit, otherwise a report that may have several lines."""


class GuestStatus(NamedTuple):
    """A snapshot of a guest's figures; sizes in bytes, times in seconds."""

    name: str
    program: str
    state: RunState
    manager_pid: int
    guest_pid: int
    engine: str
    ram_size: int
    ram_touched: int
    """Bytes of guest RAM that have ever been written, or loaded, and hold memory now; and what was preallocated for
    first touches to come (machine/preallocating.py)."""
    ram_deferred: int
    """Bytes whose contents are still in the checkpoint."""
    cpu_time: float
    uptime: float
    hypercalls: int
    unknown_calls: dict[str, int]
    faults: int
    """Page faults that the manager answered."""
    restored_from: str = ""
    clone: int = 0
    """Which clone it is, from 1, of those that were started together; 0 if it is none."""
    clones: int = 0
    """How many those were."""
    first_output: float | None = None
    """Seconds from the guest's start, or restart, to its first write to a stream."""
    first_output_deferred: int = 0
    """Bytes that were still deferred then."""
    first_output_faults: int = 0
    """Page faults that the manager had answered by then."""
    fault_p50: float | None = None
    """Seconds that half of the page faults took in the manager, from message to answer; None before the first."""
    fault_p99: float | None = None
    """The same for 99 of 100."""
    dirty_rate: float | None = None
    """Bytes of guest RAM written a second, each page counted once a look (DirtyTracker); None if nobody looks."""
    working_set_size: int | None = None
    """Bytes that the guest is estimated to access within one sampling interval; None while nobody samples."""
    working_set_error_size: int | None = None
    """The estimate's standard error, in bytes."""
