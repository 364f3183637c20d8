"""Templates: what is put in comes out again, for each guest its own copy, and nothing can change it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from memvm.memory.pages import PageRun
from memvm.memory.template import GROUP_PAGES, Template, TemplateSource
from memvm.units import PAGE_SIZE

PAGES = 16 * GROUP_PAGES


def contents(page: int) -> bytes:
    return bytes((page + 1,)) * PAGE_SIZE


@pytest.fixture
def template() -> Iterator[Template]:
    """All pages of the first half, and every third of the second."""
    template = Template(PAGES * PAGE_SIZE)
    there = [*range(PAGES // 2), *range(PAGES // 2, PAGES, 3)]
    for page in there:
        template.copy_in(page, [contents(page)])
    template.seal(PageRun(page, 1) for page in there)
    yield template
    template.close()


def test_every_page_that_was_put_in_is_in_one_chunk(template: Template) -> None:
    source = TemplateSource(template)
    found: dict[int, bytes] = {}
    for chunk in {source.chunk_of(page) for page in range(PAGES)}:
        runs, data = source.load(chunk)
        assert runs == source.runs_of(chunk)
        pages = [page for run in runs for page in range(run.first, run.end)]
        assert all(source.chunk_of(page) == chunk for page in pages)
        assert len(data) == len(pages) * PAGE_SIZE
        found.update((page, data[at * PAGE_SIZE :][:PAGE_SIZE]) for at, page in enumerate(pages))
    expected = [*range(PAGES // 2), *range(PAGES // 2, PAGES, 3)]
    assert found == {page: contents(page) for page in expected}


def test_a_sealed_template_cannot_be_changed(template: Template) -> None:
    with pytest.raises(PermissionError):
        template.copy_in(0, [b"x"])
    with pytest.raises(PermissionError):
        mmap.mmap(template.fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.ftruncate(template.fd, 0)
    with pytest.raises(PermissionError):  # a writable descriptor of its own, through /proc
        os.pwrite(again := os.open(f"/proc/self/fd/{template.fd}", os.O_RDWR), b"x", 0)
    os.close(again)
    assert os.pread(template.fd, PAGE_SIZE, 0) == contents(0)
