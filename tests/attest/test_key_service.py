"""The way to a key keeper who fails: once the verifier has counted, he is asked the same again for a while."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from memvm.attest import asking, key_service
from memvm.attest.key_service import RELEASE, key_release
from memvm.errors import AttestationError
from tests.support import serving

FAILS, REFUSES, RELEASES, GONE = 500, 403, 200, 0


@contextmanager
def keeper(answers: Sequence[int]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """One who answers so, one request after the other, or not at all; his URL, and what he was asked."""
    asked: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = answers[len(asked)]
            asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            if status == GONE:
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"answer": "abcd"} if status == RELEASES else {"error": "no"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        yield url, asked


def test_a_keeper_who_fails_is_asked_the_same_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asking, "_FIRST_PAUSE", 0.001)
    with keeper([GONE, FAILS, RELEASES]) as (url, asked):
        assert key_release(url)(b"request") == b"\xab\xcd"
    assert asked == [(RELEASE, b"request")] * 3
    assert capsys.readouterr().err.count("asked again") == 1


def test_a_keeper_who_refuses_is_not_asked_again() -> None:
    with keeper([REFUSES, RELEASES]) as (url, asked), pytest.raises(AttestationError, match="refused: no"):
        key_release(url)(b"request")
    assert len(asked) == 1


def test_a_keeper_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_service, "_PATIENCE", 0.0)
    with keeper([FAILS, RELEASES]) as (url, asked), pytest.raises(AttestationError, match="refused: no") as raised:
        key_release(url)(b"request")
    assert len(asked) == 1
    assert type(raised.value) is AttestationError, "whom it is told in another process knows no other kind"
