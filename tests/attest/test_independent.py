"""Readers that are not memvm's take the tokens and the chain: PyJWT, joserfc, cwt, a JSON schema, and openssl."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

import cbor2
import cwt
import joserfc.jwk
import joserfc.jwt
import jsonschema
import jwt
import pytest

from memvm.attest.tokens import IETF_PROFILE, VERAISON_PROFILE, TokenFormat
from tests.attest.samples import Clock, Lab

TIER = {"enum": ["none", "affirming", "warning", "contraindicated"]}
CLAIM = {"type": "integer", "minimum": -128, "maximum": 127}
VECTOR = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": dict.fromkeys(
        (
            *("instance-identity", "configuration", "executables", "file-system"),
            *("hardware", "runtime-opaque", "storage-opaque", "sourced-data"),
        ),
        CLAIM,
    ),
}


def schema(profile: str, dot: str, policy: dict[str, Any]) -> dict[str, Any]:
    """EAR as JSON, after the draft's CDDL; `dot` is what stands behind "ear" in names."""
    ear = f"ear{dot}"
    named = "-" if dot == "." else "_"
    return {
        "type": "object",
        "required": ["eat_profile", "iat", f"{ear}verifier{named}id", "submods"],
        "properties": {
            "eat_profile": {"const": profile},
            "iat": {"type": "integer"},
            "exp": {"type": "integer"},
            "eat_nonce": {"type": "string", "minLength": 8, "maxLength": 88},
            f"{ear}verifier{named}id": {
                "type": "object",
                "required": ["developer", "build"],
                "properties": {"developer": {"type": "string"}, "build": {"type": "string"}},
            },
            "submods": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {
                    "type": "object",
                    "required": [f"{ear}status"],
                    "properties": {
                        f"{ear}status": TIER,
                        f"{ear}trustworthiness{named}vector": VECTOR,
                        **policy,
                        "ear_verifier_claims": {"type": "object", "minProperties": 1},
                    },
                },
            },
        },
    }


SCHEMAS = {
    TokenFormat.IETF: schema(
        IETF_PROFILE,
        "_",
        {"ear_appraisal_policy_ids": {"type": "array", "minItems": 1, "items": {"type": "string"}}},
    ),
    TokenFormat.VERAISON: schema(VERAISON_PROFILE, ".", {"ear.appraisal-policy-id": {"type": "string"}}),
}


@pytest.fixture
def clock() -> Clock:
    """The real time: readers look at it."""
    clock = Clock()
    clock.now = time.time()
    return clock


def issued(lab: Lab, kind: TokenFormat) -> str | bytes:
    session = lab.verifier.new_session("broker", kind)
    return lab.verifier.answer(session.id, lab.message(session)).token


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # Ed25519 of RFC 9864 is what few readers know yet
@pytest.mark.parametrize("kind", SCHEMAS)
def test_jwt(lab: Lab, kind: TokenFormat) -> None:
    token = issued(lab, kind)
    assert isinstance(token, str)
    [key] = lab.verifier.jwks["keys"]
    claims = jwt.decode(
        token,
        jwt.PyJWK(key),
        algorithms=["EdDSA"],
        audience="broker",
        options={"require": ["exp", "iat", "aud", "jti"]},
    )
    jsonschema.validate(claims, SCHEMAS[kind])
    decoded = joserfc.jwt.decode(token, joserfc.jwk.OKPKey.import_key(key), algorithms=["EdDSA"])
    assert decoded.claims == claims
    wanted = joserfc.jwt.JWTClaimsRegistry(aud={"essential": True, "value": "broker"}, exp={"essential": True})
    wanted.validate(decoded.claims)


def test_cwt(lab: Lab) -> None:
    token = issued(lab, TokenFormat.CWT)
    assert isinstance(token, bytes)
    public = lab.verifier._key.public_key().public_bytes_raw()
    [jwk] = lab.verifier.jwks["keys"]
    key = cwt.COSEKey.new({1: 1, 2: jwk["kid"].encode(), 3: -8, -1: 6, -2: public})
    claims: Any = cwt.decode(token, key)
    assert cbor2.loads(cwt.COSE.new().decode(token, key)) == claims
    assert claims[265] == IETF_PROFILE
    appraisal = claims[266]["guest"]
    assert appraisal[1000] == 32
    assert set(appraisal[1001]) == set(range(8))
    assert appraisal[1006]["memvm"]["program"] == "server"
    assert claims[8][1][-2] == bytes(range(32))


def test_the_chain_verifies_with_openssl(lab: Lab) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here: apt-get install openssl")
    platform = lab.directory / "platform"
    root, chain = str(platform / "root.pem"), str(platform / "chain.pem")
    command = ["openssl", "verify", "-x509_strict", "-CAfile", root, chain]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
