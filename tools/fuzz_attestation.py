"""Looks for evidence, quotes, tokens and reference values that do harm: changes good ones, and has them signed again.

    python3 -m tools.fuzz_attestation [--seconds 60] [--messages N] [--seed 1]

Who changes a message without its key is stopped by the signature; here each change is signed by the right key, as a
hostile platform, TPM or maker could do it, so that all that stands behind signatures is reached. Nothing but
AttestationError may come out, what is accepted has to be of the form that is promised, and no message may take more
than a second of CPU time. A message that does not keep to that is named by the seed that makes it again, and the exit
status is 1.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cbor2

from memvm.attest import cbor, cose
from memvm.attest.base64url import base64url
from memvm.attest.key_files import load_private
from memvm.attest.keyset import keys_from_jwks
from memvm.attest.pcr import PCRS
from memvm.attest.references import PAYLOAD_TYPE, References, read_references, sign_references
from memvm.attest.tokens import TokenFormat, verify_token
from memvm.attest.verifier import REVOCATION_DOMAIN
from memvm.errors import AttestationError
from memvm.machine.settings import Name
from tests.attest.samples import Lab, logged
from tools.fuzzing import Fuzzed, fuzz, in_time, options

WHAT = Fuzzed("messages", "accepted", "tools.fuzz_attestation")
TIME_LIMIT = 1.0
_MESSAGES_IN_A_BOOT = 1000
VALUES: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 15, 255, 1 << 32, (1 << 64) - 1, -(1 << 64), 1.5, float("nan"), 1 << 70),
    *(b"", bytes(16), bytes(32), bytes(48), bytes(64), "", "on", "\ud7ff", "a" * 300, "ed25519", "x25519"),
    *([], {}, [[]], {"": b""}, {1: {2: {3: {}}}}, [0] * 40),
)
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0xFFFFFFFF)


class Fuzzer:
    """Keys of all that sign, and good messages of theirs."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(directory, time.time, memory_lifetime=1.0)
        self.tpm = self.lab.tpm()
        self.keys = keys_from_jwks(self.lab.verifier.jwks)
        (self.signer,) = (load_private(path) for path in directory.glob("state/verifier.key"))
        self.kinds: Sequence[Callable[[random.Random], bool]] = (
            *(self.evidence, self.quote, self.token, self.cwt, self.references, self.revocation),
        )

    def evidence(self, rng: random.Random) -> bool:
        """A payload with changes, signed by the device."""
        session = self.lab.verifier.new_session("broker")
        register, log = logged({"setting": "debug", "before": "off", "after": "on"})
        evidence = self.lab.evidence(session, register=register, log=log)
        self.tpm.extend(evidence.lineage.instance, register)
        fields = cbor.decode(evidence.to_payload())
        if rng.random() < 0.5:
            fields["tpm"] = self.tpm.anchor(evidence).to_fields()
        payload = _changed_cbor(fields, rng)
        device = self.lab.device
        header: dict[int, Any] = {cose.CHAIN: list(device.chain)}
        if rng.random() < 0.1:
            header[rng.choice((1, 4, 33, 99))] = rng.choice(VALUES)
        return self._answer(session.id, _signed(payload, device.key, header))

    def quote(self, rng: random.Random) -> bool:
        """A TPMS_ATTEST with changes, signed by the TPM."""
        session = self.lab.verifier.new_session("broker")
        evidence = self.lab.evidence(session)
        self.tpm.extend(evidence.lineage.instance, evidence.register)
        anchor = self.tpm.anchor(evidence)
        attested = _changed_bytes(anchor.quote, rng)
        signature = self.tpm.sign(attested)
        if rng.random() < 0.2:
            signature = _changed_bytes(signature, rng)
        log = _changed_bytes(anchor.log, rng) if rng.random() < 0.1 else anchor.log
        message = evidence.sign(self.lab.device, anchor._replace(quote=attested, signature=signature, log=log))
        return self._answer(session.id, message)

    def token(self, rng: random.Random) -> bool:
        """A JWT with changes, signed by the verifier."""
        session = self.lab.verifier.new_session("broker", rng.choice((TokenFormat.IETF, TokenFormat.VERAISON)))
        token = self.lab.verifier.answer(session.id, self.lab.message(session)).token
        assert isinstance(token, str)
        head, body, _ = token.split(".")
        parts = []
        for part, share in ((head, 0.3), (body, 0.9)):
            raw = base64.urlsafe_b64decode(part + "==")
            parts.append(base64url(_changed_json(raw, rng) if rng.random() < share else raw))
        signed = ".".join(parts)
        return self._verify(f"{signed}.{base64url(self.signer.sign(signed.encode()))}")

    def cwt(self, rng: random.Random) -> bool:
        """A CWT with changes, signed by the verifier."""
        session = self.lab.verifier.new_session("broker", TokenFormat.CWT)
        token = self.lab.verifier.answer(session.id, self.lab.message(session)).token
        assert isinstance(token, bytes)
        good = cose.read(token)
        payload = _changed_cbor(cbor.decode(good.payload), rng)
        return self._verify(_signed(payload, self.signer, {cose.KEY_ID: good.header[cose.KEY_ID]}))

    def references(self, rng: random.Random) -> bool:
        """Reference values with changes, signed by who makes them."""
        text = sign_references(References({bytes(48): "x"}, frozenset((bytes(48),)), 1), self.signer)
        payload = _changed_json(base64.b64decode(json.loads(text)["payload"]), rng)
        covered = b" ".join(
            (b"DSSEv1", b"%d" % len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), b"%d" % len(payload), payload)
        )
        envelope: Any = {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"sig": base64.b64encode(self.signer.sign(covered)).decode()}],
        }
        raw = json.dumps(envelope).encode()
        if rng.random() < 0.2:
            raw = _changed_json(raw, rng)
        try:
            found = read_references(raw, [self.signer.public_key()])
        except AttestationError:
            return False
        assert all(len(digest) == 48 for digest in (*found.programs, *found.code))
        return True

    def revocation(self, rng: random.Random) -> bool:
        """A revocation with changes, signed by the device."""
        session = self.lab.verifier.new_session("broker")
        jti = self.lab.verifier.answer(session.id, self.lab.message(session)).jti
        payload = _changed_cbor({"domain": REVOCATION_DOMAIN, "jti": jti, "reason": "x"}, rng)
        device = self.lab.device
        try:
            denied = self.lab.verifier.revoke(_signed(payload, device.key, {cose.CHAIN: list(device.chain)}))
        except AttestationError:
            return False
        assert denied == jti in self.lab.verifier.deny_list
        return True

    def _answer(self, session: str, message: bytes) -> bool:
        try:
            evidence = self.lab.verifier.answer(session, message).evidence
        except AttestationError:
            return False
        assert set(evidence.settings) == set(Name)
        assert len(evidence.register) == 48
        assert evidence.anchored is None or evidence.anchored.quote.pcr >= PCRS.start
        return True

    def _verify(self, token: str | bytes) -> bool:
        try:
            verified = verify_token(token, self.keys, "broker")
        except AttestationError:
            return False
        assert verified.status in ("none", "affirming", "warning", "contraindicated")
        assert type(verified.expires) is int
        return True


def _signed(payload: bytes, key: Any, header: dict[int, Any]) -> bytes:
    """As cose.sign, for headers that it would not make."""
    protected = cbor2.dumps({cose.ALGORITHM: cose.EDDSA, **header}, canonical=True)
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", payload], canonical=True)
    return b"\xd2" + cbor2.dumps([protected, {}, payload, key.sign(to_be_signed)], canonical=True)


def _changed_cbor(value: Any, rng: random.Random) -> bytes:
    """One of its values replaced; or its encoding changed."""
    if rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 2))):
            value = _changed_value(value, rng)
        return cbor2.dumps(value, canonical=rng.random() < 0.9)
    return _changed_bytes(cbor2.dumps(value, canonical=True), rng)


def _changed_json(raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        changed = _changed_value(json.loads(raw), rng)
        return json.dumps(changed, default=lambda value: value.hex()).encode()
    return _changed_bytes(raw, rng)


def _changed_value(value: Any, rng: random.Random) -> Any:
    """A copy of a tree in which something is replaced, left out, or more than there was."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if rng.random() < 0.1:
            return {**value, rng.choice((0, 7, "x", "", key)): rng.choice(VALUES)}
        return {**value, key: _changed_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        replaced = [] if rng.random() < 0.1 else [_changed_value(value[at], rng)] * rng.choice((1, 1, 1, 2))
        return [*value[:at], *replaced, *value[at + 1 :]]
    if isinstance(value, bytes) and rng.random() < 0.5:
        return _changed_bytes(value, rng)
    return rng.choice(VALUES)


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(4):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice((1, 2, 4, 8))
                changed[at : at + width] = (rng.choice(EDGES) % (1 << 8 * width)).to_bytes(width, "big")
            case 2:
                changed[at:at] = rng.randbytes(rng.choice((1, 4, 30)))
            case _:
                del changed[at : at + rng.choice((1, 2, 16, len(changed)))]
    return bytes(changed)


def try_one(fuzzer: Fuzzer, seed: int) -> bool:
    """Make the message of this seed and check it; True if it is accepted."""
    rng = random.Random(seed)
    kind = rng.choice(fuzzer.kinds)
    if not seed % _MESSAGES_IN_A_BOOT:
        fuzzer.tpm.log = b""  # a log that grows makes all later messages slow
        fuzzer.tpm.resets += 1
    return in_time(TIME_LIMIT, lambda: kind(rng))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options(WHAT, "Look for messages of attestation that do harm.").parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        fuzzer = Fuzzer(Path(directory))
        try:
            return fuzz(WHAT, arguments, lambda seed: try_one(fuzzer, seed))
        finally:
            fuzzer.lab.verifier.close()


if __name__ == "__main__":
    sys.exit(main())
