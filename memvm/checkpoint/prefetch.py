"""A prefetch policy at work: what it names is loaded before the guest runs, or together with a page that it waits for.

Policies name pages, and a checkpoint has them in chunks: each chunk with a named page is loaded whole. Of what the save
saw used, chunks are left out that are stored apart from the others and have few such pages. Before the guest
runs, chunks that lie next to each other in the file are read at once, up to a storage block of them, by as many
threads as there are CPUs, and written straight into the memory file.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, overload

from memvm.checkpoint.active import active_pages
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.loading import load_ahead
from memvm.errors import UsageError
from memvm.linux.own_threads import Thread
from memvm.memory.pages import DEFERRED, PageRun, flagged_runs, pages_in
from memvm.memory.ram import GuestRam
from memvm.recording.policies import ActiveList, CheckedPolicy, Named, RestoreFacts
from memvm.units import KIB

if TYPE_CHECKING:
    from memvm.memory.deferred import DeferredPages

_GROUPS_A_CPU = 4
"""Reads that each CPU gets at least, so that all are busy until the end."""
_LEAST_READ = 256 * KIB
_MANY_CHUNKS = 64
"""Neighbours that are not looked at one by one."""


class Prefetched(NamedTuple):
    """What was loaded before the guest ran."""

    there: list[PageRun]
    """The pages."""
    reads: int
    bytes_read: int
    seconds: float
    """How long it took, the policy's own time included."""


def facts_of(chain: Chain, recorded: Sequence[int]) -> RestoreFacts:
    """What a policy is told of a checkpoint. Raises CheckpointError."""
    active = active_pages(chain)
    return RestoreFacts(chain.header.ram_pages, _DataRuns(chain), ActiveList(active.pages, active.kinds), recorded)


class Prefetch:
    """What a policy wants before the guest runs is being loaded, on threads of its own: the guest is made meanwhile.

    A context manager: leaving it ends the threads, early if it is left by an error. Chunks that cannot be verified are
    left to whoever touches their pages.
    """

    def __init__(self, chain: Chain, ram: GuestRam, policy: CheckedPolicy, facts: RestoreFacts) -> None:
        """Asks the policy, and begins. Raises UsageError if the policy misbehaves."""
        self._began = time.monotonic()
        self._chain, self._ram = chain, ram
        chunks = chunks_of(chain, policy.prefetch(facts), together=policy.leaves_scattered(facts))
        self._groups = read_groups(chain, chunks)
        self._given_up = False
        self._found: Prefetched | None = None
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="prefetch")
        self._thread.start()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_up = True
        self._thread.join()

    def _run(self) -> None:
        try:
            groups = iter(self._groups)
            there = load_ahead(self._chain, self._ram, lambda: None if self._given_up else next(groups, None))
            size = bytes_of(self._chain, self._groups)
            self._found = Prefetched(there, len(self._groups), size, time.monotonic() - self._began)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the pages
            self._failure = error

    def wait(self) -> Prefetched:
        """What was loaded, once all is. Raises what went wrong, OSError if there is no memory for example."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._found is not None
        return self._found


def chunks_of(chain: Chain, named: Named, *, together: bool = False) -> list[range]:
    """The chunks that have any of these pages, as ranges of neighbours; `together`: not those where they are few."""
    if not named:
        return []
    marked = _marked(chain.header.ram_pages, named)
    chunks = chain.index.chunks_with(marked)
    return [neighbours for neighbours in chunks if _are_many(chain, neighbours, marked)] if together else chunks


def _marked(ram_pages: int, named: Named) -> bytearray:
    """A byte for each page of RAM: 1 for those that are named."""
    marked = bytearray(ram_pages)
    if isinstance(named, list):
        for first, count in named:
            marked[first : first + count] = b"\1" * count
    else:
        for page in named:
            marked[page] = 1
    return marked


def _are_many(chain: Chain, neighbours: range, marked: bytearray) -> bool:
    """Whether at least half of the pages of some chunks are marked, or the chunks are so many that they may be.

    Reading a chunk for one of its pages costs as much as waiting for that page does, if the guest ever touches it.
    """
    if len(neighbours) >= _MANY_CHUNKS:
        return True
    runs = [run for chunk in neighbours for run in chain.index.runs_of(chunk)]
    return 2 * sum(marked.count(1, run.first, run.end) for run in runs) >= pages_in(runs)


def read_groups(chain: Chain, chunks: Sequence[range]) -> list[range]:
    """Cut ranges of neighbouring chunks into groups, each to be read at once: a storage block, or less if that would
    leave some CPU without work."""
    size = bytes_of(chain, chunks) // (_GROUPS_A_CPU * len(os.sched_getaffinity(0)))
    size = min(chain.header.block_size, max(_LEAST_READ, size))
    groups = []
    for neighbours in chunks:
        offsets, base = _offsets(chain, neighbours)
        start = neighbours.start
        while start < neighbours.stop:
            stop = base + bisect_left(offsets, offsets[start - base] + size, start - base + 1, neighbours.stop - base)
            groups.append(range(start, stop))
            start = stop
    return groups


def bytes_of(chain: Chain, chunks: Sequence[range]) -> int:
    """How many bytes of the files such ranges of neighbours are."""
    total = 0
    for neighbours in chunks:
        file, number = chain.index.place_of(neighbours.stop - 1)
        index = chain.files[file].index
        first = number + 1 - len(neighbours)
        total += index.chunk_offset[number] + index.chunk_length[number] - index.chunk_offset[first]
    return total


def _offsets(chain: Chain, neighbours: range) -> tuple[Sequence[int], int]:
    """Where the chunks of a file are, and the number of its first chunk."""
    file, number = chain.index.place_of(neighbours.start)
    return chain.files[file].index.chunk_offset, neighbours.start - number


class Around:
    """Loads a page that the guest waits for, and then what a policy names together with it."""

    def __init__(
        self, policy: CheckedPolicy, facts: RestoreFacts, deferred: DeferredPages, warn: Callable[[str], None]
    ) -> None:
        """`warn` hears of a policy that misbehaves: it is asked nothing more then, and demand loading goes on."""
        self._policy: CheckedPolicy | None = policy
        self._facts, self._deferred, self._warn = facts, deferred, warn
        self.brought: list[PageRun] = []
        """The pages that it named when they were not there yet."""

    def __call__(self, page: int) -> int:
        """The guest waits for this page: DeferredPages.instead."""
        placed = self._deferred.demand_page(page)
        if self._policy is not None:
            self._bring_along(self._policy, page)
        return placed

    def _bring_along(self, policy: CheckedPolicy, page: int) -> None:
        try:
            runs = policy.on_fault(page, self._facts)
        except UsageError as error:
            self._policy = None
            self._warn(f"{error.message}; pages are loaded without it from now on")
            return
        flags = self._deferred.ram.flags
        for run in runs:
            self.brought += flagged_runs(flags, run.first, run.count, DEFERRED)
            self._deferred.bring(*run)


class Loaded(NamedTuple):
    """What a restore has done about guest RAM before the guest runs."""

    policy: str
    data: Sequence[PageRun]
    """The pages that the file has."""
    prefetched: Prefetched
    deferred: DeferredPages | None = None
    """None if all pages are there."""
    around: Around | None = None


class _DataRuns(Sequence[PageRun]):
    """The pages that a checkpoint has, worked out when somebody looks: mostly while what a policy named is loaded."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    @cached_property
    def _runs(self) -> list[PageRun]:
        return self._chain.index.united_runs()

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[PageRun]:
        return iter(self._runs)

    @overload
    def __getitem__(self, place: int) -> PageRun: ...
    @overload
    def __getitem__(self, place: slice) -> list[PageRun]: ...
    def __getitem__(self, place: int | slice) -> PageRun | list[PageRun]:
        return self._runs[place]
