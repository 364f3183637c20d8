"""A guest's register, anchored in the platform's TPM: what a manager does for it.

The managers of a platform share the PCR, and its log, tpm.log; a lock on the log makes what they do one thing after the
other. An event is written to the log first, and then the PCR is extended: whoever dies in between leaves a record that
the PCR does not know, of something that did not happen, and the next one takes it away. When the machine has been
restarted, the PCR is zero and the log begins anew.

A sealed guest is anchored before it is restored, under the instance that it will have and with the register that its
checkpoint claims: the verifier is shown that, as of a guest that runs. If nothing comes of the restore its record
stays, of an instance that nobody ever is.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memvm.attest.pcr import MAX_LOG, RECORD_SIZE, event_digest, last_register, record_of, replay
from memvm.attest.places import TpmPlace, platform_directory, read_tpm
from memvm.attest.tpm import Tpm, open_device
from memvm.errors import AttestationError, HostError
from memvm.faultpoints import FaultPoint, fire

if TYPE_CHECKING:
    from memvm.attest.anchor import Anchor
    from memvm.machine.machine import Machine

PATIENCE = 10.0
"""Seconds to wait for other managers that use the TPM."""


class Anchoring:
    """The TPM of the platform in a directory, for one guest."""

    def __init__(self, directory: Path, instance: bytes) -> None:
        """Raises AttestationError if the platform has no TPM."""
        self._directory, self._instance = directory, instance
        self._held = _HELD.get(directory)
        self._tcti, self._key, self._pcr = _place(directory) if self._held is None else self._held.place

    def begin(self, register: bytes) -> None:
        """The guest is about to run, with this value of its register. Raises AttestationError, HostError."""
        self._extend(register, begins=True)

    def extend(self, register: bytes) -> None:
        """The guest's register is about to have this value. Raises AttestationError, HostError: then it must not."""
        self._extend(register, begins=False)

    def follow(self, register: bytes) -> None:
        """The guest that began before there was a machine is about to run, with this value of its register.

        The TPM hears of it if restoring the guest changed it. Raises AttestationError, HostError: then it must not run.
        """
        self._extend(register, begins=False, only_if_new=True)

    def _extend(self, register: bytes, *, begins: bool, only_if_new: bool = False) -> None:
        with self._tpm() as tpm, self._log(tpm) as (file, log):
            if not begins and self._register_in(log) == register and only_if_new:
                return
            if len(log) >= MAX_LOG:
                raise AttestationError(
                    f"the log of PCR {self._pcr} is full: nothing can be anchored until the machine is restarted"
                )
            record = record_of(self._instance, register)
            os.pwrite(file, record, len(log))
            fire(FaultPoint.ANCHOR_BEFORE_EXTEND)
            tpm.extend(self._pcr, event_digest(record))

    def quote(self, register: bytes, qualifying: bytes) -> Anchor | None:
        """What the TPM says, if this is the value that the guest's register has there; None if it is changing now.

        Raises AttestationError, HostError.
        """
        from memvm.attest.anchor import Anchor

        certificate = _certificate(self._directory) if self._held is None else self._held.certificate
        with self._tpm() as tpm, self._log(tpm) as (_, log):
            if self._register_in(log) != register:
                return None
            attested, signature = tpm.quote(self._key, self._pcr, qualifying)
        return Anchor(certificate, attested, signature, log)

    def _register_in(self, log: bytes) -> bytes:
        """The value that is anchored. Raises AttestationError if there is none."""
        found = last_register(log, self._instance)
        if found is None:
            raise AttestationError(
                "the TPM was restarted since the guest began: its register is not anchored any more",
                hint="start the guest again, or restore it from a checkpoint",
            )
        return found

    def _tpm(self) -> Tpm:
        return Tpm(self._tcti, -1 if self._held is None else self._held.device)

    @contextmanager
    def _log(self, tpm: Tpm) -> Iterator[tuple[int, bytes]]:
        """The log, locked, and what is in it: that of the PCR as it is."""
        path = self._directory / "tpm.log"
        with _locked(path, -1 if self._held is None else self._held.log) as file:
            try:
                log = _reconciled(os.pread(file, MAX_LOG + RECORD_SIZE, 0), tpm.read(self._pcr), self._pcr)
                os.ftruncate(file, len(log))
                yield file, log
            except OSError as error:
                raise HostError(f"{path}: {error.strerror}") from error


class _Held(NamedTuple):
    """What this process has of a platform's TPM, since it may not open it later."""

    place: TpmPlace
    certificate: bytes
    log: int
    device: int
    """-1 if the TPM is reached in a way that is open to everybody, as a port of this machine's is."""


_HELD: dict[Path, _Held] = {}
_USING_WHAT_IS_HELD = threading.Lock()
"""A lock on a file keeps out nobody who uses the same descriptor."""


def hold_tpm() -> None:
    """Open now what is needed of the platform's TPM, and keep it open.

    For a process that is about to become another user. Raises AttestationError, HostError.
    """
    directory = platform_directory()
    place = _place(directory)
    certificate = _certificate(directory)
    with Tpm(place.tcti):
        pass  # it can be reached, and what that takes has been imported
    device = open_device(place.tcti)
    try:
        log = _open_log(directory / "tpm.log")
    except BaseException:
        if device >= 0:
            os.close(device)
        raise
    _HELD[directory] = _Held(place, certificate, log, device)


def _place(directory: Path) -> TpmPlace:
    place = read_tpm(directory)
    if place is None:
        raise AttestationError(
            f"the platform in {directory} has no TPM", hint="memvm platform init --tpm TCTI, in an empty directory"
        )
    return place


def _certificate(directory: Path) -> bytes:
    """The certificate of the TPM's attestation key, in DER. Raises AttestationError."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from memvm.attest.platform import load_certificates

    [certificate] = load_certificates(directory / "tpm.pem")
    return certificate.public_bytes(Encoding.DER)


def _open_log(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


@contextmanager
def _locked(path: Path, held: int) -> Iterator[int]:
    """The log's descriptor, which nobody else uses meanwhile."""
    if held < 0:
        file = _open_log(path)
        try:
            _lock(file, path)
            yield file
        finally:
            os.close(file)
        return
    with _USING_WHAT_IS_HELD:
        _lock(held, path)
        try:
            yield held
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)


def _lock(file: int, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise AttestationError(f"{path}: another manager has had it for {PATIENCE:g} s") from None
            time.sleep(0.002)
        else:
            return


def _reconciled(log: bytes, value: bytes, pcr: int) -> bytes:
    """The log of a PCR with this value: as it is, without its last record, or none. Raises AttestationError."""
    whole = log[: len(log) // RECORD_SIZE * RECORD_SIZE]
    for found in (whole, whole[:-RECORD_SIZE], b""):
        if replay(found) == value:
            return found
    raise AttestationError(
        f"PCR {pcr} is not what the log says: something else has extended it",
        hint="restart the machine; if it is taken again then, make a platform with another PCR",
    )


def anchor_guest(machine: Machine, directory: Path | None = None) -> None:
    """Anchor the register of a guest that has not run yet. Raises AttestationError, HostError."""
    anchoring = Anchoring(directory or platform_directory(), machine.guest.generation_id)
    anchoring.begin(machine.settings.register.value)
    _adopt(machine, anchoring)


def anchor_restored(machine: Machine, anchoring: Anchoring) -> None:
    """Go on with the anchoring of a guest that began before there was this machine, and has not run yet.

    Raises AttestationError, HostError.
    """
    anchoring.follow(machine.settings.register.value)
    _adopt(machine, anchoring)


def _adopt(machine: Machine, anchoring: Anchoring) -> None:
    machine.settings.anchor = anchoring.extend
    _ANCHORED[machine] = anchoring


def anchoring_of(machine: Machine) -> Anchoring | None:
    """How a guest is anchored, if it is."""
    return _ANCHORED.get(machine)


_ANCHORED: weakref.WeakKeyDictionary[Machine, Anchoring] = weakref.WeakKeyDictionary()
