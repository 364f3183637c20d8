"""The trace request, on a real guest: what is sent, when it ends, and requests that make no sense."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memvm.errors import ControlError, GuestStateError, HostError, UsageError
from memvm.machine.config import ExitStatus
from memvm.manager.client import Client, TraceBatch
from memvm.manager.protocol import encode
from memvm.manager.rundir import RunDir
from memvm.manager.server import ControlServer
from memvm.memory.pages import TRACED, count_flag
from tests.manager.fakes import FakeGuest, save_keywords, suspend_keywords
from tests.memory.conftest import toucher  # noqa: F401  # a fixture
from tests.memory.touching import FIRST, Touching

AREA = [[FIRST, 64]]


class Served:
    """A guest that touches pages on command, its server, and a way to it."""

    def __init__(self, touching: Touching, server: ControlServer, directory: RunDir) -> None:
        self.touching, self.server, self._directory = touching, server, directory

    def connect(self) -> Client:
        return Client(self._directory.connect("hub", 20), "hub")

    def await_trace(self, there: bool = True) -> None:
        """Wait until pages are traced, or are no more."""
        ram = self.touching.ram
        self.touching.wait_for(lambda: bool(count_flag(ram.flags, TRACED)) == there and (there or ram.traces is None))
        with self.touching.machine.traces._arming:  # flags come first, then what they say holds
            pass


@pytest.fixture
def served(toucher: Path, time_scale: float) -> Iterator[Served]:  # noqa: F811
    """It has its area, and nothing in it."""
    try:
        touching = Touching(toucher, "auto", 20 * time_scale)
    except HostError as error:
        pytest.skip(str(error))
    with touching, RunDir() as directory:
        touching.start()
        touching.fill(0, 1, count=64)
        reservation = directory.reserve("hub", "toucher")
        server = ControlServer(reservation.listener, "hub", "toucher")
        server.start()
        asleep = FakeGuest(("sleep",))
        server.attach(touching.machine, save_keywords(asleep), suspend_keywords(asleep))
        try:
            yield Served(touching, server, directory)
        finally:
            server.finish(ExitStatus(0))
            reservation.release()
            server.close()


@contextmanager
def meanwhile(function: Callable[[], None]) -> Iterator[None]:
    """Something else happens at the same time; it must be over soon after the block."""
    thread = threading.Thread(target=function)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def pages_of(batches: Iterator[TraceBatch]) -> list[int]:
    """The pages that were heard of, of the area."""
    return [event.page - FIRST for batch in batches for event in batch.events]


def test_events_come_until_there_are_enough(served: Served) -> None:
    def read() -> None:
        served.await_trace()
        for page in (5, 6, 7, 8):
            served.touching.read(page)

    with served.connect() as client:
        with meanwhile(read):
            assert pages_of(client.trace(pages=AREA, access="r", events=3)) == [5, 6, 7]
        assert client.status().name == "touching"
    served.await_trace(there=False)


def test_it_ends_after_its_time(served: Served) -> None:
    with served.connect() as client:
        assert [batch.events for batch in client.trace(pages=AREA, seconds=0.01) if batch.events] == []
    served.await_trace(there=False)


def test_it_ends_with_the_guest(served: Served) -> None:
    def end() -> None:
        served.await_trace()
        served.touching.read(1)
        served.touching.machine.kill()
        served.server.finish(ExitStatus(137))

    with served.connect() as client, meanwhile(end):
        assert pages_of(client.trace(pages=AREA)) == [1]


def test_a_client_that_goes_away_ends_it(served: Served) -> None:
    with served.connect() as client:
        client._connection.sendall(encode({"do": "trace", "pages": AREA}))
        served.await_trace()
    served.await_trace(there=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"pages": "all"},
        {"pages": [[1]]},
        {"pages": [[1, 0]]},
        {"pages": [[1, True]]},
        {"pages": [[1 << 40, 1]]},
        {"access": "x"},
        {"again": 0},
        {"seconds": -1},
        {"seconds": "1"},
        {"events": 0},
    ],
)
def test_requests_that_make_no_sense(served: Served, fields: dict[str, object]) -> None:
    with served.connect() as client:
        with pytest.raises(UsageError):
            list(client.trace(**fields))
        assert client.status().name == "touching"
    assert served.touching.ram.traces is None


def test_a_guest_that_has_ended_is_not_traced(served: Served) -> None:
    served.touching.machine.kill()
    served.touching.ended()
    with served.connect() as client, pytest.raises((GuestStateError, ControlError)):
        list(client.trace(pages=AREA))


def test_the_working_set_is_sampled_while_somebody_wants_it(served: Served) -> None:
    with served.connect() as client:
        assert client.status().working_set_size is None
        client.sample_working_set(50, 0.001)
        served.touching.wait_for(lambda: served.touching.machine.status().working_set_size is not None)
        status = client.status()
        assert status.working_set_size is not None
        assert status.working_set_error_size is not None
        assert 0 <= status.working_set_size <= status.ram_touched
        assert status.working_set_error_size > 0
        client.sample_working_set(0)
        assert client.status().working_set_size is None
        for pages, interval in ((-1, 1.0), (10, 0.0), (1 << 20, 1.0)):
            with pytest.raises(UsageError):
                client.sample_working_set(pages, interval)
    served.await_trace(there=False)


def test_sampling_ends_with_the_guest(served: Served) -> None:
    with served.connect() as client:
        client.sample_working_set(50, 0.001)
        served.touching.machine.kill()
        served.touching.ended()
