"""What a fault engine is: the way in which the guest's accesses to some pages become exits.

Two engines implement it, and one test suite runs against both (tests/memory/test_engines.py). An engine changes what
the *guest* may do to its pages; it knows the kernel's means and nothing of checkpoints or hypercalls. Pages are
page numbers of guest RAM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from memvm.memory.latencies import Latencies
from memvm.memory.pages import PageRun
from memvm.memory.ram import GuestRam


class GuestGone(Exception):
    """The guest's process has ended while its memory was being worked on."""


class FaultHandler(Protocol):
    """Who answers faults: decides by page metadata, and acts through the engine."""

    # `vcpu` is the thread that faulted, by its kernel id; `write` is 0 for reads and for what may be one.

    def missing(self, page: int, write: int, vcpu: int) -> None:
        """The guest touched a page that it has not got yet: place something there."""

    def minor(self, page: int, write: int, vcpu: int) -> None:
        """The guest touched a hidden page whose contents are there: reveal it."""

    def write(self, page: int, vcpu: int) -> None:
        """The guest is about to write to a guarded page: let go of it."""


class FaultEngine(ABC):
    """Guest RAM as the guest's accesses see it."""

    name: str
    poisons: bool
    """Whether the kernel itself refuses access to poisoned pages; otherwise they stay missing."""
    guards_while_running: bool
    """Whether `guard` works, and cheaply, while the guest runs; otherwise it must stand still."""
    grain: int
    """How many pages are let go of at once at a write fault; a power of two."""

    exact_pages = 1 << 62
    """How many pages can be traced one by one; of more, blocks of `grain` are heard of together."""

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram
        self.faults = 0
        """Faults answered so far."""
        self.guard_users = 0
        """How many have begun to guard, and not ended."""
        self.give_way: Callable[[], None] = lambda: None
        """Called, with no lock held, before the guest's memory is taken: whoever else has it lets go of it."""
        self.mapped: Callable[[PageRun], Iterator[tuple[int, int]]] | None = None
        """Which pages of a run the guest has accessed since they were hidden, as ascending ranges [first, end), while
        they are ready for guards and not for traces; None where nobody can tell. Raises GuestGone."""
        self.latencies = Latencies()
        """How long the answers took."""

    @abstractmethod
    def start(self, handler: FaultHandler, failed: Callable[[BaseException], None]) -> None:
        """Begin answering faults through `handler`; `failed` hears of an error that nobody could handle."""

    def allowed(self, run: PageRun, protection: int) -> Iterable[tuple[PageRun, int]]:
        """What the guest's mapping may have of the rights that the guest asked for."""
        return ((run, protection),)

    @abstractmethod
    def defer(self) -> None:
        """From now on, touching a deferred page is a missing fault. Called before the guest runs."""

    @abstractmethod
    def defer_no_more(self) -> None:
        """Absent pages are zero again, by the kernel alone."""

    @abstractmethod
    def place(self, first: int, data: bytes, reasons: int = 0) -> None:
        """Give absent pages their contents: for the guest, all of a page appears at once.

        `reasons` are their flags: with TRACE_ACCESS they stay hidden, with one of WRITE_REASONS they are guarded.
        """

    @abstractmethod
    def place_zeros(self, run: PageRun, reasons: int = 0) -> None:
        """Give absent pages zeros, guarded if there is one of WRITE_REASONS."""

    @abstractmethod
    def poison(self, run: PageRun) -> None:
        """Touching these absent pages becomes an error for the guest (SIGBUS or SIGSEGV), now and later."""

    @abstractmethod
    def heal(self, run: PageRun) -> None:
        """Poisoned pages are about to be thrown away: afterwards they shall be as absent as any."""

    @abstractmethod
    def begin_guarding(self) -> None:
        """Get ready for guards: whatever has to be done before them. Several may, and each ends it once."""

    def begin_guarding_part(self, run: PageRun) -> None:
        """Get ready for guards on these pages, of which somebody has just let go; begin_guarding follows soon."""
        raise NotImplementedError(f"the {self.name} engine shares guest RAM with nobody")

    def end_guarding_part(self, run: PageRun) -> None:
        """No guards on these pages, and let go of them; end_guarding follows soon. For the only one who guards."""
        raise NotImplementedError(f"the {self.name} engine shares guest RAM with nobody")

    def in_use_beside(self, guards: int) -> bool:
        """Whether the guest's memory is needed, by others than this many who guard."""
        return self.guard_users > guards

    @abstractmethod
    def guard(self, run: PageRun) -> None:
        """The next write to each of these pages is a write fault."""

    @abstractmethod
    def unguard(self, run: PageRun) -> None:
        """Writes to those of these pages that have none of WRITE_REASONS are free again; who waits to write goes on.

        With the RAM's lock held, or somebody could set a reason between the look and the deed.
        """

    @abstractmethod
    def end_guarding(self) -> None:
        """Of one who guarded, and has cleared its flags: what has other reasons stays guarded."""

    @abstractmethod
    def begin_tracing(self) -> None:
        """Get ready for traces: from now on pages can be hidden, and guarded; absent pages are missing faults."""

    @abstractmethod
    def hide(self, runs: Sequence[PageRun]) -> None:
        """The next access of any kind to each of these pages is a fault, or without traces shows in `mapped`.

        The guest may run. Takes milliseconds, and waits for threads that take the locks of machine and RAM: hold
        neither. Raises GuestGone.
        """

    @abstractmethod
    def reveal(self, run: PageRun, *, guarded: bool) -> None:
        """Accesses to these pages are free again, or reads only; who waits goes on. Absent ones are left alone."""

    @abstractmethod
    def end_tracing(self) -> None:
        """No page is traced any more; what has other reasons stays guarded, or absent."""

    @abstractmethod
    def stop(self) -> None:
        """Answer no more faults, and release what the engine holds. The guest has ended."""
