"""Seals: a platform vouches for a checkpoint that it saved, in a small signed file beside it, FILE.seal.

The seal has the checkpoint's id and the digest of its commit record, which pins the state in the file (launch digest,
settings, register, lineage) and the index. Pages are under the index's checksums, which find accidents: a sealed file
has to be kept where nobody else can write. A guest that was restored from a file without a seal gets none for its own
checkpoints: what nobody vouched for stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.attest import cbor, cose
from memvm.attest.platform import Device, device_key_of
from memvm.errors import AttestationError

if TYPE_CHECKING:
    from cryptography import x509

    from memvm.machine.machine import Machine

DOMAIN = "memvm checkpoint 1"
MAX_SEAL = 1 << 16


def seal_path(checkpoint: Path) -> Path:
    """Where the seal of a checkpoint is."""
    return checkpoint.with_name(checkpoint.name + ".seal")


def seal(checkpoint: Path, checkpoint_id: bytes, commit: bytes, device: Device) -> None:
    """Vouch for a checkpoint. Raises OSError."""
    payload = cbor.encode({"domain": DOMAIN, "id": checkpoint_id, "commit": commit})
    message = cose.sign(payload, device.key, {cose.CHAIN: list(device.chain)})
    seal_path(checkpoint).write_bytes(message)


def check_seal(checkpoint: Path, checkpoint_id: bytes, commit: bytes, roots: Sequence[x509.Certificate]) -> None:
    """Raises AttestationError unless a device of one of `roots` vouches for this checkpoint."""
    path = seal_path(checkpoint)
    try:
        with path.open("rb") as file:
            message = file.read(MAX_SEAL)
    except OSError as error:
        raise AttestationError(f"{path}: {error.strerror}") from None
    signed = cose.read(message)
    chain = signed.header.get(cose.CHAIN)
    if not isinstance(chain, list):
        raise AttestationError(f"{path}: a seal without a certificate chain")
    signed.verify(device_key_of(chain, roots))
    if cbor.decode(signed.payload) != {"domain": DOMAIN, "id": checkpoint_id, "commit": commit}:
        raise AttestationError(f"{path}: the seal is of another checkpoint")


def is_vouched(machine: Machine, roots: Sequence[x509.Certificate]) -> bool:
    """Whether a platform vouches for the checkpoint that a guest came from; also if it came from none."""
    if machine.vouched is not None:
        return machine.vouched
    ancestors = machine.guest.launched.ancestors
    if not ancestors:
        return True
    last = ancestors[-1]
    try:
        check_seal(Path(machine.restored_from), bytes.fromhex(last.checkpoint_id), bytes.fromhex(last.commit), roots)
    except AttestationError:
        return False  # whoever reads the evidence is told
    return True


def seal_saved(machine: Machine, checkpoint: Path) -> bool:
    """Vouch for a checkpoint that was just saved of a guest, if there is a platform here and the guest is vouched for.

    Raises CheckpointError, AttestationError, OSError.
    """
    from memvm.attest.places import platform_directory
    from memvm.attest.platform import load_certificates, load_device
    from memvm.checkpoint.file_reader import CheckpointFile

    directory = platform_directory()
    if not (directory / "device.key").exists() or not is_vouched(machine, load_certificates(directory / "root.pem")):
        return False
    with CheckpointFile.open(checkpoint) as file:
        seal(checkpoint, file.header.checkpoint_id, file.commit_sha256, load_device(directory))
    return True
