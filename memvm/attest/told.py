"""What is told of a platform: a record for people and programs."""

from __future__ import annotations

from hashlib import sha384
from pathlib import Path
from typing import NamedTuple

from memvm.attest.code import code_digest
from memvm.attest.places import read_tpm
from memvm.attest.platform import load_certificates, load_device


class PlatformFacts(NamedTuple):
    """A platform."""

    directory: str
    device: str
    """Its name."""
    device_digest: str
    """SHA-384 of its certificate, as tokens have it."""
    root: str
    valid_until: str
    security_version: int
    tpm: str
    """Where its TPM is; empty if it has none."""
    tpm_pcr: int | None
    """The PCR in which guests are anchored."""
    code_digest: str
    """Of the code that carries behaviours out: for reference values."""


def platform_facts(directory: Path) -> PlatformFacts:
    """The facts. Raises AttestationError."""
    device = load_device(directory)
    own, *_, root = load_certificates(directory / "chain.pem")
    tpm = read_tpm(directory)
    return PlatformFacts(
        directory=str(directory),
        device=own.subject.rfc4514_string().removeprefix("CN="),
        device_digest=sha384(device.chain[0]).hexdigest(),
        root=root.subject.rfc4514_string().removeprefix("CN="),
        valid_until=own.not_valid_after_utc.date().isoformat(),
        security_version=device.security_version,
        tpm="" if tpm is None else tpm.tcti,
        tpm_pcr=None if tpm is None else tpm.pcr,
        code_digest=code_digest().hex(),
    )
