"""A template: the data pages of a checkpoint in one memory file that nobody can change, for many guests to take from.

The guests of one template begin with all of these pages deferred. A page that one of them touches, or that its manager
reads for it, is copied into its own RAM, with its neighbours in a small group; all others are there once, in the
template. (A page that is only read is copied too: guest RAM is a memory file of its own, and Linux has no way for two
of them to share a page.) Sealed against writing, the template cannot carry anything from one guest to another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from memvm.linux import memfd
from memvm.memory.deferred import Chunk
from memvm.memory.pages import DEFERRED, PageRun, flagged_runs, set_flag
from memvm.units import PAGE_SIZE

GROUP_PAGES = 2
"""Pages that are copied together: more would be fewer faults, and more memory in each guest that it may never use."""


class Template:
    """The memory file. Fill it with `copy_in`, `seal` it, then share it, also with forked processes."""

    def __init__(self, size: int) -> None:
        """`size` in bytes, whole pages. Raises OSError."""
        self.fd = memfd.create_memory("memvm-template", size)
        self.data = bytearray(size // PAGE_SIZE)
        """A byte a page: DEFERRED where the template has contents for it."""

    def copy_in(self, first: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Fill neighbouring pages."""
        memfd.write_all(self.fd, first * PAGE_SIZE, pieces)

    def seal(self, runs: Iterable[PageRun]) -> None:
        """All is filled in, and these are the pages that have contents: from now on it cannot change."""
        for run in runs:
            set_flag(self.data, run.first, run.count, DEFERRED)
        memfd.forbid_changes(self.fd)

    def close(self) -> None:
        """Let go of it, in this process."""
        os.close(self.fd)


class TemplateSource:
    """A template as the source of one guest's deferred pages: its chunks are groups of neighbouring pages."""

    def __init__(self, template: Template) -> None:
        self._fd = template.fd
        self._data = template.data

    def chunk_of(self, page: int) -> int:
        """The group that a page is in."""
        return page // GROUP_PAGES

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The pages of a group that the template has."""
        return list(flagged_runs(self._data, chunk * GROUP_PAGES, GROUP_PAGES, DEFERRED))

    def load(self, chunk: int) -> Chunk:
        """Their contents, which were verified when the template was filled."""
        first = chunk * GROUP_PAGES
        if self._data.count(DEFERRED, first, first + GROUP_PAGES) == GROUP_PAGES:
            return Chunk([PageRun(first, GROUP_PAGES)], self._read(first, GROUP_PAGES))
        runs = self.runs_of(chunk)
        return Chunk(runs, b"".join(self._read(*run) for run in runs))

    def _read(self, first: int, count: int) -> bytes:
        return os.pread(self._fd, count * PAGE_SIZE, first * PAGE_SIZE)
