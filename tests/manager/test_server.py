"""The control server: each request, the errors that travel, and clients that behave badly."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvm.errors import BadPage, ControlError, GuestStateError, MemvmError, SaveError, UsageError
from memvm.machine.config import ExitStatus, RunState
from memvm.manager import server as server_module
from memvm.manager.client import Client
from memvm.manager.dirty import MOST_RUNS, DirtyLook
from memvm.manager.protocol import MAX_LINE, MAX_TRANSFER, Json, Peer, encode
from memvm.manager.rundir import RunDir
from memvm.manager.server import ControlServer
from tests.manager.fakes import BAD_PAGE, RAM_SIZE, RAM_START, FakeGuest, save_keywords, suspend_keywords


class Served:
    """A fake guest and its server, in this process."""

    def __init__(self, directory: RunDir, server: ControlServer, guest: FakeGuest) -> None:
        self.directory, self.server, self.guest = directory, server, guest

    def connect(self) -> Client:
        return Client(self.directory.connect("hub", 20), "hub")

    def raw(self) -> socket.socket:
        return self.directory.connect("hub", 20)


@contextmanager
def serving(attached: bool = True) -> Iterator[Served]:
    with RunDir() as directory:
        reservation = directory.reserve("hub", "fake")
        server = ControlServer(reservation.listener, "hub", "fake")
        guest = FakeGuest(("sleep",), "hub")
        server.start()
        if attached:
            server.attach(guest, save_keywords(guest), suspend_keywords(guest))
        try:
            yield Served(directory, server, guest)
        finally:
            server.finish(ExitStatus(0))
            reservation.release()
            server.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def wait_until(condition: Callable[[], bool], time_scale: float) -> None:
    deadline = time.monotonic() + 20 * time_scale
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask_raw(connection: socket.socket, data: bytes) -> list[Json]:
    """All that the server says to this, until it or we have said everything."""
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return [json.loads(line) for line in received.splitlines()]


class TestRequests:
    def test_status(self, served: Served) -> None:
        with served.connect() as client:
            assert client.status() == served.guest.status()

    def test_pause_and_resume(self, served: Served) -> None:
        with served.connect() as client:
            client.pause()
            assert client.status().state is RunState.PAUSED
            with pytest.raises(GuestStateError, match="paused already"):
                client.pause()
            client.resume()
            assert not served.guest.paused

    def test_a_bug_is_told_and_the_connection_stays(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(served.guest, "registers", lambda: 1 / 0)
        with served.connect() as client:
            with pytest.raises(MemvmError, match="internal error: ZeroDivisionError"):
                client.registers()
            assert client.status().state is RunState.RUNNING

    def test_registers(self, served: Served) -> None:
        with served.connect() as client:
            assert client.registers() == served.guest.registers()

    @pytest.mark.parametrize("size", [0, 1, 4096, MAX_TRANSFER, MAX_TRANSFER + 1, RAM_SIZE])
    def test_memory_is_written_and_read(self, served: Served, size: int) -> None:
        data = os.urandom(size)
        with served.connect() as client:
            client.write_memory(RAM_START, data)
            assert client.read_memory(RAM_START, size) == data
        assert served.guest.ram[:size] == data

    def test_a_bad_page_comes_back_with_its_number(self, served: Served) -> None:
        with served.connect() as client:
            with pytest.raises(BadPage) as caught:
                client.read_memory(BAD_PAGE, 8)
            assert caught.value.page == BAD_PAGE // 4096
            assert client.read_memory(RAM_START, 1) == b"\0", "the connection goes on"

    def test_wait_ends_with_the_guest(self, served: Served, time_scale: float) -> None:
        endings: list[ExitStatus] = []
        with served.connect() as client:
            waiter = threading.Thread(target=lambda: endings.append(client.wait()))
            waiter.start()
            wait_until(lambda: served.server._busy == 1, time_scale)  # finished before, it would not hear the question
            served.server.finish(ExitStatus(3, None, "done"))
            waiter.join()
        assert endings == [ExitStatus(3, None, "done")]

    def test_requests_after_the_end_say_so(self, served: Served) -> None:
        with served.connect() as client:
            client.status()
            served.server.finish(ExitStatus(0))
            assert client.status().state is RunState.ENDED
            with pytest.raises(GuestStateError, match="has ended"):
                client.pause()

    def test_requests_before_the_start_say_so(self) -> None:
        with serving(attached=False) as served, served.connect() as client:
            assert client.status().state is RunState.STARTING
            with pytest.raises(GuestStateError, match="still starting"):
                client.pause()


class TestDirty:
    """Watching what the guest writes."""

    def test_the_first_request_begins_and_the_others_tell(self, served: Served) -> None:
        with served.connect() as client:
            assert client.dirty() == DirtyLook(0.0, 0, 0, "made up")
            assert client.dirty() == DirtyLook(0.5, 2, 1, "made up")
            assert client.dirty(pages=True) == DirtyLook(0.5, 2, 1, "made up", ((16, 2),), ((200_000, 1),))
            assert served.guest.watches == 1

    def test_a_watch_ends_with_its_connection(self, served: Served, time_scale: float) -> None:
        with served.connect() as one, served.connect() as other:
            one.dirty()
            other.dirty()
            assert served.guest.watches == 2
        deadline = time.monotonic() + 20 * time_scale
        while served.guest.watches:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_many_pages_come_in_parts(self, served: Served) -> None:
        served.guest.argv = ("many",)
        with served.connect() as client:
            client.dirty()
            look = client.dirty(pages=True)
        assert look.written == tuple((2 * page, 1) for page in range(50_000))
        assert look.punched == ((200_000, 1),)

    def test_largest_part_fits_a_line(self) -> None:
        assert len(encode({"ok": {"written": [1 << 28, 1 << 28] * MOST_RUNS}})) < MAX_LINE - 1000

    def test_a_choice_that_is_none(self, served: Served) -> None:
        with served.connect() as client:
            with pytest.raises(UsageError, match="pages"):
                client.request("dirty", pages=1)
            with pytest.raises(UsageError, match="more"):
                client.request("dirty", more=1)


class TestCheckpoint:
    def test_progress_then_report(self, served: Served, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        with served.connect() as client:
            report = client.checkpoint(tmp_path / "a", live=True, progress=lambda *step: seen.append(step))
        assert (report["path"], report["bytes_raw"]) == (str(tmp_path / "a"), RAM_SIZE)
        assert seen and seen[0] == (0, 3)

    def test_a_suspend_reports_and_ends(self, served: Served, tmp_path: Path) -> None:
        with served.connect() as client:
            report = client.request("suspend", path=str(tmp_path / "a"), time=1)
            assert (report["path"], report["bytes_again"]) == (str(tmp_path / "a"), 4096)
        ending = served.guest.wait()
        assert ending is not None
        assert (ending.code, ending.reason) == (0, f"suspended to {tmp_path / 'a'}")

    def test_a_suspend_with_senseless_bounds(self, served: Served, tmp_path: Path) -> None:
        with served.connect() as client:
            for bounds in ({"time": "soon"}, {"data": 1.5}):
                with pytest.raises(UsageError, match="suspend: "):
                    client.request("suspend", path=str(tmp_path / "a"), **bounds)

    def test_a_save_error_comes_back(self, served: Served, tmp_path: Path) -> None:
        with served.connect() as client:
            with pytest.raises(SaveError, match="no space left") as caught:
                client.checkpoint(tmp_path / "full")
            assert caught.value.hint == "make room"
            client.status()

    def test_a_client_that_goes_gives_it_up(self, served: Served, tmp_path: Path, time_scale: float) -> None:
        connection = served.raw()
        connection.sendall(json.dumps({"do": "checkpoint", "path": str(tmp_path / "slow")}).encode() + b"\n")
        wait_until((tmp_path / "slow.pending").exists, time_scale)
        connection.close()
        wait_until(lambda: not served.server._saving.locked(), time_scale)
        assert list(tmp_path.iterdir()) == []
        with served.connect() as client:
            client.checkpoint(tmp_path / "next")

    def test_an_interrupted_client_waits_until_it_is_given_up(self, served: Served, tmp_path: Path) -> None:
        def interrupt(done: int, _total: int) -> None:
            if done:
                raise KeyboardInterrupt

        with served.connect() as client, pytest.raises(KeyboardInterrupt):
            client.checkpoint(tmp_path / "slow", progress=interrupt)
        assert list(tmp_path.iterdir()) == []

    def test_one_at_a_time(self, served: Served, tmp_path: Path, time_scale: float) -> None:
        with served.raw() as first, served.connect() as second:
            first.sendall(json.dumps({"do": "checkpoint", "path": str(tmp_path / "slow")}).encode() + b"\n")
            wait_until((tmp_path / "slow.pending").exists, time_scale)
            with pytest.raises(GuestStateError, match="being saved already"):
                second.checkpoint(tmp_path / "other")
        wait_until(lambda: not list(tmp_path.iterdir()), time_scale)

    def test_a_client_that_does_not_read_does_not_stop_it(self, served: Served, tmp_path: Path) -> None:
        with served.raw() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            request = {"do": "checkpoint", "path": str(tmp_path / "a")}
            connection.sendall(json.dumps(request).encode() + b"\n")
            time_limit = time.monotonic() + 20
            while not (tmp_path / "a").exists():
                assert time.monotonic() < time_limit
                time.sleep(0.01)

    def test_the_guests_end_ends_it(self, served: Served, tmp_path: Path, time_scale: float) -> None:
        errors: list[MemvmError] = []

        def save() -> None:
            with served.connect() as client:
                try:
                    client.checkpoint(tmp_path / "slow")
                except MemvmError as error:
                    errors.append(error)

        saver = threading.Thread(target=save)
        saver.start()
        wait_until((tmp_path / "slow.pending").exists, time_scale)
        served.server.finish(ExitStatus(0))
        saver.join()
        assert [type(error) for error in errors] == [GuestStateError]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("path", ["relative", "", "/a\0b", "/\ud800", 7, None])
    def test_a_path_that_is_none(self, served: Served, path: object) -> None:
        with served.raw() as connection:
            request = json.dumps({"do": "checkpoint", "path": path}).encode() + b"\n"
            (answer,) = ask_raw(connection, request)
        assert answer["error"]["kind"] == "UsageError"


BAD_REQUESTS: list[Json] = [
    {},
    {"do": None},
    {"do": ["status"]},
    {"do": "_answer"},
    {"do": "read"},
    {"do": "read", "address": "0", "size": 1},
    {"do": "read", "address": 0, "size": True},
    {"do": "read", "address": RAM_START, "size": -1},
    {"do": "read", "address": RAM_START, "size": MAX_TRANSFER + 1},
    {"do": "write", "address": RAM_START, "data": "?"},
    {"do": "write", "address": RAM_START, "data": "é"},
    {"do": "checkpoint", "path": "/tmp/x", "live": 1},
    {"do": "checkpoint", "path": "/tmp/x", "level": "1"},
    {"do": "kill", "reason": 1},
]


class TestBadClients:
    @pytest.mark.parametrize("request_", BAD_REQUESTS, ids=str)
    def test_a_bad_request_is_a_usage_error_and_no_more(self, served: Served, request_: Json) -> None:
        data = json.dumps(request_).encode() + b"\n" + b'{"do": "status"}\n'
        with served.raw() as connection:
            refusal, status = ask_raw(connection, data)
        assert refusal["error"]["kind"] == "UsageError"
        assert status["ok"]["name"] == "hub"

    @pytest.mark.parametrize("data", [b"hello\n", b"\n", b"[]\n{}\n{}\n", b"\xff" * 100 + b"\n", b"{"])
    def test_what_is_no_message_gets_one_error(self, served: Served, data: bytes) -> None:
        with served.raw() as connection:
            (answer,) = ask_raw(connection, data)
        assert answer["error"]["kind"] == "ControlError"

    def test_a_line_without_end_gets_one_error(self, served: Served) -> None:
        with served.raw() as connection:
            connection.sendall(b"x" * MAX_LINE)
            answer = json.loads(connection.makefile().readline())
        assert answer["error"]["kind"] == "ControlError"

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
    @given(data=st.binary(max_size=300))
    def test_noise_does_not_hurt(self, served: Served, data: bytes) -> None:
        with served.raw() as connection:
            for answer in ask_raw(connection, data):
                assert "error" in answer
        with served.connect() as client:
            assert client.status().name == "hub"

    def test_another_user_is_refused(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server_module, "peer_of", lambda _: Peer(1, os.geteuid() + 1, 0))
        with served.connect() as client, pytest.raises(ControlError, match="another user"):
            client.status()

    def test_too_many_connections(self, served: Served, time_scale: float) -> None:
        held = [served.connect() for _ in range(server_module.MAX_CONNECTIONS)]
        try:
            for client in held:
                client.status()
            with served.connect() as one_more, pytest.raises(GuestStateError, match="too many"):
                one_more.status()
        finally:
            for client in held:
                client.__exit__()

        def answers() -> bool:
            with served.connect() as client:
                try:
                    return client.status().name == "hub"
                except GuestStateError:
                    return False

        wait_until(answers, time_scale)

    def test_waiting_clients_that_go_leave_no_thread(self, served: Served, time_scale: float) -> None:
        before = threading.active_count()
        for _ in range(5):
            with served.raw() as connection:
                connection.sendall(b'{"do": "wait"}\n')
        wait_until(lambda: threading.active_count() <= before, time_scale)

    def test_a_name_that_is_no_name(self, served: Served) -> None:
        with pytest.raises(UsageError):
            served.directory.connect("../hub", 1)
