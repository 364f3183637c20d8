"""The working-set estimate: right for a guest whose accesses are known, and honest about its error."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import pytest

from memvm.memory.pages import TRACED, PageRun, count_flag
from memvm.memory.ram import GuestRam
from memvm.memory.traces import Access, Traces
from memvm.memory.working_set import WorkingSetSampler
from memvm.units import PAGE_SIZE
from tests.memory.fake_engine import FakeEngine

PAGES, HOT = 1000, 300


class Sampled:
    """Guest RAM with 1000 touched pages and holes between them, of which a guest uses the first 300."""

    def __init__(self, pages: int) -> None:
        self.ram = GuestRam(0x200000, 4 * PAGES * PAGE_SIZE)
        for page in range(PAGES):
            self.ram.copy_in(3 * page, [b"x"])
        self.engine = FakeEngine(self.ram)
        self.failures: list[BaseException] = []
        self.traces = Traces(self.ram, self.engine, lambda _vcpu: 0, self.failures.append)
        self.sampler = WorkingSetSampler(self.ram, self.traces, self.failures.append, pages=pages, interval=60, seed=3)

    def use(self) -> None:
        """The guest goes over its hot pages, twice."""
        for page in [*range(HOT), *range(HOT)]:
            self.engine.guest_read(3 * page)


@pytest.fixture
def sampled() -> Iterator[Sampled]:
    """Samples of 200 pages."""
    sampled = Sampled(200)
    yield sampled
    sampled.ram.close()


def test_before_the_first_sample_there_is_no_estimate(sampled: Sampled) -> None:
    assert sampled.sampler.estimate is None


def test_the_estimate_is_near_the_truth(sampled: Sampled) -> None:
    for _ in range(8):
        sampled.sampler.sample(sampled.use)
    estimate = sampled.sampler.estimate
    assert estimate is not None
    assert estimate.population == PAGES * PAGE_SIZE
    assert (estimate.sampled, estimate.interval) == (1600, 60)
    assert abs(estimate.size - HOT * PAGE_SIZE) < 4 * estimate.error
    expected = PAGES * PAGE_SIZE * sqrt(0.3 * 0.7 / 1600)
    assert 0.8 * expected < estimate.error < 1.2 * expected


def test_only_the_last_samples_count(sampled: Sampled) -> None:
    for _ in range(4):
        sampled.sampler.sample(sampled.use)
    for _ in range(8):
        sampled.sampler.sample(lambda: None)
    estimate = sampled.sampler.estimate
    assert estimate is not None
    assert (estimate.size, estimate.accessed) == (0, 0)
    assert estimate.error > 0


def test_a_sample_costs_at_most_a_fault_for_each_of_its_pages_and_leaves_nothing(sampled: Sampled) -> None:
    hidden: list[int] = []
    sampled.sampler.sample(lambda: hidden.append(count_flag(sampled.ram.flags, TRACED)))
    assert hidden == [200]
    assert not count_flag(sampled.ram.flags, TRACED)
    assert sampled.ram.traces is None


def test_more_pages_than_there_are_are_all_of_them() -> None:
    sampled = Sampled(5000)
    sampled.sampler.sample(sampled.use)
    estimate = sampled.sampler.estimate
    assert estimate is not None
    assert estimate.size == HOT * PAGE_SIZE
    sampled.ram.close()


def test_a_guest_without_memory_has_no_working_set() -> None:
    sampled = Sampled(10)
    sampled.ram.discard(0, sampled.ram.page_count)
    sampled.sampler.sample(lambda: None)
    assert sampled.sampler.estimate is None
    sampled.ram.close()


def test_it_runs_by_itself_until_it_is_stopped(sampled: Sampled) -> None:
    sampled.sampler.interval = 0.001
    sampled.sampler.start()
    while sampled.sampler.estimate is None:
        sampled.traces.add([PageRun(0, 1)], Access.READ).close()
    sampled.sampler.stop()
    assert not sampled.failures
    assert sampled.ram.traces is None


def test_samples_without_pages_or_time_are_refused(sampled: Sampled) -> None:
    for pages, interval in ((0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError, match="a sample has"):
            WorkingSetSampler(sampled.ram, sampled.traces, sampled.failures.append, pages=pages, interval=interval)
