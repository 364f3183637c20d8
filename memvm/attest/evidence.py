"""Evidence: what a platform signs of one guest, for one verifier, in one exchange.

A COSE_Sign1 message, whose header has the device's certificate chain and whose payload is a map in deterministic CBOR:

    domain    "memvm evidence 1"
    nonce     the verifier's, of this exchange
    audience  whom the evidence is for
    launch    the launch digest; empty if nobody measured
    settings  name -> [value at launch, value now, behaviour]
    register  the run-time register, and `log` its entries
    key       [kind, public key] of the guest: "ed25519", "x25519", or "" with no key
    bound     what else the guest wants said of it: 48 bytes, a digest as a rule, or none
    code      digest of the code that carries behaviours out
    version   the platform's security version
    lineage   identity (drawn at launch), instance (drawn at each start and restore), saves, ancestors as
              [checkpoint id, commit digest, saves], and whether the platform vouches for the last of them
    tpm       only of a guest that is anchored in a TPM: what that says of all the rest (anchor.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha384
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memvm.attest import cbor, cose
from memvm.attest.anchor import Anchor, Anchored, check_anchor
from memvm.attest.platform import Device, device_key_of
from memvm.errors import AttestationError
from memvm.machine.launched import MOST_ANCESTORS, Ancestor
from memvm.machine.register import DIGEST_SIZE, Register
from memvm.machine.settings import Behaviour, Name

if TYPE_CHECKING:
    from cryptography import x509

    from memvm.machine.launched import Launched

DOMAIN = "memvm evidence 1"
MAX_EVIDENCE = 1 << 20
KEY_KINDS = ("", "ed25519", "x25519")
KEY_SIZE = 32


class GuestKey(NamedTuple):
    """A guest's public key; no kind, no key."""

    kind: str = ""
    public: bytes = b""


class AttestedSetting(NamedTuple):
    """A setting, as evidence has it."""

    at_launch: str
    now: str
    behaviour: Behaviour


class Lineage(NamedTuple):
    """Where a guest came from."""

    identity: bytes
    instance: bytes
    saves: int
    ancestors: tuple[Ancestor, ...]
    vouched: bool


class Evidence(NamedTuple):
    """Evidence, checked."""

    nonce: bytes
    audience: str
    launch: bytes
    settings: dict[Name, AttestedSetting]
    register: bytes
    log: tuple[str, ...]
    key: GuestKey
    code: bytes
    version: int
    lineage: Lineage
    bound: bytes = b""
    device: bytes = b""
    """SHA-384 of the device's certificate; not in the payload."""
    anchored: Anchored | None = None
    """What a TPM vouches for, once that has been checked."""

    def to_payload(self) -> bytes:
        """What is signed, but for what a TPM says of it."""
        return cbor.encode(self._to_fields())

    def _to_fields(self) -> dict[str, Any]:
        lineage = self.lineage
        return {
            "domain": DOMAIN,
            "nonce": self.nonce,
            "audience": self.audience,
            "launch": self.launch,
            "settings": {str(name): [s.at_launch, s.now, str(s.behaviour)] for name, s in self.settings.items()},
            "register": self.register,
            "log": list(self.log),
            "key": list(self.key),
            "bound": self.bound,
            "code": self.code,
            "version": self.version,
            "lineage": {
                "identity": lineage.identity,
                "instance": lineage.instance,
                "saves": lineage.saves,
                "ancestors": [list(ancestor) for ancestor in lineage.ancestors],
                "vouched": lineage.vouched,
            },
        }

    def sign(self, device: Device, anchor: Anchor | None = None) -> bytes:
        """The message, with what a TPM said of `to_payload`, if it was asked."""
        fields = self._to_fields() | ({} if anchor is None else {"tpm": anchor.to_fields()})
        return cose.sign(cbor.encode(fields), device.key, {cose.CHAIN: list(device.chain)})


class Described(Protocol):
    """What evidence is of: a guest, or one that is about to be restored."""

    @property
    def launched(self) -> Launched: ...
    @property
    def generation_id(self) -> bytes: ...
    @property
    def bound(self) -> bytes: ...


def describe(
    guest: Described, key: GuestKey, nonce: bytes, audience: str, *, code: bytes, version: int, vouched: bool
) -> Evidence:
    """Evidence of a guest as it is now: settings and register are of one instant; the guest goes on meanwhile."""
    launched = guest.launched
    with launched.settings.lock:
        now = launched.settings.now()
        settings = {
            name: AttestedSetting(launched.settings.at_launch[name].value, now[name].value, now[name].behaviour)
            for name in Name
        }
        register, log = launched.settings.register.value, tuple(launched.settings.register.entries)
    lineage = Lineage(launched.identity, guest.generation_id, launched.saves, tuple(launched.ancestors), vouched)
    return Evidence(nonce, audience, launched.digest, settings, register, log, key, code, version, lineage, guest.bound)


def read_evidence(message: bytes, roots: Sequence[x509.Certificate]) -> Evidence:
    """Evidence whose signature, chain and form are right. Raises AttestationError, whatever the bytes are."""
    if len(message) > MAX_EVIDENCE:
        raise AttestationError(f"evidence of more than {MAX_EVIDENCE} bytes")
    signed = cose.read(message)
    chain = signed.header.get(cose.CHAIN)
    if not isinstance(chain, list) or cose.KEY_ID in signed.header:
        raise AttestationError("evidence without a certificate chain")
    key = device_key_of(chain, roots)
    signed.verify(key)
    fields = cbor.decode(signed.payload)
    is_anchored = isinstance(fields, dict) and "tpm" in fields
    anchor = fields.pop("tpm") if is_anchored else None
    try:
        evidence = _parse(fields)._replace(device=sha384(chain[0]).digest())
    except (ValueError, TypeError, KeyError) as error:
        raise AttestationError(f"evidence that makes no sense: {error}") from None
    if not is_anchored:
        return evidence
    # What was decoded has one encoding: this is what was quoted.
    anchored = check_anchor(
        anchor, cbor.encode(fields), evidence.lineage.instance, evidence.register, device=key, roots=roots
    )
    return evidence._replace(anchored=anchored)


def _parse(fields: Any) -> Evidence:
    wanted = {*Evidence._fields, "domain"} - {"device", "anchored"}
    if not isinstance(fields, dict) or set(fields) != wanted:
        raise ValueError("fields are missing, or there are others")
    if fields["domain"] != DOMAIN:
        raise ValueError("it is of another domain")
    log = tuple(_typed(entry, str) for entry in _typed(fields["log"], list))
    register = _bytes(fields["register"], DIGEST_SIZE)
    if Register(log).value != register:
        raise ValueError("the log is not that of the register")
    settings = _typed(fields["settings"], dict)
    if set(settings) != set(Name):
        raise ValueError("settings are missing, or there are others")
    return Evidence(
        nonce=_typed(fields["nonce"], bytes),
        audience=_typed(fields["audience"], str),
        launch=_bytes(fields["launch"], 0, DIGEST_SIZE),
        settings={Name(name): _setting(setting) for name, setting in settings.items()},
        register=register,
        log=log,
        key=_key(fields["key"]),
        code=_bytes(fields["code"], DIGEST_SIZE),
        version=_count(fields["version"]),
        lineage=_lineage(_typed(fields["lineage"], dict)),
        bound=_bytes(fields["bound"], 0, DIGEST_SIZE),
    )


def _lineage(fields: dict[str, Any]) -> Lineage:
    if set(fields) != set(Lineage._fields):
        raise ValueError("the lineage is not complete")
    ancestors = _typed(fields["ancestors"], list)
    if len(ancestors) > MOST_ANCESTORS:
        raise ValueError("too many ancestors")
    return Lineage(
        _bytes(fields["identity"], 16),
        _bytes(fields["instance"], 16),
        _count(fields["saves"]),
        tuple(_ancestor(ancestor) for ancestor in ancestors),
        _typed(fields["vouched"], bool),
    )


def _ancestor(value: Any) -> Ancestor:
    identity, commit, saves = _typed(value, list)
    return Ancestor(_typed(identity, str), _typed(commit, str), _count(saves))


def _setting(value: Any) -> AttestedSetting:
    at_launch, now, behaviour = _typed(value, list)
    return AttestedSetting(_typed(at_launch, str), _typed(now, str), Behaviour(_typed(behaviour, str)))


def _key(value: Any) -> GuestKey:
    kind, public = _typed(value, list)
    if kind not in KEY_KINDS or not isinstance(public, bytes) or len(public) != (KEY_SIZE if kind else 0):
        raise ValueError("the guest's key is of no kind that is known")
    return GuestKey(kind, public)


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def _bytes(value: Any, *sizes: int) -> bytes:
    if type(value) is not bytes or len(value) not in sizes:
        raise ValueError(f"not {sizes[-1]} bytes")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("not a count")
    return value
