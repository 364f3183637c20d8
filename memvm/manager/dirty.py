"""Watching what a guest writes, over the control socket: one watch a connection, from its first request to its end.

{"do": "dirty"}                   the first begins to watch, the others tell what changed since the one before
{"do": "dirty", "pages": true}    and which pages: {"written": [first, count, first, count, ...], "punched": [...]}
{"do": "dirty", "more": true}     the next part of that look's pages, as long as an answer said "more": true
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.errors import ControlError, UsageError
from memvm.units import PAGE_SIZE

if TYPE_CHECKING:
    from memvm.manager.guest import Watch
    from memvm.manager.protocol import Json

MOST_RUNS = 20_000
"""Runs of pages in one answer: at most 22 bytes each, so all fit a line of the protocol."""

PageRange = tuple[int, int]
"""The number of the first page, counted from the start of guest RAM, and how many there are."""


class DirtyLook(NamedTuple):
    """What changed in guest RAM between two looks."""

    seconds: float
    """How long ago the look before was."""
    pages_written: int
    """Pages that may have other contents now, and hold memory."""
    pages_punched: int
    """Pages that the guest gave back (munmap, madvise): they are zero, and hold no memory."""
    means: str
    """How it is known, for people."""
    written: tuple[PageRange, ...] = ()
    """The pages that were written, ascending, if they were asked for."""
    punched: tuple[PageRange, ...] = ()

    @property
    def bytes_written(self) -> int:
        """The size of the pages that were written."""
        return self.pages_written * PAGE_SIZE

    @property
    def rate(self) -> float:
        """Bytes written per second."""
        return self.bytes_written / self.seconds if self.seconds > 0 else 0.0


class DirtySession:
    """The manager's side: a connection's watch, and what of its last look was not told yet."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._parts: Iterator[tuple[str, PageRange]] = iter(())
        self._begun = False

    def answer(self, request: Json) -> Json:
        """The answer to one request. Raises GuestStateError, UsageError."""
        if _boolean(request, "more"):
            return self._next_part()
        pages = _boolean(request, "pages")
        if not self._begun:
            self._begun = True
            return self._summary(0.0, (), ())
        look = self._watch.look()
        told = self._summary(look.seconds, look.written, look.punched)
        self._parts = iter(())
        if pages:
            self._parts = chain(
                (("written", (run.first, run.count)) for run in look.written),
                (("punched", (run.first, run.count)) for run in look.punched),
            )
            told |= self._next_part()
        return told

    def _summary(self, seconds: float, written: Iterable[Any], punched: Iterable[Any]) -> Json:
        return {
            "seconds": seconds,
            "pages_written": sum(run.count for run in written),
            "pages_punched": sum(run.count for run in punched),
            "means": self._watch.means,
        }

    def _next_part(self) -> Json:
        part: Json = {"written": [], "punched": []}
        count = 0
        for kind, run in islice(self._parts, MOST_RUNS):
            part[kind] += run
            count += 1
        return {**part, "more": count == MOST_RUNS}

    def close(self) -> None:
        """Watch no more."""
        self._watch.close()


def runs_from_json(numbers: object) -> list[PageRange]:
    """The runs of one part. Raises ControlError."""
    if not isinstance(numbers, list) or len(numbers) % 2 or not all(type(number) is int for number in numbers):
        raise ControlError("the manager sent runs of pages that make no sense")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _boolean(request: Json, key: str) -> bool:
    value = request.get(key, False)
    if type(value) is not bool:
        raise UsageError(f"dirty: {key} has to be true or false, not {value!r:.80}")
    return value
