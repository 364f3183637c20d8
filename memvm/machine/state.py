"""What a checkpoint keeps of a guest beside RAM: captured from a machine, written as JSON, checked, and put back.

The JSON comes from a file that anybody may have written. Reading it checks the type and the bounds of each field, so
that nothing behind this module meets a value that a capture could not have made.
"""

from __future__ import annotations

import json
import os
import stat
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.errors import CheckpointError, SaveError
from memvm.foreign_json import read_json
from memvm.machine.clocks import clock_id
from memvm.machine.fields import I64, Fields, blob, integer, listed, text, truth
from memvm.machine.files_state import MOST_OPEN, FilesState
from memvm.machine.hypercalls.table import Call
from memvm.machine.launched import Launched
from memvm.machine.shared_files import SavedMapping
from memvm.machine.signals import ACTION_SIZE, MOST_WAITING, SIGNAL_COUNT, Signal
from memvm.machine.space import Region, RegionKind
from memvm.machine.streams import MAX_DESCRIPTORS, OpenFile
from memvm.machine.thread import MOST_THREADS
from memvm.machine.thread_state import ThreadState, read_signal, read_thread, signals_to_json
from memvm.machine.timers import ITIMER_PROF, MOST_TIMERS, Timer
from memvm.machine.vcpu import VcpuState
from memvm.memory.protection import Prot
from memvm.units import PAGE_SIZE

if TYPE_CHECKING:
    from memvm.machine.machine import Machine

_MAX_REGIONS = 1 << 20


class StreamState(NamedTuple):
    """A standard stream: the guest's flag, and the position if it was a regular file, and which."""

    nonblocking: bool
    offset: int | None
    device: int
    inode: int


class GuestState(NamedTuple):
    """A guest without its RAM. Times are in ns; `monotonic` is the guest's CLOCK_MONOTONIC at the save."""

    program: str
    argv: tuple[str, ...]
    image_bias: int
    regions: tuple[Region, ...]
    heap: tuple[int, int]
    threads: tuple[ThreadState, ...]
    """The first one is the oldest."""
    monotonic: int
    cpu_time: int
    saved_at: int
    """CLOCK_REALTIME of the host at the save."""
    actions: dict[int, bytes]
    waiting_signals: tuple[Signal, ...]
    """Those for the guest as a whole."""
    timers: dict[int, Timer]
    descriptors: tuple[tuple[int, int, bool], ...]
    """Guest descriptor, what it refers to (a standard stream, or 3 and more for what is open in `files`),
    close-on-exec."""
    streams: tuple[StreamState, ...]
    umask: int
    generation: int
    files: FilesState = FilesState()
    """Its tree, and what is open beside the standard streams."""
    shared: tuple[SavedMapping, ...] = ()
    """The files that are mapped shared."""
    launched: dict[str, Any] | None = None
    """As Launched.to_fields has it; None in files of versions that measured nothing."""

    @property
    def vcpu(self) -> VcpuState:
        """The first thread's registers."""
        return self.threads[0].vcpu

    @property
    def blocked(self) -> Call | None:
        """The call that the first thread waits in."""
        return self.threads[0].blocked

    @property
    def disks(self) -> int:
        """How many it had; 0 also if an older version saved it, which did not say."""
        return 0 if self.launched is None else int(self.launched.get("disks", 0))

    @classmethod
    def capture(cls, machine: Machine) -> GuestState:
        """The state of a guest that stands still (within `Machine.frozen`). Raises BadSector, SaveError."""
        guest = machine.guest
        for disk in guest.disks:
            disk.flush()  # it takes what it has written for written
        try:
            guest.shared.collect_all()
        except OSError as error:
            raise SaveError(
                f"what guest {machine.options.name} stored in mappings of files cannot be written: {error.strerror}"
            ) from error
        files, indices = FilesState.capture(guest)
        return cls(
            program=guest.program,
            argv=guest.argv,
            image_bias=guest.image_bias,
            regions=tuple(guest.space),
            heap=(guest.space.heap_start, guest.space.heap_end),
            threads=tuple(map(ThreadState.capture, guest.threads.values())),
            monotonic=guest.clocks.monotonic(),
            cpu_time=guest.clocks.cpu_time(),
            saved_at=time.time_ns(),
            actions=dict(guest.signals.actions),
            waiting_signals=tuple(guest.signals.shared.waiting),
            timers=dict(guest.timers.table),
            descriptors=tuple(
                (number, indices[file.stream], file.close_on_exec) for number, file in guest.files.table.items()
            ),
            streams=tuple(
                StreamState(stream.nonblocking, stream.offset(), *_identity(stream.host_fd))
                for stream in guest.files.streams
            ),
            umask=guest.umask,
            generation=guest.generation,
            files=files,
            shared=guest.shared.capture(indices.__getitem__),
            launched=guest.launched.to_fields(),
        )

    def adopt_into(self, machine: Machine) -> None:
        """Give a fresh machine this state; on the tracer's thread. Raises CheckpointError, HostError."""
        guest = machine.guest
        # first: what it is given of files, now or then, has to be what its settings allow
        machine.adopt_launch(Launched() if self.launched is None else Launched.from_fields(self.launched))
        guest.launched.disks = 0  # it is given them when it is made
        guest.program, guest.argv, guest.image_bias = self.program, self.argv, self.image_bias
        guest.space.adopt(list(self.regions), *self.heap)
        guest.clocks.resume_at(self.monotonic)
        guest.clocks.cpu_before = self.cpu_time
        guest.signals.actions = dict(self.actions)
        guest.signals.shared.waiting = list(self.waiting_signals)
        guest.timers.adopt(self.timers)
        streams = guest.files.streams
        opened = [*streams, *self.files.adopt_into(guest)]
        table = {number: OpenFile(opened[index], flag) for number, index, flag in self.descriptors}
        for number in list(guest.files.table):  # now: what has lost its last descriptor would be watched no more
            guest.files.close(number)
        guest.files.adopt(table)
        try:
            guest.shared.adopt(self.shared, opened, guest.changed_files)
        except OSError as error:
            raise CheckpointError(f"a file that the guest has mapped cannot be read: {error.strerror}") from error
        for stream, saved in zip(streams, self.streams, strict=True):
            stream.nonblocking = saved.nonblocking
        self._continue_input(streams[0].host_fd)
        guest.umask = self.umask
        guest.generation = self.generation + 1
        made = [machine.vcpus.add(thread.tid) for thread in self.threads]  # at the cost of the first one's registers
        for thread, state in zip(made, self.threads, strict=True):
            state.adopt_into(thread)
        guest.futexes.adopt([call for t in guest.threads.values() if (call := t.blocked) and call.place])

    def _continue_input(self, host_fd: int) -> None:
        """If standard input is the regular file that it was, go on reading where the guest was."""
        saved = self.streams[0]
        if saved.offset is not None and (saved.device, saved.inode) == _identity(host_fd):
            os.lseek(host_fd, saved.offset, os.SEEK_SET)

    def to_json(self) -> bytes:
        """As bytes for the checkpoint's state section."""
        first, *others = (thread.to_fields() for thread in self.threads)
        fields = first | {
            "program": text(os.fsencode(self.program)),
            "argv": [text(os.fsencode(argument)) for argument in self.argv],
            "image_bias": self.image_bias,
            "regions": [[r.start, r.end, int(r.protection), str(r.kind)] for r in self.regions],
            "heap": list(self.heap),
            "monotonic": self.monotonic,
            "cpu_time": self.cpu_time,
            "saved_at": self.saved_at,
            "actions": [[number, text(action)] for number, action in self.actions.items()],
            "shared_signals": signals_to_json(self.waiting_signals),
            "timers": [[identity, *timer] for identity, timer in self.timers.items()],
            "descriptors": [list(entry) for entry in self.descriptors],
            "streams": [[s.nonblocking, s.offset, s.device, s.inode] for s in self.streams],
            "umask": self.umask,
            "generation": self.generation,
            "files": self.files.to_json(),
            "threads": others,
            "shared": [list(mapping) for mapping in self.shared],
            "launched": self.launched,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, raw: bytes, ram_base: int, ram_size: int, where: str) -> GuestState:
        """Read and check a state section. Raises CheckpointError, naming `where` it is."""
        try:
            fields = read_json(raw)
            return _read(Fields(fields), ram_base, ram_base + ram_size)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSON's errors are ValueErrors
            raise CheckpointError(
                f"{where}: the guest's state makes no sense: {error}",
                hint="take another copy of the file, or another checkpoint",
            ) from error


def _identity(fd: int) -> tuple[int, int]:
    """Device and inode of a regular file; zeros for anything else."""
    try:
        facts = os.fstat(fd)
    except OSError:  # closed by whoever started us
        return 0, 0
    return (facts.st_dev, facts.st_ino) if stat.S_ISREG(facts.st_mode) else (0, 0)


def _read(fields: Fields, low: int, high: int) -> GuestState:
    regions = fields.items("regions", _MAX_REGIONS, lambda value: _region(value, low, high))
    if any(first.end > second.start for first, second in pairwise(regions)):
        raise ValueError("regions overlap or are out of order")
    heap = fields.items("heap", 2, lambda value: integer(value, "heap", high, low))
    if len(heap) != 2 or heap[0] > heap[1]:
        raise ValueError("heap is not a range")
    streams = fields.items("streams", 3, _stream)
    if len(streams) != 3:
        raise ValueError("streams are not complete")
    files = FilesState.from_json(fields.get("files")) if fields.has("files") else FilesState()
    descriptors = fields.items("descriptors", MAX_DESCRIPTORS, _descriptor)
    if any(stream >= 3 + len(files.opened) for _, stream, _ in descriptors):
        raise ValueError("a descriptor of what is not open")
    others = fields.items("threads", MOST_THREADS - 1, lambda value: read_thread(Fields(value)), default=[])
    threads = (read_thread(fields), *others)
    if len({thread.tid for thread in threads}) != len(threads):
        raise ValueError("two threads have the same id")
    return GuestState(
        program=os.fsdecode(fields.data("program", 1 << 16)),
        argv=fields.items("argv", 1 << 16, lambda value: os.fsdecode(blob(value, "argv", 1 << 24))),
        image_bias=fields.number("image_bias", high),
        regions=regions,
        heap=(heap[0], heap[1]),
        threads=threads,
        monotonic=fields.number("monotonic", I64 // 2),
        cpu_time=fields.number("cpu_time", I64 // 2),
        saved_at=fields.number("saved_at", I64),
        actions=dict(fields.items("actions", SIGNAL_COUNT, _action)),
        waiting_signals=fields.items("shared_signals", MOST_WAITING, read_signal, default=[]),
        timers=dict(fields.items("timers", MOST_TIMERS + 3, _timer, default=[])),
        descriptors=descriptors,
        streams=streams,
        files=files,
        shared=fields.items("shared", _MAX_REGIONS, lambda value: _mapping(value, low, high, files), default=[]),
        umask=fields.number("umask", 0o777),
        generation=fields.number("generation", I64),
        launched=_launched(fields),
    )


def _launched(fields: Fields) -> dict[str, Any] | None:
    value = fields.get("launched") if fields.has("launched") else None
    return None if value is None else Launched.from_fields(value).to_fields()


def _region(value: Any, low: int, high: int) -> Region:
    start, end, protection, kind = listed(value, 4, "region")
    integer(start, "start of a region", high, low)
    integer(end, "end of a region", high, start + 1)
    if start % PAGE_SIZE or end % PAGE_SIZE:
        raise ValueError("a region is not made of pages")
    return Region(start, end, Prot(integer(protection, "protection", 7)), RegionKind(kind))


def _mapping(value: Any, low: int, high: int, files: FilesState) -> SavedMapping:
    start, end, offset, opened = listed(value, 4, "mapping")
    integer(start, "start of a mapping", high, low)
    integer(end, "end of a mapping", high, start + 1)
    integer(offset, "offset of a mapping", 1 << 62)
    if start % PAGE_SIZE or end % PAGE_SIZE or offset % PAGE_SIZE:
        raise ValueError("a mapping is not made of pages")
    number = integer(opened, "open file", 2 + len(files.opened), 3)
    file = files.opened[number - 3]
    if file.kind not in ("host", "memory") or file.flags & os.O_ACCMODE == os.O_WRONLY:
        raise ValueError("a mapping of what is no file that can be read")
    return SavedMapping(start, end, offset, number)


def _action(value: Any) -> tuple[int, bytes]:
    number, action = listed(value, 2, "action")
    data = blob(action, "action", ACTION_SIZE)
    if len(data) != ACTION_SIZE:
        raise ValueError("an action is not 32 bytes")
    return integer(number, "signal", SIGNAL_COUNT, 1), data


def _descriptor(value: Any) -> tuple[int, int, bool]:
    number, stream, flag = listed(value, 3, "descriptor")
    return (
        integer(number, "descriptor", MAX_DESCRIPTORS - 1),
        integer(stream, "stream", 2 + MOST_OPEN),
        truth(flag, "flag"),
    )


def _stream(value: Any) -> StreamState:
    flag, offset, device, inode = listed(value, 4, "stream")
    if offset is not None:
        integer(offset, "offset", I64)
    return StreamState(truth(flag, "flag"), offset, integer(device, "device"), integer(inode, "inode"))


def _timer(value: Any) -> tuple[int, Timer]:
    identity, clock, number, tid, told, due, interval, runs_by, overrun = listed(value, 9, "timer")
    return integer(identity, "timer", MOST_TIMERS - 1, ITIMER_PROF), Timer(
        clock_id(clock),
        integer(number, "signal", SIGNAL_COUNT),
        integer(tid, "tid", I64),
        integer(told, "value"),
        None if due is None else integer(due, "due", I64),
        integer(interval, "interval", I64 // 2),
        clock_id(runs_by),
        integer(overrun, "overrun", I64),
    )
