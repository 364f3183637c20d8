"""The verifier over HTTP.

    POST /challenge-response/v1/newSession      {"audience": ..., "format": "ietf" | "veraison" | "cwt"}, or nothing
         201, Location, {"nonce": base64, "expiry": ..., "audience": ...}
    POST /challenge-response/v1/session/ID      evidence      200 {"status": "complete", "result": token, ...}
    POST /revocations                           a signed revocation
    GET  /deny-list, /.well-known/jwks.json, /health

http.py says how what is wrong is answered.
"""

from __future__ import annotations

import base64
import logging
import time

from memvm.attest.evidence import MAX_EVIDENCE
from memvm.attest.http import Answer, Application, Message, Receive, Refused, body_of
from memvm.attest.tokens import TokenFormat
from memvm.attest.verifier import Outcome, Verifier
from memvm.foreign_json import read_json

LOG = logging.getLogger("memvm.verifier")
_SESSIONS = "/challenge-response/v1/session/"


class Service(Application):
    """The ASGI application."""

    log = LOG
    name = "verifier"

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    async def answer(self, scope: Message, receive: Receive) -> Answer:
        """As the module says. Raises Refused, AttestationError."""
        method, path = scope["method"], scope["path"]
        if method == "GET":
            return self._get(path)
        if method != "POST":
            raise Refused(405, "GET or POST")
        if path.startswith(_SESSIONS):
            session = path.removeprefix(_SESSIONS)
            if not self._verifier.has_session(session):
                raise Refused(404, "there is no such session: it has been used, or has never been")
            return _complete(self._verifier.answer(session, await body_of(scope, receive, MAX_EVIDENCE)))
        if path == "/challenge-response/v1/newSession":
            return self._new_session(await body_of(scope, receive, 4096))
        if path == "/revocations":
            jti = self._verifier.revoke(await body_of(scope, receive, 1 << 16))
            LOG.info("token %s revoked", jti)
            return Answer(200, {"revoked": jti})
        raise Refused(404, "there is nothing here")

    def _get(self, path: str) -> Answer:
        if path == "/.well-known/jwks.json":
            return Answer(200, self._verifier.jwks)
        if path == "/deny-list":
            return Answer(200, {"denied": sorted(self._verifier.deny_list)})
        if path == "/health":
            return Answer(200, {"status": "ready"})
        raise Refused(404, "there is nothing here")

    def _new_session(self, body: bytes) -> Answer:
        try:
            wanted = read_json(body) if body else {}
            if not isinstance(wanted, dict) or set(wanted) - {"audience", "format"}:
                raise ValueError("only audience and format can be wished for")
            kind = TokenFormat(wanted.get("format", "ietf"))
            audience = wanted.get("audience", "")
            if not isinstance(audience, str):
                raise ValueError("the audience is no text")
        except ValueError as error:
            raise Refused(400, f"the request makes no sense: {error}") from None
        session = self._verifier.new_session(audience, kind)
        return Answer(
            201,
            {
                "nonce": base64.b64encode(session.nonce).decode(),
                "expiry": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.expires)),
                "audience": session.audience,
                "status": "waiting",
            },
            _SESSIONS + session.id,
        )


def _complete(outcome: Outcome) -> Answer:
    appraisal, token = outcome.appraisal, outcome.token
    LOG.info(
        "token %s: %s for %s on device %s: %s",
        outcome.jti,
        appraisal.status.name.lower(),
        appraisal.program or "an unknown program",
        outcome.evidence.device.hex()[:16],
        appraisal.reasons[0] if appraisal.reasons else "nothing is wrong",
    )
    shown = token if isinstance(token, str) else base64.b64encode(token).decode()
    return Answer(
        200,
        {
            "status": "complete",
            "result": shown,
            "jti": outcome.jti,
            "lifetime": outcome.lifetime,
            "tier": appraisal.status.name.lower(),
            "reasons": list(appraisal.reasons),
        },
    )
