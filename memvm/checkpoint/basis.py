"""What a save builds on: its parent, and how it is known which pages are as they are there.

After each save, and after an eager restore, the manager remembers which checkpoint that was, and keeps a watch on what
is written, where the kernel does that next to free (`Machine.baseline`). If the parent is that checkpoint, the watch
tells what changed. A live save without a parent needs guest RAM for itself: it lets go of the watch, and begins one at
its instant. Otherwise contents are compared with the parent's, while the guest runs and a watch is kept on what
it writes meanwhile: that is always right, and takes as long as reading the parent.

Deferred pages are as in the parent if both have them from the same place in the same file, which no comparing needs.
What cannot be told counts as changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from memvm.checkpoint.carried import shared_pages, source_of
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.sections import ParentLink
from memvm.checkpoint.unchanged import unchanged
from memvm.errors import SaveError
from memvm.machine.baseline import Baseline
from memvm.machine.machine import Machine
from memvm.machine.state import GuestState
from memvm.memory.dirty import DirtyPages, DirtyWatch
from memvm.memory.pages import BAD, DEFERRED, PageRun, common, count_flag, flagged_runs, pages_in, united_runs, without
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE, format_size

T = TypeVar("T")
Look = Callable[[], list[PageRun]]


class Known(StrEnum):
    """How it was known what changed since the parent."""

    NOT_ASKED = ""
    """There is no parent."""
    NOTED = "noted"
    """Writes were noted since the parent was saved or restored."""
    COMPARED = "compared"
    """Contents were compared with the parent's."""


class Held(NamedTuple):
    """The pages that a guest has at an instant, ascending: in memory, and deferred."""

    touched: list[PageRun]
    deferred: list[PageRun]


class Pages(NamedTuple):
    """The pages of a guest at the instant of a save, ascending; each is in one of these, or a hole."""

    stored: list[PageRun]
    """They hold memory, and are to be stored."""
    carried: list[PageRun]
    """Deferred ones, to be taken from the checkpoint that they are in."""
    inherited: list[PageRun]
    """They are as in the parent."""

    @property
    def total(self) -> int:
        """How many the file is to have or inherit."""
        return sum(map(pages_in, self))


class Parent(NamedTuple):
    """An open checkpoint that another one is saved on top of."""

    chain: Chain
    link: ParentLink
    """What the new file says of it."""


def open_parent(parent: Path, path: Path) -> Parent:
    """What a checkpoint at `path` is to be saved on top of. Raises CheckpointError and SaveError."""
    with ExitStack() as opened:
        chain = opened.enter_context(Chain.open(parent))
        made = Parent(chain, chain.link_from(path))
        opened.pop_all()
    return made


def require_same_guest(machine: Machine, chain: Chain) -> None:
    """Raises SaveError if a checkpoint is of another guest, as far as can be told, and CheckpointError."""
    name, header = machine.options.name, chain.header
    if (header.ram_base, header.ram_size) != (machine.ram.base, machine.ram.size):
        raise SaveError(
            f"{chain.path} is of a guest with {format_size(header.ram_size)} of RAM; guest {name} has "
            f"{format_size(machine.ram.size)}",
            hint="only a checkpoint of the same guest can be the parent",
        )
    state = GuestState.from_json(chain.state, header.ram_base, header.ram_size, str(chain.path))
    if (state.program, state.argv) != (machine.guest.program, machine.guest.argv):
        raise SaveError(
            f"{chain.path} is of another guest: it runs {state.program}, and with other arguments perhaps",
            hint="only a checkpoint of the same guest can be the parent",
        )


class Basis:
    """What one save builds on, and what it leaves for the next. A context manager, around all of the save."""

    def __init__(
        self, machine: Machine, parent: Chain | None, wanted: Callable[[], None], *, begins_anew: bool = False
    ) -> None:
        """`wanted` raises if the save is not wanted any more; called now and then while contents are compared.

        `begins_anew`: the save has no parent, and is going to guard all of guest RAM. What was known before it is
        forgotten, whether it succeeds or not.
        """
        self._machine = machine
        self.parent = parent
        self._wanted = wanted
        self.known = Known.NOT_ASKED
        if begins_anew and machine.baseline is not None:
            machine.baseline.watch.close()
            machine.baseline = None
        self._begins_anew = begins_anew
        self._baseline = machine.baseline
        self._watch: DirtyWatch | None = None
        self._keep = False
        """Whether the watch is to be kept for the next save."""
        self._looks: list[DirtyPages] = []
        """All that the watch told: what changed since the parent, but for what was compared later."""
        self._since = 0
        """Which of the looks count."""
        self._there: list[PageRun] | None = None
        """The pages that held memory when somebody last asked, and how many looks there had been by then."""
        self._there_since = 0
        self._same: list[PageRun] | None = None
        """The pages that were as in the parent when they were looked at; None: all were."""

    def __enter__(self) -> Basis:
        """Find out what is as in the parent, while the guest runs. Raises GuestStateError, CheckpointError."""
        dirty = self._machine.dirty
        try:
            if self._begins_anew:
                self._watch = dirty.watch_from_instant()
                self._keep = self._watch is not None
                return self
            if self._baseline is not None:
                self._watch, self._keep = self._baseline.watch, True
            else:
                self._watch = dirty.watch_for_free()
                self._keep = self._watch is not None
                if self._watch is None and self.parent is not None:
                    self._watch = dirty.watch(quiet=True)
            if self.parent is None:
                if self._watch is not None:
                    self.look()  # what changes from now on is the next save's
            elif self._baseline is not None and _is(self.parent, self._baseline):
                self.known = Known.NOTED
            else:
                self.known = Known.COMPARED
                self.look()
                self._since = len(self._looks)
                self._same = self._compare(self.parent)
        except BaseException:
            self._forget()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._forget()
        elif self._watch is not None and not self._keep:
            self._watch.close()
        self._machine.dirty.settle()

    def _forget(self) -> None:
        """The save failed: what was known before is known again."""
        if self._watch is None:
            return
        if self._baseline is None:
            self._watch.close()
            return
        for look in self._looks:
            self._watch.put_back(look)

    def saved(self, checkpoint_id: bytes, commit_sha256: bytes) -> None:
        """The save is done: the next one can build on it."""
        if self._keep and self._watch is not None:
            self._machine.baseline = Baseline(checkpoint_id, commit_sha256, self._watch)

    def look(self) -> list[PageRun]:
        """What changed since the last look, ascending; the guest runs. What is found counts as changed."""
        assert self._watch is not None
        return self._note(self._watch.look())

    def _note(self, look: DirtyPages) -> list[PageRun]:
        self._looks.append(look)
        return _told([look])

    def at_instant(self, then: Callable[[Look], T]) -> T:
        """Stop the guest and call `then`; the guest goes on when that returns.

        It is given a function that tells what changed since the last look, which it has to call before `held`.
        Without a parent nothing is told.
        """
        if self.parent is None or self._watch is None:
            return self._machine.frozen(lambda: then(list))
        return self._watch.at_instant(lambda look: then(lambda: self._note(look())))

    def begin(self, touched: list[PageRun]) -> None:
        """This is the instant of a save that begins anew; these pages, all that hold memory, are guarded."""
        if self._watch is not None:
            self._watch.begin(touched)

    def held(self, touched: list[PageRun] | None = None) -> Held:
        """Which pages there are; the guest stands still, or it is not important when.

        `touched` are those that hold memory, if somebody has found them already with the RAM's lock held ever since.
        Raises SaveError if some could not be verified when it was restored.
        """
        ram = self._machine.ram
        with ram.lock:  # or a page could be loaded in between, and be in both
            there = self._touched() if touched is None else touched
            deferred = list(flagged_runs(ram.flags, 0, ram.page_count, DEFERRED))
        refuse_bad_pages(self._machine)
        return Held(there, deferred)

    def _touched(self) -> list[PageRun]:
        """The pages that hold memory.

        Going through all of them takes as long as a guest may stand still: the kernel looks at each. So where looks
        tell what was written and what was thrown away since the last time, only what held no memory is gone through
        again. While the guest runs, pages that it has thrown away since the last look may be among the result.
        """
        ram, there = self._machine.ram, self._there
        if there is None or self._watch is None:
            there = list(ram.touched())
        else:
            for look in self._looks[self._there_since :]:
                there = united_runs([*without(there, look.punched), *look.written])
            gaps = without([PageRun(0, ram.page_count)], there)
            there = united_runs([*there, *(run for gap in gaps for run in _touched_in(ram, gap))])
        self._there, self._there_since = there, len(self._looks)
        return there

    def pages(self, held: Held | None = None) -> Pages:
        """What is to be done with the pages that there are, or were at some instant, as far as was looked by now."""
        there, deferred = held or self.held()
        if self.parent is None:
            return Pages(there, deferred, [])
        inherited = list(without(united_runs([*there, *deferred]), self.changed()))
        if self._same is not None:
            inherited = list(common(inherited, self._same))
        return Pages(list(without(there, inherited)), list(without(deferred, inherited)), inherited)

    def changed(self) -> list[PageRun]:
        """All that is known to have changed since the parent, or since the comparison began."""
        return _told(self._looks[self._since :])

    def _compare(self, parent: Chain) -> list[PageRun]:
        """The pages that are as in the parent. The guest runs: what it writes meanwhile, the watch tells."""
        there, deferred = self.held()
        source = source_of(self._machine)
        same = [] if source is None else list(common(deferred, shared_pages(source, parent)))
        return united_runs([*same, *unchanged(parent, there, partial(self._read))])

    def _read(self, run: PageRun) -> bytes | memoryview:
        self._wanted()
        data = bytearray(run.count * PAGE_SIZE)
        with memoryview(data) as view:
            self._machine.ram.copy_out(run.first, view)
        return bytes(data)


def refuse_bad_pages(machine: Machine) -> None:
    """Raises SaveError if pages of a guest could not be verified when it was restored."""
    if bad := count_flag(machine.ram.flags, BAD):
        raise SaveError(
            f"{bad} pages of guest {machine.options.name} could not be verified when it was restored",
            hint="restore it from another copy of its checkpoint",
        )


def _touched_in(ram: GuestRam, gap: PageRun) -> Iterator[PageRun]:
    """The pages of a gap that hold memory; most often none. One by one: to find where memory ends is slow."""
    page = ram.next_touched(gap.first)
    while page < gap.end:
        yield PageRun(page, 1)
        page = ram.next_touched(page + 1)


def _told(looks: list[DirtyPages]) -> list[PageRun]:
    """All pages that some looks told of, ascending."""
    return united_runs(run for look in looks for run in (*look.written, *look.punched))


def _is(parent: Chain, baseline: Baseline) -> bool:
    """Whether this is the checkpoint that changes are known from."""
    file = parent.files[0]
    return (file.header.checkpoint_id, file.commit_sha256) == (baseline.checkpoint_id, baseline.commit_sha256)
