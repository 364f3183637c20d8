"""Page sources for tests: contents that follow from page numbers, counted loads, pages that cannot be loaded."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable

from memvm.errors import BadPage
from memvm.memory.deferred import Chunk
from memvm.memory.pages import PageRun, runs_of
from memvm.units import PAGE_SIZE

WORDS = PAGE_SIZE // 8


def page_of(value: int) -> bytes:
    """A page with this number in each of its words."""
    return struct.pack("=Q", value) * WORDS


def saved_value(page: int) -> int:
    """What the source has in each word of a page."""
    return 0xABC0000 + page


class FakeSource:
    """Has the given pages, `chunk_pages` to a chunk, in ascending order; a chunk may have several runs."""

    def __init__(self, pages: Iterable[int], chunk_pages: int = 4, *, bad: Iterable[int] = ()) -> None:
        self.pages = sorted(pages)
        self.bad = set(bad)
        """Pages whose chunks cannot be loaded."""
        self.stalls: random.Random | None = None
        """Where waits during loads come from, up to a millisecond each."""
        self.loads: Counter[int] = Counter()
        self.chunks = [self.pages[i : i + chunk_pages] for i in range(0, len(self.pages), chunk_pages)]
        self._chunk_of = {page: number for number, chunk in enumerate(self.chunks) for page in chunk}
        self._lock = threading.Lock()

    @property
    def runs(self) -> list[PageRun]:
        """All pages."""
        return runs_of(self.pages)

    def chunk_of(self, page: int) -> int:
        """The number of the chunk that has this page."""
        return self._chunk_of[page]

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The pages that a chunk has."""
        return runs_of(self.chunks[chunk])

    def load(self, chunk: int) -> Chunk:
        """The chunk's contents; BadPage if one of its pages is bad."""
        with self._lock:
            self.loads[chunk] += 1
            stall = self.stalls.random() * 0.001 if self.stalls is not None else 0.0
        if stall:
            time.sleep(stall)
        if bad := sorted(self.bad.intersection(self.chunks[chunk])):
            raise BadPage(bad[0], f"page {bad[0]} is bad")
        return Chunk(self.runs_of(chunk), b"".join(page_of(saved_value(page)) for page in self.chunks[chunk]))
