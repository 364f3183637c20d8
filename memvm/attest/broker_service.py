"""The key broker over HTTP.

    POST /challenges    {"disk": UUID}                                      201 {"nonce": base64, "identity": ...}
    POST /keys          {"disk": UUID, "nonce": base64, "token": ...}       200 {"sealed": base64, "signature": base64}
    GET  /health

http.py says how what is wrong is answered.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Collection
from typing import Any

from memvm.attest.asking import fetch
from memvm.attest.broker import Broker
from memvm.attest.broker_policy import BrokerPolicy
from memvm.attest.http import Answer, Application, Message, Receive, Refused, body_of
from memvm.attest.tokens import MAX_TOKEN
from memvm.errors import AttestationError
from memvm.foreign_json import read_json

LOG = logging.getLogger("memvm.broker")
_MOST = MAX_TOKEN * 2


class BrokerService(Application):
    """The ASGI application."""

    log = LOG
    name = "broker"

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def answer(self, scope: Message, receive: Receive) -> Answer:
        """As the module says. Raises Refused, AttestationError."""
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/health"):
            return Answer(200, {"status": "ready"})
        if method != "POST" or path not in ("/challenges", "/keys"):
            raise Refused(404, "there is nothing here")
        body = await body_of(scope, receive, _MOST)
        if path == "/challenges":
            (disk,) = _texts(body, "disk")
            challenge = self._broker.challenge(disk)
            identity = self._broker.policy.identity
            return Answer(201, {"nonce": base64.b64encode(challenge.nonce).decode(), "identity": identity})
        disk, nonce, token = _texts(body, "disk", "nonce", "token")
        # It asks the verifier, and others are answered meanwhile.
        given = await asyncio.to_thread(self._broker.answer, disk, _decoded(nonce), token)
        LOG.info("the key of disk %s was given to a guest", disk)
        return Answer(
            200,
            {
                "sealed": base64.b64encode(given.sealed).decode(),
                "signature": base64.b64encode(given.signature).decode(),
            },
        )


def _texts(body: bytes, *names: str) -> list[str]:
    """The members of a JSON object that has these, all of them text. Raises Refused."""
    try:
        fields: Any = read_json(body)
        if not isinstance(fields, dict) or set(fields) != set(names):
            raise ValueError(f"it has to have {' and '.join(names)}, and nothing else")
        if not all(isinstance(value, str) for value in fields.values()):
            raise ValueError("something is no text")
    except ValueError as error:
        raise Refused(400, f"the request makes no sense: {error}") from None
    return [fields[name] for name in names]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused(400, "the request makes no sense: the nonce is not base64") from None


def deny_list_of(policy: BrokerPolicy) -> Callable[[], Collection[str]]:
    """Asks the verifier for its deny list; what it cannot be asked for, nobody is given."""

    def ask() -> Collection[str]:
        answer, _ = fetch(policy.verifier, "/deny-list", authority=policy.verifier_ca)
        denied = answer.get("denied")
        if not isinstance(denied, list) or not all(isinstance(jti, str) for jti in denied):
            raise AttestationError("the verifier's deny list makes no sense")
        return frozenset(denied)

    return ask
