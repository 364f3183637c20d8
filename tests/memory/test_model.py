"""Guest RAM, deferred pages and snapshots against a model: a dictionary of what each page holds.

Everything that can happen to a page may happen in any order. Reads always see the model's contents, a snapshot
returns what the model held at the instant, and a trace hears of each access that it waits for, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memvm.errors import BadPage
from memvm.memory import snapshot as snapshot_module
from memvm.memory.deferred import Chunk, DeferredPages
from memvm.memory.pages import (
    BAD,
    DEFERRED,
    GUARDED,
    TRACE_ACCESS,
    TRACE_WRITE,
    TRACED,
    PageRun,
    count_flag,
    flagged_runs,
)
from memvm.memory.ram import GuestRam
from memvm.memory.snapshot import Snapshot
from memvm.memory.traces import Access, Trace, Traces
from memvm.units import PAGE_SIZE
from tests.memory.fake_engine import VCPU, FakeEngine, Poisoned
from tests.memory.sources import FakeSource, page_of, saved_value

PAGES = 16
BASE = 0x200000
ZERO = bytes(PAGE_SIZE)
BAD_PAGE = b"bad"
"""What the model holds for a page that cannot be had."""

some_page = st.integers(0, PAGES - 1)
some_pages = st.integers(1, 6)
some_value = st.integers(1, 1 << 60)


class GuestRamMachine(RuleBasedStateMachine):
    """One RAM, restored lazily or not, and snapshots one after the other."""

    @initialize(
        deferred=st.none() | st.sets(some_page),
        bad=st.sets(some_page, max_size=2),
        poisons=st.booleans(),
        guards_while_running=st.booleans(),
        grain=st.sampled_from([1, 4]),
        gap=st.sampled_from([1, 6]),
        touched=st.sets(some_page),
    )
    def begin(
        self,
        deferred: set[int] | None,
        bad: set[int],
        poisons: bool,
        guards_while_running: bool,
        grain: int,
        gap: int,
        touched: set[int],
    ) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(snapshot_module, "_GAP_PAGES", gap)
        self.ram = GuestRam(BASE, PAGES * PAGE_SIZE)
        self.ram.protection[:] = b"\3" * PAGES
        self.engine = FakeEngine(self.ram, poisons=poisons, guards_while_running=guards_while_running, grain=grain)
        self.model = [ZERO] * PAGES
        self.snapshot: Snapshot | None = None
        self.then: list[bytes] | None = None
        self.left: list[PageRun] = []
        self.got: dict[int, bytes] = {}
        self.stale: list[Chunk] = []
        self.failures: list[BaseException] = []
        self.traces = Traces(self.ram, self.engine, lambda _vcpu: 0, self.failures.append)
        self.waiting: dict[Trace, list[int]] = {}
        """By trace, what the model says that each page is armed for."""
        self.owed: dict[Trace, set[int]] = {}
        """Pages that were accessed and that a polled trace has to hear of at the next look."""
        self.deferred: DeferredPages | None = None
        if deferred is not None:
            self.source = FakeSource(deferred, bad=bad & deferred)
            self.deferred = DeferredPages(self.ram, self.engine, self.source)
            self.deferred.begin(self.source.runs)
            for chunk in self.source.chunks:
                for page in chunk:
                    self.model[page] = BAD_PAGE if bad & set(chunk) else page_of(saved_value(page))
        for page in touched - (deferred or set()):
            self.guest_writes(page, page + 1)

    # What guest and manager do.

    @rule(page=some_page)
    def guest_reads(self, page: int) -> None:
        if self.model[page] == BAD_PAGE:
            with pytest.raises((Poisoned, BadPage)):
                self.engine.guest_read(page)
            self.look_again()
        else:
            assert self.engine.guest_read(page) == self.model[page]
            self.check_events([page], 0, VCPU)

    @rule(page=some_page, value=some_value)
    def guest_writes(self, page: int, value: int) -> None:
        if self.model[page] == BAD_PAGE:
            with pytest.raises((Poisoned, BadPage)):
                self.engine.guest_write(page, page_of(value))
            self.look_again()
        else:
            self.engine.guest_write(page, page_of(value))
            self.check_events([page], 1, VCPU)
            self.model[page] = page_of(value)

    @rule(page=some_page, start=st.integers(0, PAGE_SIZE - 1), size=st.integers(0, 3 * PAGE_SIZE))
    def manager_reads(self, page: int, start: int, size: int) -> None:
        offset = page * PAGE_SIZE + start
        size = min(size, self.ram.size - offset)
        if self._touches_bad(offset, size):
            with pytest.raises(BadPage):
                self.ram.read(BASE + offset, size)
        else:
            before = b"".join(self.model[page : page + 5])
            assert self.ram.read(BASE + offset, size) == before[start : start + size]
            self.check_events(_pages(offset, size), 0, 0)

    @rule(page=some_page, start=st.integers(0, PAGE_SIZE - 1), size=st.integers(0, 3 * PAGE_SIZE), value=some_value)
    def manager_writes(self, page: int, start: int, size: int, value: int) -> None:
        offset = page * PAGE_SIZE + start
        size = min(size, self.ram.size - offset)
        data = (page_of(value) * 4)[:size]
        if self._touches_bad(offset, size):
            with pytest.raises(BadPage):
                self.ram.write(BASE + offset, data)
            return
        self.ram.write(BASE + offset, data)
        self.check_events(_pages(offset, size), 1, 0)
        for index, byte_offset in enumerate(range(offset, offset + size)):
            if not (byte_offset % PAGE_SIZE and index):  # once for each page
                at, skip = divmod(byte_offset, PAGE_SIZE)
                part = data[index : index + PAGE_SIZE - skip]
                self.model[at] = self.model[at][:skip] + part + self.model[at][skip + len(part) :]

    def _touches_bad(self, offset: int, size: int) -> bool:
        return any(self.model[page] == BAD_PAGE for page in _pages(offset, size))

    @rule(page=some_page, count=some_pages)
    def discard(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        self.ram.discard(page, count)
        self.model[page : page + count] = [ZERO] * count

    @rule(old=some_page, new=some_page, count=some_pages)
    def move(self, old: int, new: int, count: int) -> None:
        count = min(count, PAGES - old, PAGES - new, abs(old - new))
        if not count or self._touches_bad(old * PAGE_SIZE, count * PAGE_SIZE):
            return
        self.discard(new, count)
        self.ram.move(BASE + old * PAGE_SIZE, BASE + new * PAGE_SIZE, count * PAGE_SIZE)
        self.model[new : new + count] = self.model[old : old + count]
        self.model[old : old + count] = [ZERO] * count
        self.look_again()

    # Traces.

    @precondition(lambda self: len(self.waiting) < 4)
    @rule(
        runs=st.lists(st.tuples(some_page, some_pages), min_size=1, max_size=3),
        access=st.sampled_from([Access.READ, Access.WRITE, Access.READ | Access.WRITE]),
        how=st.sampled_from(["exact", "around", "polled"]),
    )
    def add_trace(self, runs: list[tuple[int, int]], access: Access, how: str) -> None:
        if how == "polled":
            access = Access.READ
        self.engine.standing_still = True  # an engine that guards only then has the guest stopped
        pages = [PageRun(first, min(count, PAGES - first)) for first, count in runs]
        trace = self.traces.add(pages, access, around=how == "around", polled=how == "polled")
        self.engine.standing_still = False
        for each in self.waiting:
            if each.polled:  # it has looked, or its pages would have been hidden from it
                self._take(each)
        traced = {page for run in pages for page in range(run.first, run.end)}
        self.owed[trace] = set()
        self.waiting[trace] = [int(access) if page in traced else 0 for page in range(PAGES)]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def close_trace(self, data: st.DataObject) -> None:
        trace = data.draw(st.sampled_from(list(self.waiting)))
        trace.close()
        del self.waiting[trace]

    def check_events(self, pages: Iterable[int], write: int, vcpu: int) -> None:
        """Each trace has heard of the accesses that it waited for, in order; a polled one will."""
        for trace, waiting in self.waiting.items():
            assert trace.ring is not None
            if trace.polled:
                self.owed[trace].update(page for page in pages if waiting[page])
                self._take(trace)
                continue
            events, dropped = trace.ring.take()
            assert not dropped
            assert all((event.access, event.vcpu) == (2 if write else 1, vcpu) for event in events)
            heard = [event.page for event in events]
            expected = [page for page in pages if waiting[page] & (3 if write else 1)]
            if trace.around:
                assert set(expected) <= set(heard), "an access was missed"
                assert all(waiting[page] for page in heard), "an event of a page that is not traced, or was heard of"
            else:
                assert heard == expected
            for page in heard:
                waiting[page] = 0 if write else waiting[page] & 2

    @rule()
    def look(self) -> None:
        """A polled trace has heard of all accesses, and perhaps of pages that were placed in the background."""
        for trace in self.waiting:
            if trace.polled:
                self.traces.look(trace)
                self._take(trace)
                assert not self.owed[trace], "an access was missed"

    def _take(self, trace: Trace) -> None:
        """What a polled trace has heard of: each page once."""
        assert trace.ring is not None
        for event in trace.ring.take()[0]:
            assert self.waiting[trace][event.page], "an event of a page that is not traced, or was heard of"
            self.waiting[trace][event.page] = 0
            self.owed[trace].discard(event.page)

    def look_again(self) -> None:
        """After what the model does not follow in detail: take over what the traces know now."""
        for trace in self.waiting:
            assert trace.ring is not None
            trace.ring.take()
            self.owed[trace] = {page for page in self.owed[trace] if trace.waits_for(page)}
            self.waiting[trace] = [trace.waits_for(page) for page in range(PAGES)]

    # Loading in the background: read at one time, delivered at another.

    @precondition(lambda self: self.deferred is not None and self.source.chunks)
    @rule(data=st.data())
    def load_chunk(self, data: st.DataObject) -> None:
        assert self.deferred is not None
        number = data.draw(st.integers(0, len(self.source.chunks) - 1))
        try:
            self.stale.append(self.source.load(number))
        except BadPage as error:
            self.deferred.spoil(number, error)

    @precondition(lambda self: self.stale)
    @rule()
    def deliver_chunk(self) -> None:
        assert self.deferred is not None
        if self.engine.missing:
            self.deferred.deliver(self.stale.pop(0))

    @precondition(lambda self: self.deferred is not None)
    @rule()
    def finish_loading(self) -> None:
        assert self.deferred is not None
        if self.engine.missing:
            self.deferred.finish()
            assert not self.deferred.remaining

    # Snapshots.

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def prepare(self) -> None:
        if self.deferred is not None:
            self.deferred.bring(0, PAGES)  # as every save does first
            if count_flag(self.ram.flags, BAD):
                return
        self.snapshot = Snapshot(self.ram, self.engine)
        self.snapshot.prepare()
        self.then, self.got = None, {}

    @precondition(lambda self: self.snapshot is not None and self.then is None)
    @rule()
    def instant(self) -> None:
        assert self.snapshot is not None
        self.engine.standing_still = True
        self.left = self.snapshot.instant()
        self.engine.standing_still = False
        self.then = list(self.model)
        assert self.left == sorted(self.left)

    @precondition(lambda self: self.then is not None and self.left)
    @rule(runs=st.integers(1, 4), pages=st.integers(1, 12))
    def take(self, runs: int, pages: int) -> None:
        assert self.snapshot is not None
        wanted: list[PageRun] = []
        for _ in range(min(runs, len(self.left))):
            run = self.left.pop(0)
            if run.count > pages:
                self.left.insert(0, PageRun(run.first + pages, run.count - pages))
                run = PageRun(run.first, pages)
            wanted.append(run)
        buffer = bytearray(sum(run.count for run in wanted) * PAGE_SIZE)
        for run, offset in self.snapshot.take(wanted, memoryview(buffer)):
            self._add(run, bytes(buffer[offset : offset + run.count * PAGE_SIZE]))

    @precondition(lambda self: self.then is not None)
    @rule()
    def drain(self) -> None:
        assert self.snapshot is not None
        for slab in self.snapshot.drain():
            for run, offset in slab.parts:
                self._add(run, bytes(slab.memory[offset : offset + run.count * PAGE_SIZE]))
            self.snapshot.release(slab)

    def _add(self, run: PageRun, data: bytes) -> None:
        for index in range(run.count):
            assert run.first + index not in self.got, "a page was returned twice"
            self.got[run.first + index] = data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]

    @precondition(lambda self: self.then is not None)
    @rule()
    def complete(self) -> None:
        """Take what is left: now it must be all that there was."""
        while self.left:
            self.take(4, 12)
        self.drain()
        assert [self.got.get(page, ZERO) for page in range(PAGES)] == self.then
        self.end()

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def end(self) -> None:
        """Give it up, or end it when it is complete."""
        assert self.snapshot is not None
        self.snapshot.end()
        self.snapshot.end()
        self.snapshot, self.then, self.left = None, None, []
        assert not count_flag(self.ram.flags, GUARDED)
        assert self.ram.keeper is None

    @invariant()
    def deferred_pages_are_absent(self) -> None:
        if hasattr(self, "ram"):
            for run in flagged_runs(self.ram.flags, 0, PAGES, DEFERRED):
                assert self.ram.next_touched(run.first) >= run.end

    @invariant()
    def each_page_knows_what_traces_wait_for(self) -> None:
        if hasattr(self, "ram"):
            for page in range(PAGES):
                wanted = {waiting[page] & bit for waiting in self.waiting.values() for bit in (1, 2)}
                assert bool(self.ram.flags[page] & TRACE_ACCESS) == (1 in wanted)
                assert bool(self.ram.flags[page] & TRACE_WRITE) == (2 in wanted)

    @invariant()
    def nothing_is_guarded_without_a_snapshot(self) -> None:
        if hasattr(self, "ram") and self.snapshot is None:
            assert not count_flag(self.ram.flags, GUARDED)

    def teardown(self) -> None:
        if hasattr(self, "ram"):
            if self.then is not None:
                self.complete()
            elif self.snapshot is not None:
                self.end()
            for page in range(PAGES):
                self.guest_reads(page)
            for trace in self.waiting:
                trace.close()
            assert not self.failures
            assert not count_flag(self.ram.flags, TRACED)
            self.ram.close()
            self.patch.undo()


def _pages(offset: int, size: int) -> range:
    """The pages that bytes of guest RAM are in."""
    return range(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE + 1) if size else range(0)


TestGuestRam = GuestRamMachine.TestCase
TestGuestRam.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
