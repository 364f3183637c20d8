"""The TPM 2.0 of a platform, through tpm2-pytss and the TSS: all that is known of them here.

A connection is opened for each use and closed again, since a TPM without a resource manager serves one at a time. Only
a process that becomes another user, who may not open the device, keeps it open; the kernel's resource manager lets
others use the TPM meanwhile (/dev/tpmrm0; /dev/tpm0 is for one). The attestation key is a persistent object, so that no
use leaves anything in the TPM's few transient slots. It is in the endorsement hierarchy: a key of another one would
have the boot counters of its quotes disguised (Part 1, 36.7).

    /dev/tpmrm0             "device:/dev/tpmrm0", for who may open it (often the group tss)
    a TPM in software       "swtpm:port=2321", or "swtpm:host=...,port=..."
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import compare_digest, token_bytes
from types import TracebackType
from typing import TYPE_CHECKING, Any

from memvm.errors import AttestationError, HostError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

USUAL_TCTI = "device:/dev/tpmrm0"
_PERSISTENT = range(0x81018000, 0x81018100)
"""Where the attestation key is kept: in the owner's handles for endorsement objects, away from the usual ones (TCG
Registry of Reserved TPM 2.0 Handles)."""
_PROOF_SIZE = 32
_ANSWER_HEADER = 10
_MAX_ANSWER = 4096


class Tpm:
    """A connection to a TPM, as a context."""

    def __init__(self, tcti: str, device: int = -1) -> None:
        """`device` is the descriptor of what `open_device` opened before.

        Raises HostError without tpm2-pytss, AttestationError if there is no TPM there.
        """
        os.environ.setdefault("TSS2_LOG", "all+NONE")  # what goes wrong is said here, and once
        try:
            import tpm2_pytss
        except ImportError as error:
            raise HostError(
                f"the TPM cannot be used without tpm2-pytss: {error}",
                hint="pip install '.[tpm]' in memvm's source, with libtss2-dev",
            ) from None
        self._tss = tpm2_pytss
        with _explained(tpm2_pytss, f"the TPM at {tcti!r:.80} cannot be reached"):
            self._esapi = tpm2_pytss.ESAPI(tcti if device < 0 else _over(tpm2_pytss, device))

    def __enter__(self) -> Tpm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._esapi.close()

    def read(self, pcr: int) -> bytes:
        """The value of a PCR in the bank of SHA-384. Raises AttestationError."""
        with _explained(self._tss, f"PCR {pcr} cannot be read"):
            _, _, values = self._esapi.pcr_read(self._selection(pcr))
        if len(values) != 1:
            raise AttestationError(
                "the TPM has no PCRs for SHA-384", hint="tpm2_pcrallocate sha256:all+sha384:all, and restart"
            )
        return bytes(values[0])

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR in the bank of SHA-384. Raises AttestationError."""
        tss = self._tss
        value = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA384, digest=tss.TPMU_HA(sha384=digest))
        with _explained(tss, f"PCR {pcr} cannot be extended"):
            self._esapi.pcr_extend(tss.ESYS_TR.PCR0 + pcr, tss.TPML_DIGEST_VALUES([value]))

    def quote(self, key: int, pcr: int, qualifying: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE, with the key at this handle. Raises AttestationError."""
        with _explained(self._tss, f"PCR {pcr} cannot be quoted"):
            handle = self._esapi.tr_from_tpmpublic(key)
            attested, signature = self._esapi.quote(handle, self._selection(pcr), qualifying)
            return bytes(attested), bytes(signature.marshal())

    def make_attestation_key(self) -> tuple[int, EllipticCurvePublicKey]:
        """A new key that signs only what the TPM itself has made: its handle, and its public part.

        That it is in the same TPM as the endorsement key, the TPM proves before that is believed.
        Raises AttestationError.
        """
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        tss, esapi = self._tss, self._esapi
        with _explained(tss, "the TPM makes no attestation key"):
            endorsement, endorsement_public = self._primary(_endorsement_template(tss))
            try:
                key, public = self._primary(_attestation_template(tss))
                try:
                    self._prove(key, public, endorsement, endorsement_public)
                    handle = self._free_handle()
                    esapi.evict_control(tss.ESYS_TR.OWNER, key, handle)
                finally:
                    esapi.flush_context(key)
            finally:
                esapi.flush_context(endorsement)
        loaded = load_pem_public_key(public.to_pem())
        assert isinstance(loaded, EllipticCurvePublicKey)
        return handle, loaded

    def remove_key(self, handle: int) -> None:
        """Remove an attestation key. Raises AttestationError."""
        with _explained(self._tss, "the attestation key cannot be removed"):
            found = self._esapi.tr_from_tpmpublic(handle)
            self._esapi.evict_control(self._tss.ESYS_TR.OWNER, found, handle)

    def _selection(self, pcr: int) -> Any:
        return self._tss.TPML_PCR_SELECTION.parse(f"sha384:{pcr}")

    def _primary(self, template: Any) -> tuple[Any, Any]:
        made = self._esapi.create_primary(self._tss.TPM2B_SENSITIVE_CREATE(), template, self._tss.ESYS_TR.ENDORSEMENT)
        return made[0], made[1]

    def _prove(self, key: Any, public: Any, endorsement: Any, endorsement_public: Any) -> None:
        """Have the TPM decrypt what only it can, and only if it has this key (Part 1, 24: credential protection)."""
        from tpm2_pytss.utils import make_credential

        tss, esapi, proof = self._tss, self._esapi, token_bytes(_PROOF_SIZE)
        credential, secret = make_credential(endorsement_public, proof, public.get_name())
        plain = tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
        session = esapi.start_auth_session(
            tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.POLICY, plain, tss.TPM2_ALG.SHA256
        )
        try:
            esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            found = esapi.activate_credential(key, endorsement, credential, secret, session2=session)
        finally:
            esapi.flush_context(session)
        if not compare_digest(bytes(found), proof):
            raise AttestationError("the attestation key is not in the TPM that has the endorsement key")

    def _free_handle(self) -> int:
        taken: set[int] = set()
        more, start = True, _PERSISTENT.start
        while more:
            more, found = self._esapi.get_capability(self._tss.TPM2_CAP.HANDLES, start, len(_PERSISTENT))
            handles = [int(handle) for handle in found.data.handles]
            taken.update(handles)
            start = max(handles, default=start) + 1
        free = next((handle for handle in _PERSISTENT if handle not in taken), None)
        if free is None:
            raise AttestationError("the TPM has no handle left for an attestation key", hint="tpm2_evictcontrol")
        return free


def _endorsement_template(tss: Any) -> Any:
    """The TCG's own template for an endorsement key on P-256 (EK Credential Profile, L-2)."""
    from tpm2_pytss.utils import NoSuchIndex, create_ek_template

    def nothing_stored(index: int) -> bytes:
        raise NoSuchIndex(index)

    return create_ek_template("EK-ECC256", nothing_stored)[1]


def _attestation_template(tss: Any) -> Any:
    """ECDSA on P-256 with SHA-256; restricted: it signs what the TPM made, and nothing that it was given.

    It has no password that could be guessed, and is not protected against that: if it were, the TPM would count each
    loss of power for an attempt, and lock it after a few (Part 1, 19.8: non-orderly shutdown).
    """
    bits = tss.TPMA_OBJECT
    attributes = bits.RESTRICTED | bits.SIGN_ENCRYPT | bits.FIXEDTPM | bits.FIXEDPARENT
    attributes |= bits.SENSITIVEDATAORIGIN | bits.USERWITHAUTH | bits.NODA
    template = tss.TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=attributes)
    template.publicArea.unique.ecc.x.buffer = os.urandom(32)  # another key each time
    return template


def open_device(tcti: str) -> int:
    """A descriptor of the device that a TCTI names, for who may not open it later; -1 if it names none.

    Raises AttestationError.
    """
    kind, _, path = tcti.partition(":")
    if kind != "device":
        return -1
    path = path or USUAL_TCTI.partition(":")[2]
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise AttestationError(f"the TPM at {path:.80} cannot be opened: {error.strerror}") from None


def _over(tss: Any, device: int) -> Any:
    """What carries commands and answers over an open device, each whole, and one after the other (tpm(4))."""
    tcti = tss.PyTCTI()
    tcti.do_transmit = lambda command: _write(device, command)
    tcti.do_receive = lambda _timeout: _read_answer(device)
    return tcti


def _write(device: int, command: bytes) -> None:
    """A driver takes a command in one piece, and anything else that can be opened in as many as it likes."""
    while command:
        command = command[os.write(device, command) :]


def _read_answer(device: int) -> bytes:
    """An answer says how long it is, behind its tag of two bytes (Part 1, 18.4). Raises OSError."""
    answer = b""
    while len(answer) < _ANSWER_HEADER or len(answer) < int.from_bytes(answer[2:6], "big"):
        piece = os.read(device, _MAX_ANSWER)
        if not piece:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        answer += piece
    return answer


@contextmanager
def _explained(tss: Any, what: str) -> Iterator[None]:
    try:
        yield
    except tss.TSS2_Exception as error:
        raise AttestationError(
            f"{what}: {error}", hint="is it there, may this user open it, and has nobody else set passwords on it?"
        ) from None
