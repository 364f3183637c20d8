"""A guest's way to a key broker: its manager carries the messages."""

from __future__ import annotations

import base64
import json
from typing import Any

from memvm.attest.asking import fetch
from memvm.attest.disk_keys import LONGEST_IDENTITY, NONCE_SIZE, SEALED_SIZE, SIGNATURE_SIZE
from memvm.errors import AttestationError


class HttpRelay:
    """To one broker, over HTTP; `authority` is a file with the certificates to believe, in place of the system's."""

    def __init__(self, url: str, authority: str = "") -> None:
        self._url, self._authority = url.rstrip("/"), authority

    def challenge(self, disk: str) -> tuple[bytes, str]:
        """Begin an exchange: the broker's nonce, and its identity. Raises AttestationError, UsageError."""
        answer = self._post("/challenges", {"disk": disk})
        identity = answer.get("identity")
        if not isinstance(identity, str) or len(identity.encode()) > LONGEST_IDENTITY:
            raise AttestationError("the broker's answer has no identity")
        return _blob(answer, "nonce", NONCE_SIZE), identity

    def key(self, disk: str, nonce: bytes, token: bytes) -> tuple[bytes, bytes]:
        """End it: the sealed key, and its signature. Raises AttestationError, UsageError."""
        question = {"disk": disk, "nonce": base64.b64encode(nonce).decode(), "token": token.decode("ascii", "replace")}
        answer = self._post("/keys", question)
        return _blob(answer, "sealed", SEALED_SIZE), _blob(answer, "signature", SIGNATURE_SIZE)

    def _post(self, path: str, question: dict[str, str]) -> dict[str, Any]:
        body = json.dumps(question).encode()
        return fetch(self._url, path, body, kind="application/json", authority=self._authority, whom="broker")[0]


def _blob(answer: dict[str, Any], name: str, size: int) -> bytes:
    try:
        found = base64.b64decode(answer[name], validate=True)
    except (KeyError, ValueError, TypeError):
        found = b""
    if len(found) != size:
        raise AttestationError(f"the broker's answer has no {name}")
    return found
