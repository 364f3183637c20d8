"""Which pages to bring before the guest asks for them: one small interface, the policies that come with memvm, and a
user's own by `pkg.module:Class`.

A policy is asked twice: once before the guest runs (`prefetch`), and at each page that the guest has to wait for
(`on_fault`). It only names pages. Whoever asks brings them, leaves out what is there already or holds no data, and
brings the page that the guest waits for whether the policy names it or not. So a policy may be wasteful, never wrong.

    class Neighbours:
        name = "neighbours"

        def prefetch(self, facts):
            return facts.active.pages[:1000]

        def on_fault(self, page, facts):
            return [PageRun(page, min(4, facts.ram_pages - page))]

Pages are named as a list of runs, or, before the guest runs, as an array of their numbers: where they are many and
scattered, that is much less to make. `on_fault` is called while the guest waits: it has to be quick. A policy that
raises, or names what is no page of guest RAM, is an error that names the policy (`CheckedPolicy`, which `load_policy`
returns, looks at every answer of a user's policy).

How much is worth waiting for: `active` and `recorded` bring at most half of the pages that have data (MOST_AHEAD),
those that were used first; but 64 MiB in any case, which take less than a tenth of a second. Whoever uses more than
that is served as well by bringing everything, and a policy that is not called eager should not make the guest wait as
long as eager does.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress, islice
from operator import ne, sub
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, overload

from memvm.errors import UsageError
from memvm.memory.pages import PageRun
from memvm.units import MIB, PAGE_SIZE

Named: TypeAlias = "list[PageRun] | array[int]"
"""What a policy names before the guest runs: runs of pages, or numbers of pages."""

MOST_AHEAD = 0.5
"""The share of the data pages that `active` and `recorded` bring at most, unless that is less than LEAST_BOUND."""
LEAST_BOUND = 64 * MIB // PAGE_SIZE
"""Pages."""
FAULT_AROUND = 64
"""Pages that `sequential` brings at a time: 256 KiB. All policies but `demand` bring up to 16 neighbours with any page,
since a checkpoint has them in one piece."""
_INTEGERS = "bBhHiIlLqQ"
"""Types of arrays."""
_INTERFACE_HINT = "memvm/recording/policies.py shows what a policy has to have"


class ActivePage(NamedTuple):
    """A page that was seen accessed while the state was saved."""

    page: int
    access: int
    """Bits of Access."""


class ActiveList(Sequence[ActivePage]):
    """What a save saw accessed, in the order of first access; in columns, as a restore waits for what is made of it."""

    def __init__(self, pages: array[int] | None = None, kinds: bytes = b"") -> None:
        """`kinds` has the Access of each page."""
        self.pages = array("I") if pages is None else pages
        """Their numbers only."""
        self._kinds = kinds

    @classmethod
    def of(cls, accesses: Iterable[tuple[int, int]]) -> ActiveList:
        """The list of these pages, each with its Access."""
        pages, kinds = array("I"), bytearray()
        for page, access in accesses:
            pages.append(page)
            kinds.append(access)
        return cls(pages, bytes(kinds))

    def __len__(self) -> int:
        return len(self.pages)

    def __iter__(self) -> Iterator[ActivePage]:
        return map(ActivePage, self.pages, self._kinds)

    @overload
    def __getitem__(self, place: int) -> ActivePage: ...
    @overload
    def __getitem__(self, place: slice) -> list[ActivePage]: ...
    def __getitem__(self, place: int | slice) -> ActivePage | list[ActivePage]:
        if isinstance(place, slice):
            return list(map(ActivePage, self.pages[place], self._kinds[place]))
        return ActivePage(self.pages[place], self._kinds[place])


class RestoreFacts(NamedTuple):
    """What is known of a checkpoint when it is restored; pages count from the RAM base."""

    ram_pages: int
    """How many pages guest RAM has."""
    data_runs: Sequence[PageRun]
    """The pages that have data in the file, ascending; the others are zero, or were never touched."""
    active: ActiveList = ActiveList()
    """What the save saw accessed, in the order of first access."""
    recorded: Sequence[int] = ()
    """The pages that earlier restores of the file used, in the order in which they are likely to be needed."""

    @property
    def most_ahead(self) -> int:
        """How many pages are worth loading before the guest runs, unless somebody wants all of them."""
        return max(LEAST_BOUND, int(sum(run.count for run in self.data_runs) * MOST_AHEAD))


class Policy(Protocol):
    """What a prefetch policy is."""

    name: str

    def prefetch(self, facts: RestoreFacts) -> Named:
        """The pages to bring before the guest runs, the most urgent first."""

    def on_fault(self, page: int, facts: RestoreFacts) -> list[PageRun]:
        """The pages to bring together with this one, for which the guest waits."""


class Demand:
    """Brings nothing but what the guest asks for, page by page: what the others are measured by."""

    name = "demand"

    def prefetch(self, facts: RestoreFacts) -> Named:
        return []

    def on_fault(self, page: int, facts: RestoreFacts) -> list[PageRun]:
        return []


class Sequential(Demand):
    """Brings what lies around a page that the guest asks for."""

    name = "sequential"

    def on_fault(self, page: int, facts: RestoreFacts) -> list[PageRun]:
        first = page - page % FAULT_AROUND
        return [PageRun(first, min(FAULT_AROUND, facts.ram_pages - first))]


class Active(Demand):
    """Brings what the guest used while it was saved."""

    name = "active"

    def prefetch(self, facts: RestoreFacts) -> Named:
        return _ahead(facts.active.pages, facts)


class Recorded(Active):
    """Brings what earlier restores of the same checkpoint used; as long as there are none, what the save saw."""

    name = "recorded"

    def prefetch(self, facts: RestoreFacts) -> Named:
        return _ahead(facts.recorded, facts) if facts.recorded else super().prefetch(facts)


class Eager(Demand):
    """Brings everything."""

    name = "eager"

    def prefetch(self, facts: RestoreFacts) -> Named:
        return list(facts.data_runs)


BUILT_IN: dict[str, Callable[[], Policy]] = {kind.name: kind for kind in (Demand, Sequential, Active, Recorded, Eager)}


def _ahead(pages: Sequence[int], facts: RestoreFacts) -> array[int]:
    """The first of these, as many as are worth waiting for."""
    first = pages if len(pages) <= LEAST_BOUND else pages[: facts.most_ahead]
    return first if isinstance(first, array) else array("I", first)


def in_order(pages: Iterable[int]) -> list[PageRun]:
    """Pages as runs, in the order given: a run goes on only where the next page is its neighbour."""
    numbers = list(pages)
    if not numbers:
        return []
    apart = map(ne, islice(numbers, 1, None), map((1).__add__, numbers))
    starts = [0, *compress(range(1, len(numbers)), apart)]
    ends = [*starts[1:], len(numbers)]
    return list(map(PageRun, map(numbers.__getitem__, starts), map(sub, ends, starts)))


class CheckedPolicy:
    """A policy whose answers can be relied on. Its methods raise UsageError if the policy misbehaves."""

    def __init__(self, policy: Policy, name: str = "", *, trusted: bool = False) -> None:
        """`trusted` policies are memvm's own: looking at a hundred thousand pages would be felt at the start."""
        self._policy = policy
        self._trusted = trusted
        self.name = name or policy.name

    @property
    def goes_around(self) -> bool:
        """Whether it may name anything at a fault."""
        return not self._trusted or isinstance(self._policy, Sequential)

    @property
    def page_by_page(self) -> bool:
        """Whether a page that the guest waits for shall come without the neighbours that are stored with it."""
        return self._trusted and type(self._policy) is Demand

    @property
    def wants_recorded(self) -> bool:
        """Whether it may look at what earlier restores used."""
        return not self._trusted or isinstance(self._policy, Recorded)

    def leaves_scattered(self, facts: RestoreFacts) -> bool:
        """Whether pages that are not stored together with others that it names may as well come when they are touched.

        A save stores active pages together, except those that it saw used only after they were stored: what is used so
        rarely is hardly needed at once. What earlier restores used, was needed, wherever it is stored.
        """
        by_save = isinstance(self._policy, Active) and not (isinstance(self._policy, Recorded) and facts.recorded)
        return self._trusted and by_save

    def prefetch(self, facts: RestoreFacts) -> Named:
        """The pages to bring before the guest runs, all in guest RAM."""
        answer = self._answer(lambda: self._policy.prefetch(facts))
        return self._checked_numbers(answer, facts) if isinstance(answer, array) else self._checked_runs(answer, facts)

    def on_fault(self, page: int, facts: RestoreFacts) -> list[PageRun]:
        """The pages to bring with this one, all in guest RAM."""
        return self._checked_runs(self._answer(lambda: self._policy.on_fault(page, facts)), facts)

    def _answer(self, ask: Callable[[], object]) -> object:
        try:
            return ask()
        except (Exception, SystemExit) as error:  # whatever a user's class raises
            raise UsageError(
                f"policy {self.name} failed: {type(error).__name__}: {error}", hint=_INTERFACE_HINT
            ) from error

    def _checked_numbers(self, pages: array[int], facts: RestoreFacts) -> array[int]:
        if not self._trusted and pages:
            if pages.typecode not in _INTEGERS:
                raise self._nonsense(f"an array of type {pages.typecode!r}, which are no page numbers")
            if not 0 <= (first := min(pages)) <= (last := max(pages)) < facts.ram_pages:
                raise self._nonsense(f"page {first if first < 0 else last}, {_where(facts)}")
        return pages

    def _checked_runs(self, runs: object, facts: RestoreFacts) -> list[PageRun]:
        if not isinstance(runs, list):
            raise self._nonsense(f"a {type(runs).__name__}, not a list of page runs")
        return runs if self._trusted else [self._checked_run(run, facts) for run in runs]

    def _checked_run(self, run: object, facts: RestoreFacts) -> PageRun:
        if not isinstance(run, tuple) or [type(number) for number in run] != [int, int]:
            raise self._nonsense(f"{run!r:.60}, which is no run of pages")
        first, count = run
        if not 0 <= first < first + count <= facts.ram_pages:
            raise self._nonsense(f"{count} pages from page {first}, {_where(facts)}")
        return PageRun(first, count)

    def _nonsense(self, what: str) -> UsageError:
        return UsageError(f"policy {self.name} named {what}", hint=_INTERFACE_HINT)


def _where(facts: RestoreFacts) -> str:
    return f"where RAM has pages 0 to {facts.ram_pages - 1}"


def load_policy(name: str) -> CheckedPolicy:
    """The policy of that name: one of BUILT_IN, or a class as `pkg.module:Class`. Raises UsageError.

    A user's module is looked for in the current directory too, after everywhere else.
    """
    if name in BUILT_IN:
        return CheckedPolicy(BUILT_IN[name](), trusted=True)
    module_name, colon, class_name = name.partition(":")
    if not (colon and module_name and class_name):
        raise UsageError(
            f"there is no policy {name!r}", hint=f"one of {', '.join(BUILT_IN)}, or your own as pkg.module:Class"
        )
    from importlib import import_module

    try:
        with _found_here():
            module = import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise UsageError(
            f"policy {name}: {module_name} cannot be imported: {type(error).__name__}: {error}",
            hint="it is looked for where PYTHONPATH says, and in the current directory",
        ) from error
    kind = getattr(module, class_name, None)
    if kind is None:
        raise UsageError(f"policy {name}: {module_name} has no {class_name}", hint=_INTERFACE_HINT)
    try:
        policy = kind()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"policy {name} cannot be made: {type(error).__name__}: {error}", hint=_INTERFACE_HINT
        ) from error
    for method in ("prefetch", "on_fault"):
        if not callable(getattr(policy, method, None)):
            raise UsageError(f"policy {name}: {class_name} is no policy: it has no {method}()", hint=_INTERFACE_HINT)
    return CheckedPolicy(policy, getattr(policy, "name", None) or name)


@contextmanager
def _found_here() -> Iterator[None]:
    """Lets modules be imported from the current directory for as long as this lasts."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
