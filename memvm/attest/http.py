"""What the HTTP services share: errors and bodies of ASGI applications; their server, on loopback or with TLS.

Whatever is wrong with a request is answered with a status from 400 to 499 and {"error": reason}. An exception that
nobody foresaw is a 500 without details, and a line in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping
from errno import EACCES, EADDRINUSE
from typing import Any, NamedTuple

import uvicorn

from memvm.errors import AttestationError, HostError, UsageError

BODY_TIMEOUT = 10.0
"""Seconds in which a request's body has to be there."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that gets a status of 4xx."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Answer(NamedTuple):
    """Status, body as JSON, and where something new is."""

    status: int
    body: Any
    location: str = ""


class Application(ABC):
    """An ASGI application."""

    log: logging.Logger
    name: str
    """What it is, for people."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            answer = await self.answer(scope, receive)
        except Refused as refusal:
            self.log.warning("%s %.80r refused: %s", scope["method"], scope["path"], refusal.reason)
            answer = Answer(refusal.status, {"error": refusal.reason})
        except AttestationError as error:
            self.log.warning("%s %.80r refused: %s", scope["method"], scope["path"], error.message)
            answer = Answer(403, {"error": error.message})
        except Exception:  # it has to be answered, and must not be what was asked for
            self.log.exception("%s %.80r failed", scope["method"], scope["path"])
            answer = Answer(500, {"error": f"the {self.name} failed; its log says how"})
        await _send(send, answer)

    @abstractmethod
    async def answer(self, scope: Message, receive: Receive) -> Answer:
        """The answer to a request. Raises Refused, AttestationError."""


async def body_of(scope: Message, receive: Receive, most: int) -> bytes:
    """The request's body, if it is not too long and comes in time. Raises Refused."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > most):
            raise Refused(413, f"at most {most} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "the request was broken off")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise Refused(413, f"at most {most} bytes")
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(408, f"the request has to be there within {BODY_TIMEOUT:g} s") from None


async def _send(send: Send, answer: Answer) -> None:
    body = json.dumps(answer.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"cache-control", b"no-store"))
    if answer.location:
        headers.append((b"location", answer.location.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Listening(uvicorn.Server):
    """A server that tells when it listens, and at which port."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn has it."""
        await super().startup(sockets)
        if self.servers:
            self._ready(self.servers[0].sockets[0].getsockname()[1])


def serve_application(
    application: Application, host: str, port: int, *, certificate: str, key: str, ready: Callable[[int], None]
) -> None:
    """Serve until SIGINT or SIGTERM; `ready` hears the port.

    Raises UsageError without TLS anywhere but on loopback, and AttestationError and HostError: certificate, address.
    """
    if key and not certificate:
        raise UsageError("a key without a certificate makes no TLS", hint="give --tls-certificate, too")
    if not certificate and host not in ("127.0.0.1", "::1", "localhost"):
        raise UsageError(f"{host} is not loopback, and needs TLS", hint="give --tls-certificate and --tls-key")
    config = uvicorn.Config(
        application,
        ssl_certfile=certificate or None,
        ssl_keyfile=key or None,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=1 << 14,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        files = f"{certificate} and {key}" if key else certificate
        raise AttestationError(f"{files}: no certificate with its key: {error.strerror or error}") from None
    with _listening_at(host, port) as listener:
        Listening(config, ready).run(sockets=[listener])


def _listening_at(host: str, port: int) -> socket.socket:
    """A socket that listens; of a name's addresses, at one of IPv4 if there is one. Raises HostError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        # create_server appends the address to the text
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        hint = "another --port; 0 takes a free one" if error.errno in (EADDRINUSE, EACCES) else ""
        raise HostError(f"cannot listen at {host}, port {port}: {reason}", hint=hint) from None
