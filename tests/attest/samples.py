"""A platform, a verifier and evidence for tests: what a manager would make, without one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from memvm.attest.anchor import Anchor, key_digest, qualifying
from memvm.attest.certificates import make_certificate
from memvm.attest.evidence import AttestedSetting, Evidence, GuestKey, Lineage
from memvm.attest.http import Application
from memvm.attest.key_files import load_private, public_pem
from memvm.attest.pcr import record_of, replay
from memvm.attest.platform import Device, load_certificates, load_device, make_platform
from memvm.attest.policy import Policy
from memvm.attest.quote import pcr_digest
from memvm.attest.references import References, sign_references
from memvm.attest.verifier import Session, Verifier
from memvm.machine.register import Register
from memvm.machine.settings import Name, locked_settings

LAUNCH, CODE = bytes([1]) * 48, bytes([2]) * 48
AUDIENCES = ("broker", "other")


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Lab:
    """A platform and a verifier that believes in it, in a directory."""

    def __init__(self, directory: Path, clock: Callable[[], float], **policy: Any) -> None:
        self.directory = directory
        make_platform(directory / "platform", "lab")
        self.device: Device = load_device(directory / "platform")
        maker = Ed25519PrivateKey.generate()
        (directory / "maker.pub").write_bytes(public_pem(maker.public_key()))
        known = References({LAUNCH: "server"}, frozenset((CODE,)), 1)
        (directory / "references.json").write_text(sign_references(known, maker))
        self.policy = Policy(
            audiences=AUDIENCES,
            roots=(directory / "platform" / "root.pem",),
            references=(directory / "references.json",),
            reference_keys=(directory / "maker.pub",),
            **policy,
        )
        self.clock = clock
        self.verifier = self.restarted()

    def restarted(self) -> Verifier:
        """The verifier, anew, with what it remembers."""
        self.verifier = Verifier(self.policy, self.directory / "state", "https://verifier.example", self.clock)
        return self.verifier

    def tpm(self, number: int = 15) -> FakeTpm:
        """A TPM that is registered for the device."""
        return FakeTpm(self.directory / "platform", number)

    def evidence(self, session: Session, **changes: Any) -> Evidence:
        """Good evidence for a session, but for the changes."""
        return evidence_for(session, **changes)

    def message(self, session: Session, **changes: Any) -> bytes:
        """The same, signed."""
        return self.evidence(session, **changes).sign(self.device)


class FakeTpm:
    """What a TPM says, without one: its key is vouched for by the platform's root, its PCR is what a test wants."""

    def __init__(self, platform: Path, pcr: int) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        device = load_device(platform).key.public_key()
        [root] = load_certificates(platform / "root.pem")
        self.certificate = make_certificate(
            "TPM", self.key.public_key(), root, load_private(platform / "root.key"), serial_number=key_digest(device)
        ).public_bytes(Encoding.DER)
        self.pcr, self.log = pcr, b""
        self.clock, self.resets, self.restarts = 1000, 1, 0

    def extend(self, instance: bytes, register: bytes) -> None:
        """A guest's register has this value now."""
        self.log += record_of(instance, register)

    def attest(self, qualifying: bytes, **changes: bytes) -> bytes:
        """TPMS_ATTEST, but for the changes of its fields."""
        fields = {
            "magic": b"\xffTCG",
            "type": b"\x80\x18",
            "signer": b"\x00\x02ak",
            "extra": len(qualifying).to_bytes(2, "big") + qualifying,
            "clock": self.clock.to_bytes(8, "big"),
            "resets": self.resets.to_bytes(4, "big"),
            "restarts": self.restarts.to_bytes(4, "big"),
            "safe": b"\x01",
            "firmware": bytes(8),
            "selections": b"\x00\x00\x00\x01",
            "bank": b"\x00\x0c",
            "pcrs": b"\x03" + (1 << self.pcr).to_bytes(3, "little"),
            "digest": b"\x00\x20" + pcr_digest(replay(self.log)),
        }
        return b"".join((fields | changes).values())

    def sign(self, attested: bytes) -> bytes:
        """TPMT_SIGNATURE."""
        r, s = decode_dss_signature(self.key.sign(attested, ec.ECDSA(SHA256())))
        return b"\x00\x18\x00\x0b" + b"".join(b"\x00\x20" + number.to_bytes(32, "big") for number in (r, s))

    def anchor(self, evidence: Evidence, **changes: bytes) -> Anchor:
        """What it says of evidence."""
        attested = self.attest(qualifying(evidence.to_payload()), **changes)
        return Anchor(self.certificate, attested, self.sign(attested), self.log)


def evidence_for(session: Session, **changes: Any) -> Evidence:
    """Good evidence for a session, but for the changes."""
    lineage = Lineage(os.urandom(16), os.urandom(16), 0, (), True)
    good = Evidence(
        session.nonce,
        session.audience,
        LAUNCH,
        attested(),
        bytes(48),
        (),
        GuestKey("ed25519", bytes(range(32))),
        CODE,
        1,
        lineage,
    )
    return good._replace(**changes)


def attested(**changes: tuple[str, str, str]) -> dict[Name, AttestedSetting]:
    """The settings of a locked guest, but for the changes: (at launch, now, behaviour)."""
    from memvm.machine.settings import Behaviour

    settings = {
        name: AttestedSetting(setting.value, setting.value, setting.behaviour)
        for name, setting in locked_settings().items()
    }
    for name, (launch, now, behaviour) in changes.items():
        settings[Name(name)] = AttestedSetting(launch, now, Behaviour(behaviour))
    return settings


def logged(*changes: Mapping[str, str]) -> tuple[bytes, tuple[str, ...]]:
    """A register and its log."""
    register = Register()
    for change in changes:
        register.extend(register.entry("change", **change))
    return register.value, tuple(register.entries)


def request_to(service: Application, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """A request to a service, and its answer: status and body."""
    bodies, sent = [body], []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": bodies.pop()}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(service(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])
