"""A key broker's policy: a TOML file that says whose tokens it believes, and what a token has to say for which disk.

    [broker]
    identity = "lab"                         # its name: tokens have to be for this audience
    verifier = "http://127.0.0.1:8080"       # whose deny list is asked for before each answer
    verifier-ca = "tls.pem"                  # the certificates to believe for that; the system's if left out
    verifier-keys = ["verifier/verifier.pub"]    # the keys that tokens have to be signed with
    nonce-lifetime = "60s"

    [disks.0b7d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55]    # by UUID (memvm disk info)
    programs = ["worker"]                    # as the verifier's reference values call them
    tiers = ["affirming", "warning"]         # what the token may say of the guest at large
    second-instance = "refuse"               # another guest from the same checkpoint: refuse, or allow

Paths are relative to the file. Disks that are not in it get nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from memvm.attest.disk_keys import LONGEST_IDENTITY
from memvm.attest.policy import AFFIRMING, TIERS, WARNING
from memvm.attest.policy_files import lifetime, needed, paths, read_policy_file, refuse_unknown, service, text, texts


class DiskPolicy(NamedTuple):
    """What a token has to say for one disk."""

    programs: tuple[str, ...]
    tiers: tuple[str, ...] = (AFFIRMING, WARNING)
    allows_second_instance: bool = False


class BrokerPolicy(NamedTuple):
    """A policy, checked."""

    identity: str
    verifier: str
    verifier_keys: tuple[Path, ...]
    disks: Mapping[str, DiskPolicy]
    verifier_ca: str = ""
    nonce_lifetime: float = 60.0


def read_broker_policy(path: Path) -> BrokerPolicy:
    """A policy from its file. Raises AttestationError, also for what it does not know."""
    return read_policy_file(path, _parse)


def _parse(document: dict[str, Any], folder: Path) -> BrokerPolicy:
    broker, disks = needed(document, "broker"), document.pop("disks", {})
    authority = broker.pop("verifier-ca", "")
    policy = BrokerPolicy(
        identity=text(needed(broker, "identity")),
        verifier=service(needed(broker, "verifier")),
        verifier_keys=paths(needed(broker, "verifier-keys"), folder),
        disks={_uuid(name): _disk(fields) for name, fields in disks.items()},
        verifier_ca=str(folder / text(authority)) if authority else "",
        nonce_lifetime=lifetime(broker.pop("nonce-lifetime", "60s")),
    )
    refuse_unknown(document, broker)
    if len(policy.identity.encode()) > LONGEST_IDENTITY:
        raise ValueError(f"an identity has at most {LONGEST_IDENTITY} bytes")
    if not policy.verifier_keys:
        raise ValueError("there have to be verifier-keys")
    return policy


def _uuid(name: str) -> str:
    """As disks' headers have it."""
    try:
        return str(UUID(name))
    except ValueError:
        raise ValueError(f"{name!r} is no UUID of a disk, which memvm disk info shows") from None


def _disk(fields: dict[str, Any]) -> DiskPolicy:
    programs = texts(needed(fields, "programs"))
    tiers = texts(fields.pop("tiers", DiskPolicy(()).tiers))
    second = fields.pop("second-instance", "refuse")
    refuse_unknown(fields)
    if set(tiers) - set(TIERS) or second not in ("refuse", "allow"):
        raise ValueError(
            "tiers are affirming, warning and contraindicated, and a second instance is refused or allowed"
        )
    return DiskPolicy(programs, tiers, second == "allow")
