"""The key of a sealed guest's checkpoints: how it leaves the platform, and how it comes back.

The platform makes the key at launch, and never shows it. Each encrypted checkpoint has it wrapped (HPKE, RFC 9180) for
the *key keeper*, whose public key was measured into the guest. To restore, a platform makes a key pair that lives as
long as the restore, has itself attested with it as the platform that is about to bring back the guest which the file
claims to have, and asks the keeper to release the key. The keeper believes the token or does not; his answer is the
key, wrapped for that key pair. Whoever carries request and answer (the manager) can read no key, and change nothing.

    request   a map in deterministic CBOR
                domain   "memvm key release 1"
                header   the checkpoint's header (checkpoint/encryption.py)
                key      the public key (X25519) to wrap for; the token confirms it
                token    the verifier's, for the keeper as its audience
    answer    HPKE of the checkpoint key, with the digest of the request as its info

The header's claims are not believed by themselves: its signature says that a platform wrote them, and without the right
ones the file's key comes out wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from memvm.attest import cbor, cose
from memvm.attest.evidence import GuestKey
from memvm.attest.platform import Device, device_key_of
from memvm.attest.tokens import appraisal_of, verify_token, worst_reasons_of
from memvm.checkpoint.encryption import KEY_SIZE, MAX_CLAIMS, EncryptedHeader
from memvm.checkpoint.format import FormatError
from memvm.checkpoint.sections import ParentLink
from memvm.errors import AttestationError, SaveError
from memvm.foreign_json import read_json
from memvm.linux.secret_memory import SecretMemory, overwrite
from memvm.machine.launched import Launched

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DOMAIN = "memvm key release 1"
_WRAPPING = b"memvm checkpoint key 1"
_SIGNATURE_DOMAIN = "memvm encrypted checkpoint 1"
MAX_REQUEST = 56 << 10
MAX_ANSWER = 1 << 10
_LONGEST_REFUSAL = 500
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class KeyRelease(Protocol):
    """The way to a key keeper."""

    def __call__(self, request: bytes) -> bytes:
        """The answer to a request. Raises AttestationError if the keeper says no, or cannot be asked."""


class CheckpointKey(NamedTuple):
    """The key of one guest's checkpoints. Its text shows nothing of it."""

    key: SecretMemory
    keeper: bytes
    wrapped: bytes

    def __repr__(self) -> str:
        return f"CheckpointKey(for {self.keeper.hex()[:16]})"

    @classmethod
    def new(cls, keeper: bytes) -> CheckpointKey:
        """A key for a guest that is being launched."""
        key = SecretMemory.random(KEY_SIZE)
        return cls(key, keeper, _SUITE.encrypt(key.view, X25519PublicKey.from_public_bytes(keeper), _WRAPPING))

    def header(
        self, checkpoint_id: bytes, launched: Launched, device: Device | None, parent: ParentLink | None = None
    ) -> EncryptedHeader:
        """The header of a new file, for which a device vouches, if there is one. Raises SaveError."""
        header = EncryptedHeader(checkpoint_id, self.keeper, claims_of(launched), self.wrapped, parent=parent)
        if len(header.claims) > MAX_CLAIMS:
            raise SaveError("the guest's settings were changed too often for an encrypted checkpoint to say so")
        if device is None:
            return header
        payload = cbor.encode({"domain": _SIGNATURE_DOMAIN, "header": header.signed})
        return header._replace(signature=cose.sign(payload, device.key, {cose.CHAIN: list(device.chain)}))


def claims_of(launched: Launched) -> bytes:
    """What a header says of a guest."""
    return json.dumps(launched.to_fields(), sort_keys=True, separators=(",", ":")).encode("ascii")


def launched_by(header: EncryptedHeader) -> Launched:
    """The guest that a header claims. Raises AttestationError."""
    try:
        return Launched.from_fields(read_json(header.claims))
    except ValueError as error:
        raise AttestationError(f"the encrypted checkpoint's claims make no sense: {error}") from None


def is_vouched_for(header: EncryptedHeader, roots: list[x509.Certificate]) -> bool:
    """Whether a device of one of `roots` wrote a header."""
    try:
        signed = cose.read(header.signature)
        chain = signed.header.get(cose.CHAIN)
        if not isinstance(chain, list):
            return False
        signed.verify(device_key_of(chain, roots))
        return bool(cbor.decode(signed.payload) == {"domain": _SIGNATURE_DOMAIN, "header": header.signed})
    except AttestationError:
        return False  # whoever reads the evidence is told


class Claim:
    """One platform's claim to the key of one checkpoint. It lives as long as the restore."""

    def __init__(self, header: EncryptedHeader) -> None:
        self.header = header
        self._private = X25519PrivateKey.generate()
        self.public = GuestKey("x25519", self._private.public_key().public_bytes_raw())

    def make(self, token: str, release: KeyRelease) -> CheckpointKey:
        """Ask for the key. Raises AttestationError."""
        request = cbor.encode(
            {"domain": DOMAIN, "header": self.header.pack(), "key": self.public.public, "token": token}
        )
        if len(request) > MAX_REQUEST:
            raise AttestationError("the encrypted checkpoint's claims, and the token, are too long for a key keeper")
        answer = release(request)
        try:
            key = _SUITE.decrypt(answer, self._private, sha256(request).digest())
        except (InvalidTag, ValueError):
            raise AttestationError("the key keeper's answer is for another request, or was changed") from None
        if len(key) != KEY_SIZE:
            overwrite(key)
            raise AttestationError("the key keeper's answer is no key")
        return CheckpointKey(SecretMemory.taking(key), self.header.keeper, self.header.wrapped_key)


class Request(NamedTuple):
    """A request, read."""

    header: EncryptedHeader
    key: bytes
    token: str

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """Raises AttestationError, whatever the bytes are."""
        if len(data) > MAX_REQUEST:
            raise AttestationError("a request for a key that is too long")
        fields = cbor.decode(data)
        types = {"domain": str, "header": bytes, "key": bytes, "token": str}
        if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != types:
            raise AttestationError("a request for a key that makes no sense")
        if fields["domain"] != DOMAIN or len(fields["key"]) != KEY_SIZE:
            raise AttestationError("a request for a key that makes no sense")
        try:
            header = EncryptedHeader.unpack(fields["header"])
        except FormatError as error:
            raise AttestationError(f"a request for the key of something else: {error}") from None
        if header.pack() != fields["header"]:
            raise AttestationError("a request for a key, with something behind the header")
        return cls(header, fields["key"], fields["token"])


class KeyKeeper:
    """Releases keys of checkpoints to platforms that were attested. Its methods may be called from any thread."""

    def __init__(
        self,
        private: X25519PrivateKey,
        verifier_keys: Callable[[], Mapping[str, Ed25519PublicKey]],
        audience: str,
        denied: Callable[[str], bool] = lambda jti: False,
    ) -> None:
        """`audience` is what tokens call him; `denied` tells whether a token was revoked."""
        self._private = private
        self._verifier_keys = verifier_keys
        self.audience = audience
        self._denied = denied

    @property
    def public(self) -> bytes:
        """What guests are launched with."""
        return self._private.public_key().public_bytes_raw()

    def require_verifier(self) -> None:
        """Raises AttestationError if the verifier cannot be asked, without whom no key is released."""
        self._verifier_keys()

    def release(self, request: bytes) -> bytes:
        """The answer to a request. Raises AttestationError: then no key is released."""
        asked = Request.unpack(request)
        if asked.header.keeper != self.public:
            raise AttestationError("the checkpoint's key is kept by somebody else")
        key = GuestKey("x25519", asked.key)
        verified = verify_token(asked.token, self._verifier_keys(), self.audience, denied=self._denied, guest_key=key)
        if verified.status not in ("affirming", "warning"):
            why = "; ".join(worst_reasons_of(verified.claims))
            raise AttestationError(
                f"the verifier does not trust the platform that asks: {verified.status}: {why}"[:_LONGEST_REFUSAL]
            )
        _check_claims(launched_by(asked.header), asked.header.checkpoint_id, verified.claims)
        with unwrapped(asked.header, self._private).key as secret:
            try:
                public = X25519PublicKey.from_public_bytes(asked.key)
                return _SUITE.encrypt(secret.view, public, sha256(request).digest())
            except ValueError:  # a point of low order
                raise AttestationError("the platform's key is none that anything can be wrapped for") from None


def unwrapped(header: EncryptedHeader, private: X25519PrivateKey) -> CheckpointKey:
    """The key of a checkpoint, for its keeper. Raises AttestationError."""
    try:
        key = _SUITE.decrypt(header.wrapped_key, private, _WRAPPING)
    except (InvalidTag, ValueError):
        raise AttestationError("the checkpoint's key was not wrapped for this key keeper") from None
    return CheckpointKey(SecretMemory.taking(key), header.keeper, header.wrapped_key)


def _check_claims(launched: Launched, checkpoint_id: bytes, claims: Mapping[str, Any]) -> None:
    """Raises AttestationError unless a token is of the guest, and the checkpoint, that a header claims."""
    own = appraisal_of(claims)
    attested = own.get("ear_verifier_claims", {}).get("memvm") if "ear_verifier_claims" in own else own.get("memvm")
    lineage = attested.get("lineage") if isinstance(attested, dict) else None
    if not isinstance(attested, dict) or not isinstance(lineage, dict):
        raise AttestationError("the token does not say which guest it is for")
    wanted = {
        "launch_digest": launched.digest.hex(),
        "register": launched.settings.register.value.hex(),
    }
    if any(attested.get(name) != value for name, value in wanted.items()):
        raise AttestationError("the token is for another guest than the checkpoint's")
    of_lineage = {"identity": launched.identity.hex(), "checkpoint": checkpoint_id.hex(), "saves": launched.saves}
    if any(lineage.get(name) != value for name, value in of_lineage.items()):
        raise AttestationError("the token is for another checkpoint")
