"""Zero pages are found among others, whatever they lie between."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from memvm.checkpoint.staging import BATCH_PAGES, _without_zeros
from memvm.memory.pages import PageRun
from memvm.units import PAGE_SIZE

ZERO, FULL, LAST, FIRST = bytes(PAGE_SIZE), b"x" * PAGE_SIZE, bytes(PAGE_SIZE - 1) + b"x", b"x" + bytes(PAGE_SIZE - 1)


@given(
    pages=st.lists(st.sampled_from([ZERO, FULL, LAST, FIRST]), min_size=1, max_size=80),
    cuts=st.sets(st.integers(1, 79)),
    far=st.integers(0, 5),
)
def test_zero_pages_and_others(pages: list[bytes], cuts: set[int], far: int) -> None:
    buffer = bytearray(b"".join(pages)).ljust(BATCH_PAGES * PAGE_SIZE, b"\0")
    borders = sorted({0, len(pages), *(cut for cut in cuts if cut < len(pages))})
    # The runs lie one behind the other in the buffer, and `far` pages apart in RAM.
    parts: list[tuple[PageRun, int]] = []
    where: list[int] = []
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        parts.append((PageRun(start + number * far, end - start), start * PAGE_SIZE))
        where += range(start + number * far, end + number * far)
    zeros: list[PageRun] = []
    others = list(_without_zeros(buffer, parts, zeros))
    assert [page for run in zeros for page in range(run.first, run.end)] == [
        page for page, contents in zip(where, pages, strict=True) if contents == ZERO
    ]
    found = {}
    for run, offset in others:
        for index in range(run.count):
            start = offset + index * PAGE_SIZE
            found[run.first + index] = bytes(buffer[start : start + PAGE_SIZE])
    assert found == {page: contents for page, contents in zip(where, pages, strict=True) if contents != ZERO}
