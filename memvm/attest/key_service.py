"""The key keeper as others see him: the way to his service, and that service.

    GET  /checkpoint-keys/keeper                                            200 {"key": hexadecimal, "audience": name}
    POST /checkpoint-keys/release     a request (checkpoint_keys.py)        200 {"answer": hexadecimal}
    GET  /health

http.py says how what is wrong is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from memvm.attest.asking import fetch
from memvm.attest.checkpoint_keys import MAX_ANSWER, MAX_REQUEST, KeyKeeper, KeyRelease
from memvm.attest.exchange import answer_field
from memvm.attest.http import Answer, Application, Message, Receive, Refused, body_of
from memvm.attest.keyset import keys_from_jwks
from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_PATIENCE = 20.0
"""Seconds in which a keeper who has failed can be started again."""
RELEASE = "/checkpoint-keys/release"
KEEPER = "/checkpoint-keys/keeper"


def require_keeper(public: bytes, audience: str, url: str, authority: str = "") -> None:
    """Raises AttestationError if the keeper at a URL could not release the key of a checkpoint that `public` keeps, not
    even to a platform that is believed, with a token for `audience`.

    A verifier may let a checkpoint be restored once, and counts from the token on: so whatever can be known to fail is
    looked for before one is issued. What a keeper says here is believed by nobody else.
    """
    answer, _ = fetch(url, KEEPER, authority=authority, whom="keeper")
    if answer_field(answer, "key") != public.hex():
        raise AttestationError(
            f"the keeper at {url} is not the one who keeps the key of this checkpoint",
            hint="it is the one whose public key the guest was launched with: memvm run --key-keeper FILE",
        )
    if audience not in ("", wanted := answer_field(answer, "audience")):
        raise AttestationError(
            f"the keeper at {url} takes tokens that are for {wanted!r}, and not for {audience!r}",
            hint=f"--keeper-audience {wanted}",
        )


def key_release(url: str, authority: str = "") -> KeyRelease:
    """The way to the key keeper at a URL; `authority` is as `fetch` has it.

    The verifier has counted by then. So a keeper who fails is asked the same again for a while: with the same token, he
    wraps the same key for the same platform.
    """

    def release(request: bytes) -> bytes:
        answer, _ = fetch(url, RELEASE, request, authority=authority, whom="keeper", patience=_PATIENCE)
        try:
            released = bytes.fromhex(answer_field(answer, "answer"))
        except ValueError:
            released = b""
        if not 0 < len(released) <= MAX_ANSWER:
            raise AttestationError("the key keeper's answer makes no sense")
        return released

    return release


def keys_of(verifier: str, authority: str = "") -> Callable[[], Mapping[str, Ed25519PublicKey]]:
    """Asks a verifier for the keys of its tokens."""

    def ask() -> Mapping[str, Ed25519PublicKey]:
        answer, _ = fetch(verifier, "/.well-known/jwks.json", authority=authority)
        return keys_from_jwks(answer)

    return ask


def denied_by(verifier: str, authority: str = "") -> Callable[[str], bool]:
    """Asks a verifier whether it denies a token; if it cannot be asked, nobody is given anything."""

    def ask(jti: str) -> bool:
        answer, _ = fetch(verifier, "/deny-list", authority=authority)
        denied = answer.get("denied")
        if not isinstance(denied, list):
            raise AttestationError("the verifier's deny list makes no sense")
        return jti in denied

    return ask


class KeeperService(Application):
    """The ASGI application."""

    log = logging.getLogger("memvm.keeper")
    name = "key keeper"

    def __init__(self, keeper: KeyKeeper) -> None:
        self._keeper = keeper

    async def answer(self, scope: Message, receive: Receive) -> Answer:
        """As the module says. Raises Refused, AttestationError."""
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/health"):
            return Answer(200, {"status": "ready"})
        if (method, path) == ("GET", KEEPER):
            # He asks the verifier, and others are answered meanwhile.
            await asyncio.to_thread(self._keeper.require_verifier)
            return Answer(200, {"key": self._keeper.public.hex(), "audience": self._keeper.audience})
        if (method, path) != ("POST", RELEASE):
            raise Refused(404, "there is nothing here")
        request = await body_of(scope, receive, MAX_REQUEST)
        released = await asyncio.to_thread(self._keeper.release, request)
        self.log.info("the key of a checkpoint was released")
        return Answer(200, {"answer": released.hex()})
