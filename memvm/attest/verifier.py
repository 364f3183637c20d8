"""The verifier: challenge-response sessions, appraisal, tokens, and what it remembers from one to the next.

Sessions have a fresh nonce that works once, in that session, and expires. They are used up before anything is looked
at, so evidence that is refused uses up its nonce too. Deny list, issued tokens, lineages and TPMs are kept in a
directory, each as long as it counts; what cannot be written there is not said. Whatever goes wrong is an exception, and
no token.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path
from typing import Any, NamedTuple

from memvm.attest import cbor, cose
from memvm.attest.appraisal import Appraisal, Tier, appraise
from memvm.attest.evidence import Evidence, read_evidence
from memvm.attest.key_files import load_public, service_key
from memvm.attest.ledger import Ledger
from memvm.attest.lineages import Lineages
from memvm.attest.platform import device_key_of, load_certificates
from memvm.attest.policy import Policy
from memvm.attest.references import NOTHING, read_reference_file
from memvm.attest.tokens import Issue, TokenFormat, jwk, make_token, new_jti
from memvm.attest.tpms import Tpms
from memvm.errors import AttestationError, HostError

NONCE_SIZE = 32
MOST_SESSIONS = 10_000
REVOCATION_DOMAIN = "memvm revocation 1"
_MARGIN = 600.0
"""Seconds that a token is remembered after it expired: there are clocks that are late."""
_BUILD = "memvm 0.1.0"


class Session(NamedTuple):
    """One exchange that has begun."""

    id: str
    nonce: bytes
    audience: str
    format: TokenFormat
    expires: float
    """In seconds of the verifier's clock."""


class Outcome(NamedTuple):
    """What an exchange came to."""

    token: str | bytes
    jti: str
    lifetime: int
    """Seconds for which the token counts."""
    evidence: Evidence
    appraisal: Appraisal


class Verifier:
    """One verifier. Its methods may be called from any thread."""

    def __init__(self, policy: Policy, directory: Path, issuer: str, clock: Callable[[], float] = time.time) -> None:
        """`directory` has the signing key, made at first, and what is remembered.

        Raises AttestationError for a policy that cannot be followed, and HostError.
        """
        self.policy, self.issuer = policy, issuer
        self._clock = clock
        self._roots = [certificate for path in policy.roots for certificate in load_certificates(path)]
        if not self._roots:
            raise AttestationError("the policy names no roots, so no platform could be believed")
        keys = [load_public(path) for path in policy.reference_keys]
        self.references = NOTHING
        for path in policy.references:
            self.references = self.references.united(read_reference_file(path, keys))
        self._key = service_key(directory, "verifier")
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._directory = _locked(directory)
        self._denied, self._issued, lineages, tpms = (
            Ledger(directory / f"{name}.jsonl", clock) for name in ("denied", "issued", "lineages", "tpms")
        )
        self._lineages = Lineages(lineages, policy, clock)
        self._tpms = Tpms(tpms, policy, clock)

    def close(self) -> None:
        """Close the files."""
        for ledger in (self._denied, self._issued, self._lineages.ledger, self._tpms.ledger):
            ledger.close()
        os.close(self._directory)

    @property
    def deny_list(self) -> frozenset[str]:
        """The names of the tokens that were revoked, and have not expired long ago."""
        with self._lock:
            return frozenset(self._denied)

    @property
    def jwks(self) -> dict[str, Any]:
        """The keys that tokens are signed with, as a JWK set."""
        return {"keys": [jwk(self._key.public_key())]}

    def new_session(self, audience: str = "", kind: TokenFormat = TokenFormat.IETF) -> Session:
        """Begin an exchange.

        Raises AttestationError for an audience that is not in the policy, or if there are too many sessions.
        """
        audience = audience or self.policy.audiences[0]
        if audience not in self.policy.audiences:
            raise AttestationError(f"{audience!r:.80} is no audience of this verifier's")
        now = self._clock()
        session = Session(
            secrets.token_urlsafe(18), os.urandom(NONCE_SIZE), audience, kind, now + self.policy.nonce_lifetime
        )
        with self._lock:
            if len(self._sessions) >= MOST_SESSIONS:
                self._sessions = {name: kept for name, kept in self._sessions.items() if kept.expires > now}
                if len(self._sessions) >= MOST_SESSIONS:
                    raise AttestationError("there are too many sessions; try again later")
            self._sessions[session.id] = session
        return session

    def has_session(self, session_id: str) -> bool:
        """Whether a session waits for evidence."""
        return session_id in self._sessions

    def answer(self, session_id: str, message: bytes) -> Outcome:
        """End an exchange with evidence. Raises AttestationError if it cannot be appraised: there is no token then."""
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is None:
            raise AttestationError("there is no such session: it has been used, or has never been")
        if self._clock() > session.expires:
            raise AttestationError("the session has expired")
        evidence = read_evidence(message, self._roots)
        if not secrets.compare_digest(evidence.nonce, session.nonce):
            raise AttestationError("the evidence is of another session: its nonce is another one")
        if evidence.audience != session.audience:
            raise AttestationError(f"the evidence is for {evidence.audience!r:.80}, not for {session.audience!r}")
        with self._lock:
            remembered = (self._lineages.look(evidence), self._tpms.look(evidence))
            appraisal = appraise(evidence, self.references, self.policy, *remembered)
            return self._issue(session, evidence, appraisal)

    def _issue(self, session: Session, evidence: Evidence, appraisal: Appraisal) -> Outcome:
        now, jti = int(self._clock()), new_jti()
        expires = now + max(1, int(self.policy.token_lifetime))
        issue = Issue(evidence, appraisal, self.policy.id, self.issuer, jti, now, expires, _BUILD)
        token = make_token(issue, self._key, session.format)
        # Before anybody has the token. A crash that forgets it leaves nobody with a token that cannot be revoked for
        # longer than it lives; a revocation that fails fails the change that it was for.
        self._issued.note(jti, expires + _MARGIN, durable=False, device=evidence.device.hex())
        if appraisal.status < Tier.CONTRAINDICATED:
            self._lineages.note(evidence)
            self._tpms.note(evidence)
        return Outcome(token, jti, expires - now, evidence, appraisal)

    def revoke(self, message: bytes) -> str:
        """Put a token on the deny list, as the device asks on which it was issued; its jti. Raises AttestationError."""
        signed = cose.read(message)
        chain = signed.header.get(cose.CHAIN)
        if not isinstance(chain, list):
            raise AttestationError("a revocation without a certificate chain")
        signed.verify(device_key_of(chain, self._roots))
        fields = cbor.decode(signed.payload)
        if not isinstance(fields, dict) or fields.get("domain") != REVOCATION_DOMAIN:
            raise AttestationError("this is no revocation")
        jti, reason = fields.get("jti"), fields.get("reason")
        if not isinstance(jti, str) or not isinstance(reason, str):
            raise AttestationError("a revocation that makes no sense")
        with self._lock:
            issued = self._issued.get(jti)
            if issued is None or issued["device"] != sha384(chain[0]).hexdigest():
                raise AttestationError("no token of this name was issued for this device")
            if jti not in self._denied:
                self._denied.note(jti, issued["until"], durable=True, reason=reason[:200])
        return jti


def _locked(directory: Path) -> int:
    """A descriptor that keeps the directory for this verifier. Raises HostError if another one has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        hint = "give each one a directory: --state DIR"
        raise HostError(f"a verifier runs with the directory {directory} already", hint=hint) from None
    return descriptor
