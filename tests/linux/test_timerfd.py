"""A timer's descriptor is readable from its time on, and not before."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from memvm.linux.timerfd import Timer


@pytest.fixture
def timer() -> Iterator[Timer]:
    made = Timer()
    yield made
    made.close()


def readable(timer: Timer, seconds: float) -> bool:
    return bool(select.select([timer.fd], [], [], seconds)[0])


def test_it_expires_at_its_time_and_stays_so(timer: Timer) -> None:
    when = time.monotonic_ns() + 3_000_000
    timer.set(when)
    assert readable(timer, 20)
    assert time.monotonic_ns() >= when
    assert readable(timer, 0)


@pytest.mark.parametrize("when", [-(1 << 63), 0, 1])
def test_a_time_that_has_passed_is_now(timer: Timer, when: int) -> None:
    timer.set(when)
    assert readable(timer, 20)


def test_it_can_be_set_anew_and_cleared(timer: Timer) -> None:
    assert not readable(timer, 0)
    timer.set(1)
    assert readable(timer, 20)
    timer.set((1 << 63) - 1)
    assert not readable(timer, 0)
    timer.set(1)
    timer.clear()
    assert not readable(timer, 0)
