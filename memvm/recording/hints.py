"""What earlier restores of a checkpoint used: a hint for the next one, which never grows without bound.

Each restore notes the pages that it touched in a bounded window. Merged into the hint, they come first, in their order;
pages that only earlier restores touched follow, in the order that they had. A page that no restore touched for
MAX_AGE restores is dropped. If there are still more pages than may be, those go first that were not touched for the
longest time, and among them those that fewest restores touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_AGE = 4
MOST_HINTS = 1 << 20
"""Pages that a hint has at most: 4 GiB of guest RAM. Two bytes each and less, once they are compressed."""
MAX_HITS = 255


class PageHint(NamedTuple):
    """A page that earlier restores used; the numbers fit in bytes."""

    page: int
    hits: int
    """How many restores touched it, up to MAX_HITS."""
    age: int
    """How many restores ago the last of them was: 0 is the latest, MAX_AGE - 1 the oldest that is kept."""


def merge(hints: Sequence[PageHint], touched: Iterable[int], most: int = MOST_HINTS) -> list[PageHint]:
    """The hint after one more restore, which touched these pages in this order (each may come more than once)."""
    known = {hint.page: hint for hint in hints}
    merged = []
    for page in dict.fromkeys(touched):
        before = known.pop(page, None)
        merged.append(PageHint(page, min(MAX_HITS, before.hits + 1) if before else 1, 0))
    merged += [hint._replace(age=hint.age + 1) for hint in known.values() if hint.age + 1 < MAX_AGE]
    if len(merged) <= most:
        return merged
    kept = sorted(range(len(merged)), key=lambda place: (merged[place].age, -merged[place].hits, place))[:most]
    return [merged[place] for place in sorted(kept)]


def pages(hints: Iterable[PageHint]) -> list[int]:
    """The pages of a hint, in the order in which they are likely to be needed."""
    return [hint.page for hint in hints]
