"""Tokens as CWT (RFC 8392): the claims of an EAR under the numbers of the draft, signed as COSE_Sign1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memvm.attest import cbor, cose
from memvm.attest.appraisal import VECTOR, Tier
from memvm.attest.base64url import base64url, from_base64url
from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_NAMES = {1: "iss", 3: "aud", 4: "exp", 6: "iat", 265: "eat_profile"}
_JTI, _CONFIRMATION, _NONCE, _SUBMODULES, _VERIFIER = 7, 8, 10, 266, 1004
_APPRAISAL = {1003: "ear_appraisal_policy_ids", 1006: "ear_verifier_claims"}
_STATUS, _TRUST_VECTOR = 1000, 1001
_CURVES = {"Ed25519": 6, "X25519": 4}  # IANA's COSE elliptic curves
_COSE_KEY, _KEY_TYPE, _CURVE, _POINT, _OKP = 1, 1, -1, -2, 1


def encode_cwt(claims: Mapping[str, Any], key: Ed25519PrivateKey, key_id: str) -> bytes:
    """The CWT with the claims that a JWT in the draft's names has."""
    numbered: dict[int, Any] = {number: claims[name] for number, name in _NAMES.items()}
    numbered[_JTI] = claims["jti"].encode()
    numbered[_NONCE] = from_base64url(claims["eat_nonce"])
    numbered[_VERIFIER] = {0: claims["ear_verifier_id"]["developer"], 1: claims["ear_verifier_id"]["build"]}
    numbered[_SUBMODULES] = {name: _numbered_appraisal(each) for name, each in claims["submods"].items()}
    if "cnf" in claims:
        jwk = claims["cnf"]["jwk"]
        point = from_base64url(jwk["x"])
        numbered[_CONFIRMATION] = {_COSE_KEY: {_KEY_TYPE: _OKP, _CURVE: _CURVES[jwk["crv"]], _POINT: point}}
    return cose.sign(cbor.encode(numbered), key, {cose.KEY_ID: key_id.encode()})


def decode_cwt(message: bytes, keys: Mapping[str, Ed25519PublicKey]) -> dict[str, Any]:
    """The claims of a CWT that one of `keys` signed, in the draft's names for JSON. Raises AttestationError."""
    signed = cose.read(message)
    key_id = signed.header.get(cose.KEY_ID)
    key = keys.get(key_id.decode("ascii", "replace")) if isinstance(key_id, bytes) else None
    if key is None or cose.CHAIN in signed.header:
        raise AttestationError("the token is signed by a key that is not the verifier's")
    signed.verify(key)
    return named_claims(signed.payload)


def named_claims(payload: bytes) -> dict[str, Any]:
    """The claims of a payload in the draft's names for JSON. Raises AttestationError."""
    numbered = cbor.decode(payload)
    try:
        claims = {name: numbered[number] for number, name in _NAMES.items()}
        claims["jti"] = numbered[_JTI].decode()
        claims["eat_nonce"] = base64url(numbered[_NONCE])
        claims["ear_verifier_id"] = {"developer": numbered[_VERIFIER][0], "build": numbered[_VERIFIER][1]}
        claims["submods"] = {name: _named_appraisal(each) for name, each in numbered[_SUBMODULES].items()}
        if _CONFIRMATION in numbered:
            key = numbered[_CONFIRMATION][_COSE_KEY]
            curve = next(name for name, number in _CURVES.items() if number == key[_CURVE])
            claims["cnf"] = {"jwk": {"kty": "OKP", "crv": curve, "x": base64url(key[_POINT])}}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise AttestationError(f"a CWT whose claims make no sense: {error}") from None
    return claims


def _numbered_appraisal(appraisal: Mapping[str, Any]) -> dict[int, Any]:
    numbered = {number: appraisal[name] for number, name in _APPRAISAL.items()}
    numbered[_STATUS] = int(Tier[appraisal["ear_status"].upper()])
    vector = appraisal["ear_trustworthiness_vector"]
    numbered[_TRUST_VECTOR] = {VECTOR.index(name): value for name, value in vector.items()}
    return numbered


def _named_appraisal(numbered: Mapping[int, Any]) -> dict[str, Any]:
    appraisal = {name: numbered[number] for number, name in _APPRAISAL.items()}
    appraisal["ear_status"] = Tier(numbered[_STATUS]).name.lower()
    vector = numbered[_TRUST_VECTOR]
    appraisal["ear_trustworthiness_vector"] = {VECTOR[number]: value for number, value in vector.items()}
    return appraisal
