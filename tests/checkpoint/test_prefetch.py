"""What policies name, as chunks of a file: which are read, and with how many reads."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.checkpoint.chain import Chain
from memvm.checkpoint.file_writer import CheckpointWriter
from memvm.checkpoint.prefetch import Prefetch, Prefetched, bytes_of, chunks_of, facts_of, read_groups
from memvm.memory.pages import PageRun, runs_of
from memvm.memory.ram import GuestRam
from memvm.recording.policies import ActiveList, ActivePage, CheckedPolicy, RestoreFacts, load_policy
from memvm.units import MIB, PAGE_SIZE
from tests.checkpoint.lives import damage
from tests.checkpoint.random_files import write_random_file
from tests.checkpoint.samples import BASE, HEADER, raw_frame, write_small_child, write_small_file

CHUNKS = 300


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    write_small_file(tmp_path / "parent.ckpt")
    write_small_child(tmp_path / "child.ckpt", tmp_path / "parent.ckpt")
    with Chain.open(tmp_path / "child.ckpt") as chain:
        yield chain


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(BASE, HEADER.ram_size)
    yield ram
    ram.close()


def prefetch(chain: Chain, ram: GuestRam, policy: CheckedPolicy, facts: RestoreFacts) -> Prefetched:
    with Prefetch(chain, ram, policy, facts) as loading:
        return loading.wait()


def test_what_a_policy_knows(chain: Chain) -> None:
    facts = facts_of(chain, [7])
    assert facts.ram_pages == 64 and facts.recorded == [7]
    assert list(facts.data_runs) == chain.index.united_runs()
    assert (len(facts.data_runs), facts.data_runs[0]) == (len(chain.index.united_runs()), chain.index.united_runs()[0])
    assert list(facts.active) == [ActivePage(30, 3), ActivePage(10, 1)]
    assert (len(facts.active), facts.active[1], facts.active[:1]) == (2, ActivePage(10, 1), [ActivePage(30, 3)])


def test_the_chunks_of_a_chain_that_have_pages(chain: Chain) -> None:
    assert chunks_of(chain, []) == []
    assert chunks_of(chain, [PageRun(30, 1), PageRun(10, 1)]) == [range(1, 2), range(3, 4)]
    assert chunks_of(chain, [PageRun(0, 64)]) == [range(2), range(3, 5)]
    assert chunks_of(chain, [PageRun(40, 5), PageRun(63, 1)]) == [], "zeros and holes"


@given(seed=st.integers(0, 10_000), data=st.data())
def test_chunks_are_those_of_the_pages(
    seed: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("random") / "a.ckpt"
    write_random_file(path, random.Random(seed))
    with Chain.open(path) as chain:
        pages = data.draw(st.sets(st.integers(0, chain.header.ram_pages - 1), max_size=20))
        chunks = chunks_of(chain, runs_of(sorted(pages)))
        assert {chunk for run in chunks for chunk in run} == {chain.index.chunk_of(page) for page in pages} - {None}
        groups = read_groups(chain, chunks)
        assert [chunk for group in groups for chunk in group] == [chunk for run in chunks for chunk in run]
        assert bytes_of(chain, groups) == bytes_of(chain, chunks)
        assert chunks_of(chain, array("I", pages)) == chunks


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Chain]:
    """Chunks that cannot be compressed, 18 MiB of them; storage blocks of one MiB."""
    header = HEADER._replace(ram_size=CHUNKS * 16 * PAGE_SIZE, chunk_pages=16, block_size=MIB)
    frame = raw_frame(random.Random(1).randbytes(16 * PAGE_SIZE))
    with CheckpointWriter(tmp_path / "large.ckpt", header) as writer:
        for chunk in range(CHUNKS):
            writer.add_chunk(frame, [PageRun(16 * chunk, 16)])
        writer.commit(b"{}")
    with Chain.open(tmp_path / "large.ckpt") as chain:
        yield chain


def test_few_pages_that_are_stored_apart_are_left_to_whoever_touches_them(large: Chain) -> None:
    dense, few, half = PageRun(0, 32), PageRun(160, 7), PageRun(320, 8)
    runs = [dense, few, half]
    assert chunks_of(large, runs) == [range(2), range(10, 11), range(20, 21)]
    assert chunks_of(large, runs, together=True) == [range(2), range(20, 21)]
    active = ActiveList.of((page, 1) for run in runs for page in range(run.first, run.end))
    facts = RestoreFacts(large.header.ram_pages, large.index.united_runs(), active)
    recorded = facts._replace(recorded=active.pages)
    assert load_policy("active").leaves_scattered(facts) and load_policy("recorded").leaves_scattered(facts)
    assert not load_policy("recorded").leaves_scattered(recorded), "a restore has needed them"


def test_reads_are_storage_blocks(large: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most as many as the set has bytes, divided by a storage block, and one for each place where it is torn.

    So it is unless there are so many CPUs that there would not be a read for each.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    groups = read_groups(large, chunks_of(large, [PageRun(0, 16 * CHUNKS)]))
    size = bytes_of(large, groups)
    assert size == sum(map(len, map(large.read_frame, range(CHUNKS))))
    assert len(groups) <= size / large.header.block_size + 1
    assert all(bytes_of(large, [group]) < large.header.block_size + large.header.max_frame_size for group in groups)
    torn = read_groups(large, chunks_of(large, [PageRun(0, 16), PageRun(48, 16), PageRun(4000, 1)]))
    assert torn == [range(1), range(3, 4), range(250, 251)]


def test_a_small_set_is_read_by_all_cpus(large: Chain) -> None:
    assert len(read_groups(large, chunks_of(large, [PageRun(0, 320)]))) > 3


def test_pages_are_there_before_the_guest_runs(chain: Chain, ram: GuestRam) -> None:
    found = prefetch(chain, ram, load_policy("active"), facts_of(chain, ()))
    pages = {page for run in found.there for page in range(run.first, run.end)}
    assert pages == {10, 20, 30}
    assert (found.reads, found.bytes_read) == (2, bytes_of(chain, [range(1, 2), range(3, 4)]))
    assert ram.read(BASE + 30 * PAGE_SIZE, PAGE_SIZE) == b"\x55" * PAGE_SIZE
    assert ram.read(BASE + 10 * PAGE_SIZE, PAGE_SIZE) == b"\x22" * PAGE_SIZE


def test_what_cannot_be_verified_is_left_out(tmp_path: Path, ram: GuestRam) -> None:
    path = tmp_path / "a.ckpt"
    write_small_file(path)
    damage(path, 2)
    with Chain.open(path) as chain:
        facts = RestoreFacts(64, chain.index.united_runs(), ActiveList.of([(63, 1), (10, 1)]))
        assert prefetch(chain, ram, load_policy("active"), facts).there == [
            PageRun(63, 1),
            PageRun(10, 1),
            PageRun(20, 1),
        ]
        assert prefetch(chain, ram, load_policy("eager"), facts).there == [], "all in one read"
