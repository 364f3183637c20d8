"""One exchange with a verifier over HTTP, for whatever evidence is of."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from memvm.attest.asking import fetch
from memvm.errors import AttestationError


def exchange(url: str, audience: str, authority: str, evidence: Callable[[bytes, str], bytes]) -> dict[str, Any]:
    """The verifier's answer to what `evidence` makes of the nonce and the audience that it gives.

    Raises AttestationError, UsageError.
    """
    wish = json.dumps({"audience": audience} if audience else {}).encode()
    session, location = fetch(url, "/challenge-response/v1/newSession", wish, authority=authority)
    try:
        nonce = base64.b64decode(answer_field(session, "nonce"), validate=True)
    except ValueError:
        raise AttestationError("the verifier's nonce makes no sense") from None
    message = evidence(nonce, answer_field(session, "audience"))
    return fetch(url, location, message, authority=authority)[0]


def answer_field(answer: dict[str, Any], name: str) -> str:
    """Text that an answer has to have. Raises AttestationError."""
    value = answer.get(name)
    if not isinstance(value, str):
        raise AttestationError(f"the answer has no {name}")
    return value
