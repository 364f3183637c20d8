"""A guest as its hypercalls see it: everything that the manager knows of it beside RAM contents and registers."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from memvm.errors import MemvmError
from memvm.files.description import OpenDirectory
from memvm.files.facts import Facts
from memvm.machine.callresult import CallError
from memvm.machine.clocks import Clocks
from memvm.machine.config import ExitStatus
from memvm.machine.futexes import Futexes
from memvm.machine.guest_memory import GuestMemory
from memvm.machine.launched import Launched
from memvm.machine.shared_files import SharedFiles
from memvm.machine.signals import SI_KERNEL, SI_TIMER, Signal, SignalState, bit, make_signal, signal_name
from memvm.machine.space import AddressSpace
from memvm.machine.streams import OpenFiles
from memvm.machine.thread import GuestThread
from memvm.machine.timers import Timers
from memvm.memory.ram import GuestRam
from memvm.units import format_size

if TYPE_CHECKING:
    from memvm.disk.device import Disk
    from memvm.files.nodes import Budget
    from memvm.files.sockets import Room
    from memvm.files.specs import ViewSpec
    from memvm.files.tree import Tree
    from memvm.files.waitable import Waitable
    from memvm.machine.broker_relay import BrokerRelay
    from memvm.machine.files_state import FilesState
    from memvm.machine.inquiry import Inquiry
    from memvm.machine.signal_descriptor import SignalDescriptor

GUEST_PID = 1000
"""What the guest takes for its process and thread id; the same in every guest and after every restore."""
PARENT_PID = 1


class MappedFile(NamedTuple):
    """A file whose contents are at guest addresses [start, end), and nobody could have changed them."""

    start: int
    end: int
    shift: int
    """What an address is beyond the offset of its byte in the file."""
    facts: Facts
    """Which file, and how it was, but for when it was read."""
    changes: int = 0
    """AddressSpace.changes at that moment."""

    def has(self, what: MappedFile, end: int) -> bool:
        """Whether all that `what` has, up to `end`, is here."""
        return self.start <= what.start and end <= self.end and (self[2:4] == what[2:4])


class Guest:
    """The state of one guest, and the two things that a call may make happen to it."""

    def __init__(
        self,
        ram: GuestRam,
        memory: GuestMemory,
        space: AddressSpace,
        files: OpenFiles,
        end: Callable[[ExitStatus], None],
    ) -> None:
        self.ram = ram
        self.memory = memory
        self.space = space
        self.files = files
        self.shared = SharedFiles(ram, lambda: (file.stream for file in files.table.values()), self._say)
        space.leaving = self.shared.leave
        self.end = end
        """End the guest with this status."""
        self.clocks = Clocks()
        self.signals = SignalState()
        self.timers = Timers(self.clocks)
        self.threads = {GUEST_PID: GuestThread(GUEST_PID)}
        """By their ids, in the order of their making."""
        self.by_vcpu: dict[int, GuestThread] = {}
        """The same by their kernel ids."""
        self.clocks.pid, self.clocks.thread_time = GUEST_PID, self.thread_time
        self.current = self.main
        """The thread whose call is being carried out, or was last."""
        self.signal_descriptors: list[SignalDescriptor] = []
        """Those that are open, to be told of signals."""
        self.program = ""
        self.argv: tuple[str, ...] = ()
        self.image_bias = 0
        """What was added to the addresses in the program's file."""
        self.views: tuple[ViewSpec, ...] = ()
        """What it is given of the host's files; to be set before it looks at its tree."""
        self.cwd = b"/"
        """Where it is in its tree."""
        self.launched = Launched()
        self.public_key: tuple[str, bytes] = ("", b"")
        """The key that the guest gave to be attested with it: kind and key. No part of a checkpoint."""
        self.secrets: list[tuple[int, int]] = []
        """Address and size of the memory in which it has secrets, to be wiped when its tokens are revoked, and pinned
        until then. No part of a checkpoint."""
        self.knows_of_swap = False
        """Whether somebody was told that such memory may be written to swap."""
        self.bound = b""
        """What else it wants said of it in its evidence."""
        self.token = b""
        """The last token that the guest was given."""
        self.verifier = ""
        """Where it is attested; a guest that stands still for a new token goes on with one of this verifier's only."""
        self.ask_for_token: Callable[[], None] | None = None
        """Has the guest attested, if there is a verifier that it may ask for a token."""
        self.broker: BrokerRelay | None = None
        """Who carries what it has to say to a key broker, if there is one that it may ask."""
        self.broker_inquiries: dict[int, Inquiry] = {}
        """What its threads have asked that one, by their ids."""
        self.token_inquiry: Inquiry | None = None
        """The round of attestation that it waits for."""
        self.tell: Callable[[str], None] = lambda message: None
        """Says something about the guest to whoever runs it."""
        self.allowed_calls: frozenset[int] | None = None
        """The numbers of the system calls that it may make; None for all."""
        self.disks: tuple[Disk, ...] = ()
        """Those that it was given, by their numbers. No part of a checkpoint."""
        self.umask = 0o022
        self.pipes = 0
        """How many pipes and pairs of sockets it has made."""
        self.mapped_last: MappedFile | None = None
        """Of the file that was mapped last, what is certainly still there."""
        self.hostname = "memvm"
        self.cpus = 1
        """How many CPUs it is told that it has."""
        self.files_before: FilesState | None = None
        """Of a restored guest, its directories in memory as they were, if there is nothing in them; until it looks."""
        self.accepts_changed_files = False
        """Whether files of the host's that it has open may be others than they were; for a restore."""
        self.changed_files: list[str] = []
        """Those that are."""
        self.boot_id = os.urandom(16)
        """What /proc/sys/kernel/random/boot_id shows: the same after a restore."""
        self._last_tid = GUEST_PID
        self.woken: list[GuestThread] = []
        """Threads whose calls may have an answer now, to be tried again soon."""
        self.interrupt: Callable[[GuestThread], None] = lambda thread: None
        """Have a thread stop soon, so that signals are delivered to it."""
        self.futexes = Futexes(memory, self.woken)
        self.make_vcpu: Callable[[GuestThread, Any, dict[str, int]], None] = lambda thread, registers, changed: None
        """Give a new thread its vCPU, with another's registers, some of them changed. Raises CallError."""
        self.end_vcpu: Callable[[GuestThread], None] = lambda thread: None
        """End a thread's vCPU, which stands before its exit."""
        self.take_down_frame: Callable[[GuestThread, Any], None] = lambda thread, registers: None
        """Have a thread, with its registers, go on as the frame on its stack says, from which a handler returned."""
        self.generation = 0
        """How many restores lie behind this guest."""
        self.generation_id = os.urandom(16)
        """New for each start, restore and clone, and no part of a checkpoint."""
        self.clone = self.clones = 0
        """Which clone this is, from 1, of how many that were started together; 0 if it is none."""
        self.wrote = False
        """Whether it has written to a stream since it was started or restored."""
        self.on_first_output: Callable[[], None] = lambda: None
        """Told of that first write, before it is carried out."""
        self.calls = 0
        """How many hypercalls it has made since it was started or restored."""
        self.pauses_at = 0
        """At which of them it is paused."""
        self.pause_now: Callable[[GuestThread], None] = lambda thread: None
        """Have it stand still from before this thread, which makes a call, goes on."""
        self.unknown: Counter[str] = Counter()
        self.lacked = 0
        """Bytes of the most memory that it asked for at once and did not get, for lack of room."""
        self._refused: set[int] = set()

    def _say(self, message: str) -> None:
        self.tell(message)

    def refuse(self, what: str, number: int) -> NoReturn:
        """Raises CallError for something that no guest can have; says so the first time, since programs hardly do."""
        if number not in self._refused:
            self._refused.add(number)
            self.tell(f"it asked {what}, which is refused: a guest is one process with one program")
        raise CallError(number)

    def shortage(self) -> str:
        """What it could not get of memory, also for files, for whoever wonders why it failed; empty if it got all."""
        told = []
        if self.lacked:
            has = self.ram.size if self.space.limit is None else self.space.limit
            asked, whole = format_size(self.lacked), format_size(has)
            told.append(
                f"the guest could not have {asked} of memory at once, of {whole} in all; if it needed that: --ram"
            )
        if self.budget.was_full:
            most = format_size(self.budget.most)
            told.append(f"the guest's files in memory may have {most}, and it wanted more; for the host's: --pass")
        return "\n  ".join(told)

    @cached_property
    def budget(self) -> Budget:
        """How much memory its files may take."""
        from memvm.files.nodes import Budget

        return Budget()

    @cached_property
    def tree(self) -> Tree:
        """Its file tree, made when it first looks: many guests never do. Raises UsageError, HostError."""
        from memvm.machine.views import make_tree

        tree = make_tree(self)
        if (before := self.files_before) is not None:
            from memvm.machine.files_capture import adopt

            self.__dict__["tree"], self.files_before = tree, None
            adopt(before, self)
        return tree

    @cached_property
    def sockets(self) -> Room:
        """What its sockets share."""
        from memvm.files.sockets import Room

        return Room(self.budget)

    @property
    def has_looked_at_files(self) -> bool:
        """Whether there is anything to save of its files."""
        streams = self.files.streams
        return (
            "tree" in self.__dict__
            or self.pipes > 0
            or any(file.stream not in streams for file in self.files.table.values())
        )

    def wake(self, changed: Waitable) -> bool:
        """Have the calls tried again that wait for this; whether there are any."""
        changed.awaited = False
        waiting = [thread for thread in self.threads.values() if thread.waits_for(changed)]
        self.woken += waiting
        return bool(waiting)

    def moved(self, old: bytes, new: bytes) -> None:
        """A name in its tree has changed: where it is itself, and what it has open, moves along."""
        for file in self.files.table.values():
            stream = file.stream
            if stream.path == old or (stream.path.startswith(old + b"/") and isinstance(stream, OpenDirectory)):
                stream.path = new + stream.path[len(old) :]
        if self.cwd == old or self.cwd.startswith(old + b"/"):
            self.cwd = new + self.cwd[len(old) :]

    def close(self) -> None:
        """Let go of its files and disks."""
        self.shared.close()
        for disk in self.disks:
            try:
                disk.close()
            except MemvmError as error:
                self.tell(f"what was written last is not on the disk: {error.message}")
        self.files.release()
        if (sockets := self.__dict__.get("sockets")) is not None:
            sockets.close()
        tree = self.__dict__.get("tree")
        if tree is not None:
            tree.close()

    def end_by_signal(self, number: int, reason: str = "") -> None:
        """End the guest as a signal with its default action does."""
        why = reason or f"ended by {signal_name(number)}"
        self.end(ExitStatus(128 + number, number, why))

    @property
    def main(self) -> GuestThread:
        """The oldest thread."""
        return next(iter(self.threads.values()))

    def thread_time(self, tid: int) -> int:
        """CPU time of a thread, in ns; 0 is the one whose call is being carried out. Raises CallError(EINVAL)."""
        thread = self.threads.get(tid) if tid else self.current
        if thread is None:
            raise CallError(errno.EINVAL)
        return thread.cpu_time()

    def new_tid(self) -> int:
        """An id for a new thread, that none has had in this life."""
        self._last_tid = max(self._last_tid, *self.threads) + 1
        return self._last_tid

    def count_call(self, thread: GuestThread) -> None:
        """A thread has made a hypercall, which was carried out, or waits, and is yet to be answered."""
        self.calls += 1
        if self.calls == self.pauses_at:
            self.pause_now(thread)

    def send(self, one: Signal, thread: GuestThread | None = None, reason: str = "") -> None:
        """A signal for a thread, or for the guest as a whole. Raises CallError(EAGAIN) if too many wait.

        It waits, is dropped, or ends the guest for this `reason`.
        """
        number = one.number
        threads = list(self.threads.values()) if thread is None else [thread]
        taker = next((thread for thread in threads if thread.takes(number)), None)
        waiter = next((thread for thread in threads if thread.awaits & bit(number)), None)
        if taker is not None and waiter is None:
            if self.signals.ignores(number):
                return
            if self.signals.ends_guest(number):
                self.end_by_signal(number, reason)
                return
        (self.signals.shared if thread is None else thread.signals).add(one)
        for descriptor in self.signal_descriptors:
            descriptor.sent(number)
        if waiter is not None:
            self.woken.append(waiter)
        elif taker is not None:
            self.interrupt(taker)

    def has_signal(self, thread: GuestThread) -> bool:
        """Whether a signal waits that the thread does not block."""
        shared = self.signals.shared
        if not thread.signals.waiting and not shared.waiting:
            return False
        return bool((thread.signals.set() | shared.set()) & ~thread.mask)

    def next_signal(self, thread: GuestThread) -> Signal | None:
        """Take the next signal for a thread: its own first."""
        return thread.signals.take(~thread.mask) or self.signals.shared.take(~thread.mask)

    def cares_for(self, number: int) -> bool:
        """Whether a signal from outside would not simply end the guest: it is handled, ignored or blocked."""
        return not self.signals.ends_guest(number) or not any(t.takes(number) for t in self.threads.values())

    def send_timers(self) -> None:
        """Send the signals of the timers that are due, and let expire those that are read."""
        self.timers.look_at_descriptors()
        for identity, timer, times in self.timers.expired():
            thread = self.threads.get(timer.tid)
            if not timer.number or (timer.tid and thread is None):
                continue
            if identity < 0:
                self.send(make_signal(timer.number, SI_KERNEL), thread)
                continue
            waiting = (self.signals.shared if thread is None else thread.signals).waiting
            one = make_signal(timer.number, SI_TIMER, identity, times - 1, timer.value)
            if any(other.info[:20] == one.info[:20] for other in waiting):  # number, code and timer
                self.timers.set(identity, timer._replace(overrun=timer.overrun + times))
            else:
                self.timers.set(identity, timer._replace(overrun=times - 1))
                self.send(one, thread)
