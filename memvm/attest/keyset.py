"""Reads a verifier's keys from its JWK set."""

from __future__ import annotations

import base64
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from memvm.attest.tokens import key_id
from memvm.errors import AttestationError


def keys_from_jwks(jwks: Any) -> dict[str, Ed25519PublicKey]:
    """The Ed25519 keys of a set by their ids, which are their thumbprints. Raises AttestationError."""
    try:
        found = [_key(each) for each in jwks["keys"] if each["kty"] == "OKP" and each["crv"] == "Ed25519"]
    except (KeyError, TypeError, ValueError) as error:
        raise AttestationError(f"the verifier's keys make no sense: {error}") from None
    return {key_id(key): key for key in found}


def _key(each: Any) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(each["x"] + "="))
