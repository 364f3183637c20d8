"""How a platform comes to have a TPM: a key that is made in it, and a certificate by the platform's root.

The certificate binds the key to the platform's device: a verifier takes no quote of another TPM for the evidence of
this device, nor the other way round. That the key is one of a TPM, and signs only what the TPM has made itself, is the
root's to find out before it signs: here the TPM proves it to the test root, which believes in the TPM it is told of.
"""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from memvm.attest.anchor import key_digest
from memvm.attest.certificates import make_certificate
from memvm.attest.key_files import load_private, write_new
from memvm.attest.pcr import PCRS
from memvm.attest.platform import load_certificates, load_device
from memvm.attest.tpm import Tpm
from memvm.errors import AttestationError, HostError, UsageError
from memvm.machine.register import DIGEST_SIZE


def check_tpm(tcti: str, pcr: int) -> None:
    """Raises UsageError, AttestationError or HostError if a platform cannot have this TPM and PCR."""
    if pcr not in PCRS:
        raise UsageError(
            f"PCR {pcr} can be reset by anybody, and proves nothing", hint=f"one of {PCRS.start} to {PCRS.stop - 1}"
        )
    with Tpm(tcti) as tpm:
        if tpm.read(pcr) != bytes(DIGEST_SIZE):
            raise AttestationError(
                f"PCR {pcr} has been extended by something else since boot", hint="--tpm-pcr N takes another one"
            )


def register_tpm(directory: Path, tcti: str, pcr: int) -> None:
    """Make an attestation key in a TPM, and have the test root of a platform vouch for it.

    Raises AttestationError, HostError.
    """
    [root] = load_certificates(directory / "root.pem")
    signer = load_private(directory / "root.key")
    device = load_device(directory).key.public_key()
    with Tpm(tcti) as tpm:
        key, public = tpm.make_attestation_key()
    certificate = make_certificate("memvm TPM attestation key", public, root, signer, serial_number=key_digest(device))
    try:
        write_new(directory / "tpm.pem", certificate.public_bytes(Encoding.PEM))
        write_new(directory / "tpm.json", json.dumps({"tcti": tcti, "key": key, "pcr": pcr}).encode())
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error
