"""The verifier over HTTP, under requests that are malformed, huge, slow, or many: 4xx, and it stays up."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvm.attest import http
from memvm.attest.http import Listening
from memvm.attest.service import Service
from tests.attest.samples import Lab

NEW = "/challenge-response/v1/newSession"


def ask(
    lab: Lab, method: str, path: str, *parts: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, Any, dict[bytes, bytes]]:
    """A request to the application itself."""
    bodies = list(parts) or [b""]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if not bodies:
            return {"type": "http.disconnect"}
        body = bodies.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(bodies)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    asyncio.run(Service(lab.verifier)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), dict(sent[0]["headers"])


def test_challenge_and_response(lab: Lab) -> None:
    status, body, headers = ask(lab, "POST", NEW, b'{"audience": "broker"}')
    assert (status, body["audience"]) == (201, "broker")
    location = headers[b"location"].decode()
    session = lab.verifier._sessions[location.rpartition("/")[2]]
    status, body, _ = ask(lab, "POST", location, lab.message(session))
    assert (status, body["status"], body["tier"]) == (200, "complete", "warning")
    assert ask(lab, "POST", location, lab.message(session))[0] == 404
    assert ask(lab, "GET", "/deny-list")[1] == {"denied": []}
    assert ask(lab, "GET", "/.well-known/jwks.json")[1] == lab.verifier.jwks


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", NEW, b"", 404),
        ("PUT", NEW, b"", 405),
        ("POST", "/nowhere", b"", 404),
        ("POST", NEW, b"[]", 400),
        ("POST", NEW, b'{"audience": 1}', 400),
        ("POST", NEW, b'{"format": "xml"}', 400),
        ("POST", NEW, b'{"audience": "broker", "audience": "other"}', 400),
        ("POST", NEW, b'{"nonce": "AAAA"}', 400),
        ("POST", NEW, b'{"audience": "stranger"}', 403),
        ("POST", NEW, b"[" * 4000, 400),
        ("POST", NEW, b"x" * 5000, 413),
        ("POST", "/challenge-response/v1/session/none", b"", 404),
        ("POST", "/revocations", b"", 403),
        ("POST", "/revocations", b"\xd2\x84\x40\xa0\x40\x40", 403),
    ],
)
def test_what_is_wrong_is_4xx(lab: Lab, method: str, path: str, body: bytes, status: int) -> None:
    got, answer, _ = ask(lab, method, path, body)
    assert got == status
    assert answer["error"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.sampled_from([NEW, "/revocations", "session"]), st.lists(st.binary(max_size=200), max_size=3), st.booleans())
def test_any_body_is_4xx(lab: Lab, path: str, parts: list[bytes], tagged: bool) -> None:
    if path == "session":
        path = f"/challenge-response/v1/session/{lab.verifier.new_session('broker').id}"
    if tagged:
        parts = [b"\xd2\x84", *parts]
    status, body, _ = ask(lab, "POST", path, *parts)
    assert 400 <= status < 500 or (path == NEW and not b"".join(parts))
    assert "result" not in body


def test_huge_and_slow_requests(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    session = lab.verifier.new_session("broker")
    path = f"/challenge-response/v1/session/{session.id}"
    assert ask(lab, "POST", path, *[bytes(1 << 18)] * 5)[0] == 413
    assert ask(lab, "POST", path, headers=[(b"content-length", b"9" * 30)])[0] == 413
    assert ask(lab, "POST", path, headers=[(b"content-length", b"-1")])[0] == 413
    monkeypatch.setattr(http, "BODY_TIMEOUT", 0.01)
    sent: list[MutableMapping[str, Any]] = []

    async def never() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(Service(lab.verifier)(scope, never, send))
    assert sent[0]["status"] == 408


def test_an_exception_is_a_500_without_a_token(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(lab.verifier, "answer", broken)
    path = f"/challenge-response/v1/session/{lab.verifier.new_session('broker').id}"
    with caplog.at_level(logging.CRITICAL):
        status, body, _ = ask(lab, "POST", path, b"x")
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert "result" not in body


@pytest.fixture
def address(lab: Lab, time_scale: float) -> Iterator[tuple[str, int]]:
    """A real server's, in a thread of its own."""
    listening = threading.Event()
    ports: list[int] = []

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    config = uvicorn.Config(
        Service(lab.verifier), port=0, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = Listening(config, ready)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert listening.wait(20 * time_scale)
    yield "127.0.0.1", ports[0]
    server.should_exit = True
    thread.join()


def test_it_stays_up(lab: Lab, address: tuple[str, int], time_scale: float) -> None:
    """Slow clients hold their connections, others send nonsense, and many ask at once."""
    url, patience = f"http://{address[0]}:{address[1]}", 20 * time_scale
    slow = [socket.create_connection(address) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(b"POST /revocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        for nonsense in (b"\0" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000):
            with socket.create_connection(address) as connection:
                try:
                    connection.sendall(nonsense)
                    assert b" 4" in (connection.recv(100) or b" 4")
                except ConnectionError:
                    continue  # it hung up

        def round_trip(_: int) -> int:
            request = urllib.request.Request(url + NEW, b'{"audience": "broker"}', method="POST")
            with urllib.request.urlopen(request, timeout=patience) as response:
                location = response.headers["Location"]
            session = lab.verifier._sessions[location.rpartition("/")[2]]
            with urllib.request.urlopen(url + location, lab.message(session), timeout=patience) as response:
                return int(response.status)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(round_trip, range(40))) == {200}
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url + "/nowhere", timeout=patience)
        assert refused.value.code == 404
        refused.value.close()
    finally:
        for connection in slow:
            connection.close()
