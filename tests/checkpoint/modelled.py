"""A real guest, the one of toucher.c, and a model of its memory, which knows what every page must hold.

The guest writes, throws away and reads at random; others watch and trace it at random. What happens is noted, so that a
test that fails can tell the story.
"""

from __future__ import annotations

import random
from pathlib import Path

from memvm.memory.dirty import DirtyWatch
from memvm.memory.pages import PageRun
from memvm.memory.traces import Access, Trace
from memvm.units import PAGE_SIZE
from tests.checkpoint.lives import SCALE
from tests.memory.sources import page_of
from tests.memory.touching import FIRST, PAGES, Touching

PATIENCE = 20.0 * SCALE
SENTINEL_PAGE, SENTINEL = PAGES - 1, 0x5E47

Model = dict[int, int]
"""The value in all words of a page; 0 if it is not there."""


class Modelled:
    """One guest at a time, and what its memory must hold."""

    def __init__(self, program: Path, engine: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine = engine
        self.story: list[str] = []
        self.value = 0x10000
        self.watch: DirtyWatch | None = None
        self.trace: Trace | None = None
        self.changed: set[int] = set()
        self.guest = Touching(program, engine, PATIENCE)
        self.guest.start()
        self.guest.fill(SENTINEL_PAGE, SENTINEL)
        self.model: Model = {SENTINEL_PAGE: SENTINEL}

    def end(self) -> None:
        """End the guest."""
        if self.watch is not None:
            self.watch.close()
        if self.trace is not None:
            self.trace.close()
        self.watch = self.trace = None
        self.guest.__exit__(None, None, None)

    def tell(self, *words: object) -> None:
        """Note what happens."""
        self.story.append(" ".join(map(str, words)))

    def page(self) -> int:
        """Some are near each other and some far apart: gaps are guarded along, or not."""
        return self.random.choice([self.random.randrange(40), self.random.randrange(600, 610)]) + self.random.choice(
            [0, 0, 900]
        )

    def pages(self) -> tuple[int, int]:
        """Some pages in a row: few, many or most."""
        first = self.page()
        least, most = self.random.choice([(1, 4), (15, 300), (1000, 2000)])
        return first, min(self.random.randint(least, most), SENTINEL_PAGE - first)

    # What the guest and its manager do.

    def change(self) -> None:
        """The guest writes or throws away, or a call of its own writes."""
        if self.random.random() < 0.1:
            page, self.value = self.page(), self.value + 1
            self.tell("read(2) into", page)
            self.guest.read_call(page, self.value)
            self.changes(page, 1, self.value)
            return
        page, count, value = self.begin_command()
        self.guest.finish()
        self.changes(page, count, value)

    def begin_command(self) -> tuple[int, int, int]:
        """Have the guest change pages; returns first, count, and the value that they will have."""
        what = self.random.choice("ffffdu")
        self.value += what == "f"
        (page, count), value = self.pages(), self.value if what == "f" else 0
        self.tell({"f": "fill", "d": "madvise", "u": "remap"}[what], page, "count", count, hex(value))
        self.guest.begin(what, page, count, value)
        return page, count, value

    def changes(self, page: int, count: int, value: int) -> None:
        """It has."""
        self.model.update(dict.fromkeys(range(page, page + count), value))
        self.changed.update(range(page, page + count))

    def look(self) -> None:
        """The guest reads some pages."""
        first = self.page()
        self.tell("look at", first)
        for page in range(first, first + self.random.randrange(1, 40)):
            assert self.guest.read(page) == self.model.get(page, 0), f"page {page}"

    def look_at_all(self) -> None:
        """The guest reads all pages that it ever changed."""
        self.tell("look at all")
        for page in sorted(self.model):
            assert self.guest.read(page) == self.model[page], f"page {page}"

    def manager_looks(self) -> None:
        """A call of the guest's reads a page."""
        page = self.page()
        self.tell("write(2) from", page)
        self.guest.write_call(page)
        address = self.guest.ram.base + (FIRST + page) * PAGE_SIZE
        assert self.guest.ram.read(address, PAGE_SIZE) == page_of(self.model.get(page, 0))

    # Others who want to know what happens.

    def begin_or_end_watching(self) -> None:
        self.tell("watch" if self.watch is None else "watch no more")
        if self.watch is None:
            self.watch = self.guest.machine.dirty.watch()
            self.changed.clear()
        else:
            self.look_for_changes()
            self.watch.close()
            self.watch = None

    def look_for_changes(self) -> None:
        if self.watch is None:
            return
        self.tell("look for changes")
        pages = self.watch.look()
        told = {page - FIRST for run in pages.written + pages.punched for page in pages_of(run)}
        assert self.changed <= told, "changes were missed"
        self.changed.clear()

    def begin_or_end_tracing(self) -> None:
        self.tell("trace" if self.trace is None else "trace no more")
        if self.trace is None:
            self.trace = self.guest.machine.traces.add([PageRun(FIRST, PAGES)], Access.READ | Access.WRITE)
        else:
            self.trace.close()
            self.trace = None


def pages_of(run: PageRun) -> range:
    """The numbers of a run's pages."""
    return range(run.first, run.end)
