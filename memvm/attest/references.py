"""Reference values: which launch digests are of known programs, and which code implements the behaviours.

A file is an in-toto statement in a DSSE envelope, signed with Ed25519:

    subject        a name and a launch digest (sha384) for each known program
    predicateType  https://memvm.dev/reference/v1
    predicate      {"code": [digests of the code that implements the behaviours], "version": least security version}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from memvm.errors import AttestationError
from memvm.foreign_json import read_json
from memvm.machine.register import DIGEST_SIZE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://memvm.dev/reference/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class References(NamedTuple):
    """What is known."""

    programs: Mapping[bytes, str]
    """Launch digest -> name."""
    code: frozenset[bytes]
    version: int = 0

    def united(self, other: References) -> References:
        """Both."""
        programs = {**self.programs, **other.programs}
        return References(programs, self.code | other.code, max(self.version, other.version))


NOTHING = References({}, frozenset())


def sign_references(references: References, key: Ed25519PrivateKey) -> str:
    """The envelope, as JSON."""
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha384": digest.hex()}} for digest, name in references.programs.items()],
        "predicateType": PREDICATE,
        "predicate": {"code": sorted(code.hex() for code in references.code), "version": references.version},
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    signature = key.sign(_encoded(PAYLOAD_TYPE, payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, indent=2)


def read_reference_file(path: Path, keys: Sequence[Ed25519PublicKey]) -> References:
    """What a file says that one of `keys` signed. Raises AttestationError, which names it."""
    try:
        return read_references(path.read_bytes(), keys)
    except OSError as error:
        raise AttestationError(f"{path}: {error.strerror}") from None
    except AttestationError as error:
        raise AttestationError(f"{path}: {error.message}") from None


def read_references(text: str | bytes, keys: Sequence[Ed25519PublicKey]) -> References:
    """What an envelope says that one of `keys` signed. Raises AttestationError."""
    try:
        envelope = read_json(text)
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError("it is of another type")
        _require_signed(payload, signatures, keys)
        return _read_statement(read_json(payload))
    except (ValueError, KeyError, TypeError) as error:
        raise AttestationError(f"reference values that make no sense: {error}") from None


def _require_signed(payload: bytes, signatures: Sequence[bytes], keys: Sequence[Ed25519PublicKey]) -> None:
    from cryptography.exceptions import InvalidSignature

    for key in keys:
        for signature in signatures:
            try:
                key.verify(signature, _encoded(PAYLOAD_TYPE, payload))
            except InvalidSignature:
                continue
            return
    raise AttestationError("the reference values are not signed by a key that is trusted here")


def _encoded(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload))


def _read_statement(statement: Any) -> References:
    if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
        raise ValueError("it is no statement of memvm's")
    programs = {_digest(each["digest"]["sha384"]): str(each["name"]) for each in statement["subject"]}
    predicate = statement["predicate"]
    version = predicate["version"]
    if type(version) is not int:
        raise ValueError("the security version is no number")
    return References(programs, frozenset(map(_digest, predicate["code"])), version)


def _digest(text: Any) -> bytes:
    if not isinstance(text, str) or len(digest := bytes.fromhex(text)) != DIGEST_SIZE:
        raise ValueError("not a SHA-384 digest")
    return digest
