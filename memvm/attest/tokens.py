"""Tokens: EAT Attestation Results (EAR), as JWT in two dialects and as CWT; and their verification.

`ietf` has the names of draft-ietf-rats-ear-04, `veraison` those that Veraison and Trustee deploy. What is memvm's own
(settings with behaviour, verdict and reason; digest; lineage) is a map under `ear_verifier_claims`, which readers that
do not know it ignore. Tokens are signed with Ed25519, and whoever verifies one takes no other algorithm, no key from
the token itself, and nothing in its header that is not known here.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.attest import cose
from memvm.attest.appraisal import Appraisal
from memvm.attest.base64url import base64url, from_base64url
from memvm.attest.cwt import decode_cwt, encode_cwt, named_claims
from memvm.attest.evidence import Evidence, GuestKey
from memvm.errors import AttestationError
from memvm.foreign_json import read_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

IETF_PROFILE = "tag:ietf.org,2026:rats/ear#04"
VERAISON_PROFILE = "tag:github.com,2023:veraison/ear"
DEVELOPER = "https://memvm.dev"
SUBMODULE = "guest"
LEEWAY = 5.0
"""Seconds by which clocks may differ."""
MAX_TOKEN = 1 << 16
CWT_BEGIN = b"\xd2"
_CURVES = {"ed25519": "Ed25519", "x25519": "X25519"}


class TokenFormat(StrEnum):
    """What a verifier can answer with."""

    IETF = "ietf"
    VERAISON = "veraison"
    CWT = "cwt"


class Issue(NamedTuple):
    """What is said of one appraisal beside its outcome. Times in seconds since 1970."""

    evidence: Evidence
    appraisal: Appraisal
    policy_id: str
    issuer: str
    jti: str
    issued: int
    expires: int
    build: str


def key_id(key: Ed25519PublicKey) -> str:
    """The thumbprint of RFC 7638."""
    members = {"crv": "Ed25519", "kty": "OKP", "x": base64url(key.public_bytes_raw())}
    return base64url(sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).digest())


def jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """The key as a JWK."""
    point = base64url(key.public_bytes_raw())
    return {"kty": "OKP", "crv": "Ed25519", "x": point, "kid": key_id(key), "alg": "EdDSA", "use": "sig"}


def new_jti() -> str:
    """A token's name, by which it can be denied."""
    return base64url(os.urandom(16))


def make_token(issue: Issue, key: Ed25519PrivateKey, kind: TokenFormat) -> str | bytes:
    """The token: text for JWT, bytes for CWT."""
    if kind is TokenFormat.CWT:
        return encode_cwt(_ietf_claims(issue), key, key_id(key.public_key()))
    import jwt

    claims = _ietf_claims(issue) if kind is TokenFormat.IETF else _veraison_claims(issue)
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": key_id(key.public_key())})


def own_claims(issue: Issue) -> dict[str, Any]:
    """What no profile has a claim for."""
    evidence, appraisal = issue.evidence, issue.appraisal
    lineage = evidence.lineage
    anchored = {} if evidence.anchored is None else {"tpm": evidence.anchored.to_claims()}
    return {
        "program": appraisal.program,
        "launch_digest": evidence.launch.hex(),
        "code_digest": evidence.code.hex(),
        "register": evidence.register.hex(),
        "changes": len(evidence.log),
        "settings": {name: verdict._asdict() for name, verdict in appraisal.settings.items()},
        "lineage": {
            "identity": lineage.identity.hex(),
            "instance": lineage.instance.hex(),
            "saves": lineage.saves,
            "checkpoint": lineage.ancestors[-1].checkpoint_id if lineage.ancestors else "",
        },
        "device": evidence.device.hex(),
        "bound": evidence.bound.hex(),
        "reasons": list(appraisal.reasons),
        **anchored,
    }


def _common(issue: Issue) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "iss": issue.issuer,
        "aud": issue.evidence.audience,
        "iat": issue.issued,
        "exp": issue.expires,
        "jti": issue.jti,
        "eat_nonce": base64url(issue.evidence.nonce),
    }
    if (key := issue.evidence.key).kind:
        claims["cnf"] = {"jwk": {"kty": "OKP", "crv": _CURVES[key.kind], "x": base64url(key.public)}}
    return claims


def _ietf_claims(issue: Issue) -> dict[str, Any]:
    appraisal = issue.appraisal
    return _common(issue) | {
        "eat_profile": IETF_PROFILE,
        "ear_verifier_id": {"developer": DEVELOPER, "build": issue.build},
        "submods": {
            SUBMODULE: {
                "ear_status": appraisal.status.name.lower(),
                "ear_trustworthiness_vector": {name: int(tier) for name, tier in appraisal.vector.items()},
                "ear_appraisal_policy_ids": [issue.policy_id],
                "ear_verifier_claims": {"memvm": own_claims(issue)},
            }
        },
    }


def _veraison_claims(issue: Issue) -> dict[str, Any]:
    appraisal = issue.appraisal
    return _common(issue) | {
        "eat_profile": VERAISON_PROFILE,
        "ear.verifier-id": {"developer": DEVELOPER, "build": issue.build},
        "submods": {
            SUBMODULE: {
                "ear.status": appraisal.status.name.lower(),
                "ear.trustworthiness-vector": {name: int(tier) for name, tier in appraisal.vector.items()},
                "ear.appraisal-policy-id": issue.policy_id,
                "memvm": own_claims(issue),
            }
        },
    }


class Verified(NamedTuple):
    """A token whose signature, times and audience are right."""

    claims: Mapping[str, Any]
    jti: str
    status: str
    expires: int


def verify_token(
    token: str | bytes,
    keys: Mapping[str, Ed25519PublicKey],
    audience: str,
    *,
    nonce: bytes | None = None,
    denied: Callable[[str], bool] = lambda jti: False,
    guest_key: GuestKey | None = None,
    now: float | None = None,
) -> Verified:
    """Check a token, a JWT or a CWT, for a relying party. Raises AttestationError.

    `keys` are the verifier's by their ids, from wherever its keys are believed, and not from the token. `guest_key` is
    the key that is about to be used: it has to be the one that was attested.
    """
    claims = _signed_claims(token, keys) if isinstance(token, str) else decode_cwt(token, keys)
    if claims.get("eat_profile") not in (IETF_PROFILE, VERAISON_PROFILE):
        raise AttestationError(f"the token's profile is not known: {claims.get('eat_profile')!r:.80}")
    now = time.time() if now is None else now
    for name in ("iat", "exp"):
        if type(claims.get(name)) is not int:
            raise AttestationError(f"the token has no {name} that is a whole number")
    if claims["iat"] > now + LEEWAY:
        raise AttestationError("the token was issued in the future")
    if claims["exp"] <= now - LEEWAY or claims["exp"] <= claims["iat"]:
        raise AttestationError("the token has expired")
    if claims.get("aud") != audience:
        raise AttestationError(f"the token is for {claims.get('aud')!r:.80}, not for {audience!r}")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not jti:
        raise AttestationError("the token has no jti, so nobody could deny it")
    if denied(jti):
        raise AttestationError("the token has been revoked")
    if nonce is not None and claims.get("eat_nonce") != base64url(nonce):
        raise AttestationError("the token is of another exchange: its nonce is another one")
    if guest_key is not None and confirmed_key(claims) != guest_key:
        raise AttestationError("the token is for another key than the one that is used")
    return Verified(claims, jti, status_of(claims), claims["exp"])


def _signed_claims(token: str, keys: Mapping[str, Ed25519PublicKey]) -> dict[str, Any]:
    from cryptography.exceptions import InvalidSignature

    try:
        if len(token) > MAX_TOKEN:
            raise ValueError("it is too long")
        head, body, signature = token.split(".")
        header = read_json(from_base64url(head))
        claims = read_json(from_base64url(body))
        if not isinstance(header, dict) or not isinstance(claims, dict):
            raise ValueError("it has no claims")
        if header.get("alg") != "EdDSA" or set(header) - {"alg", "kid", "typ"}:
            raise ValueError("its header has another algorithm than EdDSA, or what is not believed here")
        kid = header.get("kid")
        if not isinstance(kid, str) or kid not in keys:
            raise ValueError("it is signed by a key that is not the verifier's")
        keys[kid].verify(from_base64url(signature), f"{head}.{body}".encode())
    except ValueError as error:  # binascii and Unicode errors are
        raise AttestationError(f"this is no token that can be believed: {error}") from None
    except InvalidSignature:
        raise AttestationError("the token's signature is wrong") from None
    return claims


def confirmed_key(claims: Mapping[str, Any]) -> GuestKey:
    """The guest's key that a token is bound to. Raises AttestationError."""
    confirmation = claims.get("cnf")
    key = confirmation.get("jwk") if isinstance(confirmation, dict) else None
    kind = next((kind for kind, curve in _CURVES.items() if isinstance(key, dict) and key.get("crv") == curve), "")
    if not isinstance(key, dict) or not kind or not isinstance(key.get("x"), str):
        raise AttestationError("the token is bound to no key")
    return GuestKey(kind, from_base64url(key["x"]))


def appraisal_of(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one submodule's claims. Raises AttestationError."""
    submodules = claims.get("submods")
    if not isinstance(submodules, dict) or not isinstance(guest := submodules.get(SUBMODULE), dict):
        raise AttestationError("the token says nothing of a guest")
    return guest


def status_of(claims: Mapping[str, Any]) -> str:
    """none, affirming, warning or contraindicated. Raises AttestationError, also if it is better than the vector."""
    guest = appraisal_of(claims)
    status = guest.get("ear_status", guest.get("ear.status"))
    tiers = {"none": 0, "affirming": 2, "warning": 32, "contraindicated": 96}
    if not isinstance(status, str) or status not in tiers:
        raise AttestationError("the token has no status")
    vector = _vector_of(guest)
    if tiers[status] < max(vector.values(), default=0):
        raise AttestationError("the token's status is better than its vector")
    return str(status)


def _vector_of(guest: Mapping[str, Any]) -> Mapping[str, int]:
    vector = guest.get("ear_trustworthiness_vector", guest.get("ear.trustworthiness-vector"))
    if not isinstance(vector, dict) or not all(type(value) is int for value in vector.values()):
        raise AttestationError("the token has no trustworthiness vector")
    return vector


def worst_reasons_of(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the status is no better: what is said of the worst entries of the vector. Raises AttestationError."""
    vector, reasons = _vector_of(appraisal_of(claims)), own_claims_of(claims).get("reasons")
    if not isinstance(reasons, list):
        return ()
    worst = max(vector.values(), default=0)
    return tuple(text for text in map(str, reasons) if vector.get(text.partition(":")[0]) == worst)


def own_claims_of(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    """What own_claims put into a token, whichever profile it has. Raises AttestationError."""
    guest = appraisal_of(claims)
    verifiers = guest.get("ear_verifier_claims")
    own = verifiers.get("memvm") if isinstance(verifiers, dict) else guest.get("memvm")
    if not isinstance(own, dict):
        raise AttestationError("the token has none of memvm's claims")
    return own


def token_from_file(raw: bytes) -> str | bytes:
    """A JWT as text, or a CWT as bytes, also from its base64. Raises AttestationError."""
    if raw[:1] == CWT_BEGIN:
        return raw
    text = raw.decode("ascii", "replace").strip()
    if "." in text:
        return text
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise AttestationError("this is no token: neither JWT nor CWT") from None


def read_unverified(token: str | bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims for a person to look at: nothing of it can be believed. Raises AttestationError."""
    if isinstance(token, bytes):
        signed = cose.read(token)
        return {"alg": "EdDSA"}, named_claims(signed.payload)
    try:
        head, body, _ = token.split(".")
        return read_json(from_base64url(head)), read_json(from_base64url(body))
    except ValueError as error:
        raise AttestationError(f"this is no token: {error}") from None
