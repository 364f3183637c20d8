"""The key broker, a relying party (RFC 9334): it keeps disks' keys, and gives them to guests that were attested.

An exchange: the broker draws a nonce for a disk; the guest binds nonce, broker, disk, header and its own public key
together (disk_keys.py), and is attested with that; the broker checks the token, and answers with the disk's key,
sealed for the guest's key and signed. A nonce works once. All that is asked and answered is logged before anybody is
told; whatever goes wrong is an exception, and no key.

In the broker's directory:

    broker.key broker.pub    its key; the public one has to be measured into guests
    keys/UUID.json           a disk's volume key, and the digest of its header
    revoked/UUID             a disk whose key nobody gets any more
    log.jsonl                what was given to whom, and what was refused
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from memvm.attest.broker_log import BrokerLog
from memvm.attest.broker_policy import BrokerPolicy, DiskPolicy
from memvm.attest.disk_keys import NONCE_SIZE, SealedKey, binding, seal
from memvm.attest.evidence import GuestKey
from memvm.attest.key_files import load_public, service_key, write_new
from memvm.attest.tokens import (
    Verified,
    confirmed_key,
    key_id,
    own_claims_of,
    token_from_file,
    verify_token,
    worst_reasons_of,
)
from memvm.errors import AttestationError, HostError

MOST_CHALLENGES = 10_000
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Challenge(NamedTuple):
    """An exchange that has begun."""

    nonce: bytes
    disk: str
    expires: float
    """In seconds of the broker's clock."""


class KeptKey(NamedTuple):
    """What is kept of a disk."""

    volume_key: bytes
    header_digest: bytes

    def __repr__(self) -> str:
        """Shows nothing of the key."""
        return f"KeptKey(of a disk with header {self.header_digest.hex()[:16]})"


class Broker:
    """One broker. Its methods may be called from any thread."""

    def __init__(
        self,
        policy: BrokerPolicy,
        directory: Path,
        denied: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`denied` gives the verifier's deny list as it is now, or raises AttestationError: then nobody gets a key.

        Raises AttestationError for a policy that cannot be followed, and HostError.
        """
        self.policy = policy
        self._directory, self._denied, self._clock = directory, denied, clock
        self._key = broker_key(directory)
        keys = [load_public(path) for path in policy.verifier_keys]
        self._verifier_keys = {key_id(key): key for key in keys}
        self._challenges: dict[bytes, Challenge] = {}
        self._lock = threading.Lock()
        self._log_file = BrokerLog(directory / "log.jsonl")
        self._instances: dict[tuple[str, str, str], str] = {}
        for entry in self._log_file.entries:
            if entry["what"] == "given":
                self._instances[(entry["disk"], entry["identity"], entry["origin"])] = entry["instance"]

    def close(self) -> None:
        """Close the log."""
        self._log_file.close()

    def challenge(self, disk: str) -> Challenge:
        """Begin an exchange. Raises AttestationError for a disk that it has no policy for."""
        self._policy_for(disk)
        now = self._clock()
        challenge = Challenge(os.urandom(NONCE_SIZE), disk, now + self.policy.nonce_lifetime)
        with self._lock:
            if len(self._challenges) >= MOST_CHALLENGES:
                self._challenges = {nonce: kept for nonce, kept in self._challenges.items() if kept.expires > now}
                if len(self._challenges) >= MOST_CHALLENGES:
                    raise AttestationError("there are too many exchanges; try again later")
            self._challenges[challenge.nonce] = challenge
        return challenge

    def answer(self, disk: str, nonce: bytes, token: str) -> SealedKey:
        """End an exchange with the disk's key. Raises AttestationError if there is a reason not to give it."""
        try:
            with self._lock:
                challenge = self._challenges.pop(nonce, None)
            if challenge is None or challenge.disk != disk:
                raise AttestationError("there is no such exchange: it has been used, or has never been")
            if self._clock() > challenge.expires:
                raise AttestationError("the exchange has expired")
            denied = self._denied()
            verified = verify_token(
                token_from_file(token.encode()),
                self._verifier_keys,
                self.policy.identity,
                denied=lambda jti: jti in denied,
                now=self._clock(),
            )
            return self._give(disk, nonce, verified)
        except AttestationError as error:
            self._log(what="refused", disk=disk[:40], reason=error.message)
            raise

    def _give(self, disk: str, nonce: bytes, verified: Verified) -> SealedKey:
        policy, kept = self._policy_for(disk), read_key(self._directory, disk)
        own, guest_key = own_claims_of(verified.claims), confirmed_key(verified.claims)
        bound = binding(self.policy.identity, nonce, disk, kept.header_digest, guest_key.public)
        if not secrets.compare_digest(str(own.get("bound")).encode(), bound.hex().encode()):
            raise AttestationError(
                "the token is not of this exchange: another nonce, broker, disk, header or guest's key is bound into it"
            )
        self._judge(policy, verified, own)
        lineage = _lineage(own)
        with self._lock:
            self._look_for_second(disk, policy, lineage)
            sealed = seal(kept.volume_key, guest_key, bound, self._key)
            self._log_file.append(
                {
                    "at": int(self._clock()),
                    "what": "given",
                    "disk": disk,
                    "jti": verified.jti,
                    "program": str(own.get("program")),
                    "key": _shown(guest_key),
                    **lineage,
                }
            )
            self._instances[(disk, lineage["identity"], lineage["origin"])] = lineage["instance"]
        return sealed

    def _judge(self, policy: DiskPolicy, verified: Verified, own: Any) -> None:
        if verified.status not in policy.tiers:
            why = "; ".join(worst_reasons_of(verified.claims))
            raise AttestationError(f"the guest is {verified.status}, which is not enough for this disk: {why}"[:500])
        program = own.get("program")
        if program not in policy.programs:
            raise AttestationError(f"the guest is {program!r:.80}, to which this disk does not belong")

    def _look_for_second(self, disk: str, policy: DiskPolicy, lineage: dict[str, str]) -> None:
        """Two guests from one checkpoint would both have the key, and write to one disk or to two copies of it."""
        known = self._instances.get((disk, lineage["identity"], lineage["origin"]))
        if known is not None and known != lineage["instance"] and not policy.allows_second_instance:
            what = "checkpoint" if lineage["origin"] else "launch"
            raise AttestationError(f"a guest from the same {what} has the disk's key: this is a second one")

    def _policy_for(self, disk: str) -> DiskPolicy:
        policy = self.policy.disks.get(disk)
        if policy is None:
            raise AttestationError("this broker keeps no such disk's key")
        if (self._directory / "revoked" / disk).exists():
            raise AttestationError("the disk's key has been revoked")
        return policy

    def _log(self, **entry: str) -> None:
        with self._lock:
            self._log_file.append({"at": int(self._clock()), **entry})


def _lineage(own: Any) -> dict[str, str]:
    lineage = own.get("lineage")
    found = {name: lineage.get(name) for name in ("identity", "instance", "checkpoint")} if lineage else {}
    if len(found) != 3 or not all(isinstance(value, str) for value in found.values()):
        raise AttestationError("the token says nothing of where the guest came from")
    return {"identity": found["identity"], "instance": found["instance"], "origin": found["checkpoint"]}


def _shown(key: GuestKey) -> str:
    return f"{key.kind}:{key.public.hex()}"


def broker_key(directory: Path) -> Ed25519PrivateKey:
    """The broker's key, made at first. Raises AttestationError, HostError."""
    return service_key(directory, "broker")


def keep_key(directory: Path, disk: str, kept: KeptKey) -> None:
    """Keep a disk's key, or another header digest of it. Raises AttestationError for what is no UUID, HostError."""
    path = _key_path(directory, disk)
    text = json.dumps({"key": kept.volume_key.hex(), "header": kept.header_digest.hex()})
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        write_new(temporary, text.encode())
        temporary.rename(path)
        (directory / "revoked" / disk).unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{path}: the key cannot be kept: {error.strerror}") from None


def read_key(directory: Path, disk: str) -> KeptKey:
    """A disk's key. Raises AttestationError if it is not here."""
    path = _key_path(directory, disk)
    try:
        fields = json.loads(path.read_bytes())
        return KeptKey(bytes.fromhex(fields["key"]), bytes.fromhex(fields["header"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise AttestationError("this broker has not got the disk's key", hint="memvm broker add") from None


def revoke_key(directory: Path, disk: str) -> None:
    """Give a disk's key to nobody any more: it is forgotten. Raises AttestationError for what is no UUID, HostError."""
    path = _key_path(directory, disk)
    try:
        (directory / "revoked").mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "revoked" / disk).touch(mode=0o600)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from None


def _key_path(directory: Path, disk: str) -> Path:
    if not _UUID.fullmatch(disk):
        raise AttestationError(f"{disk!r:.60} is no UUID of a disk", hint="memvm disk info shows it")
    return directory / "keys" / f"{disk}.json"
