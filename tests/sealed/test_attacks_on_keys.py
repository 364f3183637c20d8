"""Attacks on the way of a checkpoint's key, by who carries request and answer: against the real verifier and keeper."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from memvm.attest import cbor
from memvm.attest.broker import KeptKey, keep_key
from memvm.attest.checkpoint_keys import CheckpointKey, Claim, KeyKeeper, is_vouched_for, launched_by, unwrapped
from memvm.attest.disk_keys import seal, unseal
from memvm.attest.evidence import AttestedSetting, GuestKey, Lineage
from memvm.attest.keyset import keys_from_jwks
from memvm.attest.platform import load_certificates
from memvm.attest.policy import Policy
from memvm.checkpoint.encrypted_records import EncryptedInput
from memvm.checkpoint.encryption import EncryptedHeader
from memvm.checkpoint.file_bytes import PlainInput
from memvm.checkpoint.format import FormatError
from memvm.disk.volume import create, open_volume
from memvm.errors import AttestationError, MemvmError
from memvm.machine.launched import Launched
from memvm.machine.settings import Name, default_settings, locked_settings, sealed_settings
from tests.attest.samples import LAUNCH, Clock, Lab

AUDIENCE = "broker"


class Exchange:
    """A guest's checkpoint, a platform that wants it back, and the keeper of its key."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.private = private = X25519PrivateKey.generate()
        self.denied: set[str] = set()
        self.keeper = KeyKeeper(
            private, lambda: keys_from_jwks(lab.verifier.jwks), AUDIENCE, lambda jti: jti in self.denied
        )
        self.key = CheckpointKey.new(self.keeper.public)
        launched = Launched(locked_settings())
        launched.measure = lambda: LAUNCH
        launched.saves = 3
        self.header = self.key.header(os.urandom(16), launched, lab.device)
        self.claim = Claim(self.header)
        self.jti = ""

    def token(self, header: EncryptedHeader | None = None, audience: str = AUDIENCE, **changes: Any) -> str:
        """The verifier's for this platform, or for what a test makes of it."""
        session = self.lab.verifier.new_session(audience)
        claimed = launched_by(header or self.header)
        claimed.came_from((header or self.header).checkpoint_id, (header or self.header).digest)
        lineage = Lineage(claimed.identity, bytes(16), claimed.saves, tuple(claimed.ancestors), True)
        settings = {
            name: AttestedSetting(setting.value, setting.value, setting.behaviour)
            for name, setting in claimed.settings.at_launch.items()
        }
        good = {"launch": claimed.digest, "lineage": lineage, "key": self.claim.public, "settings": settings}
        outcome = self.lab.verifier.answer(session.id, self.lab.message(session, **(good | changes)))
        self.jti = outcome.jti
        return str(outcome.token)

    def released(self, token: str, change: Callable[[bytes], bytes] = lambda request: request) -> CheckpointKey:
        """The key, if it is released; `change` is what the manager does to the request."""
        return self.claim.make(token, lambda request: self.keeper.release(change(request)))


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    lab = Lab(tmp_path, time.time)
    yield Exchange(lab)
    lab.verifier.close()


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda request: cbor.encode(cbor.decode(request) | fields)


def test_an_attested_platform_gets_the_key(exchange: Exchange) -> None:
    released = exchange.released(exchange.token())
    assert released[1:] == exchange.key[1:]
    assert bytes(released.key.view) == bytes(exchange.key.key.view)


def test_attack_28_key_in_a_traceback_as_its_text(exchange: Exchange) -> None:
    key = bytes(exchange.key.key.view)
    for text in (f"{exchange.key} {exchange.key!r} {exchange.header!r}", f"{exchange.key.key} {exchange.key.key!r}"):
        assert key.hex() not in text
        assert repr(key) not in text


def test_attack_28_key_in_a_traceback(exchange: Exchange, tmp_path: Path) -> None:
    """Whatever goes wrong while somebody has a key in his hands: the whole report of it, with all causes."""
    key, other = bytes(exchange.key.key.view), X25519PrivateKey.generate()
    guest, broker = GuestKey("x25519", other.public_key().public_bytes_raw()), Ed25519PrivateKey.generate()
    source = tmp_path / "file"
    source.write_bytes(exchange.header.pack() + bytes(100))
    create(disk := tmp_path / "disk.img", 1 << 18, b"x", kind="pbkdf2", iterations=1000)

    def wrong_record() -> None:
        records = PlainInput(os.open(source, os.O_RDONLY))
        try:
            EncryptedInput(records, exchange.header, key).pread(1, 0)
        finally:
            records.close()

    def wrong_disk() -> None:
        with open_volume(disk) as volume:
            volume.cipher(key * 2)

    failing: list[Callable[[], object]] = [
        wrong_record,
        lambda: unwrapped(exchange.header, other),
        lambda: exchange.claim.make(exchange.token(), lambda request: key),
        lambda: seal(key, guest._replace(public=bytes(32)), bytes(48), broker),
        lambda: unseal(
            seal(key, guest, bytes(48), broker), other, bytes(48), Ed25519PrivateKey.generate().public_key()
        ),
        lambda: keep_key(tmp_path, "no UUID", KeptKey(key, bytes(48))),
        lambda: keep_key(source, "0b7d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55", KeptKey(key, bytes(48))),
        wrong_disk,
    ]
    for fail in failing:
        with pytest.raises((MemvmError, FormatError)) as raised:
            fail()
        said = "".join(traceback.format_exception(raised.value)) + repr(raised.value)
        for text in (key[:12].hex(), key[-12:].hex(), repr(key[:12])[2:-1], repr(key[-12:])[2:-1]):
            assert text not in said
    assert key.hex()[:20] not in f"{KeptKey(key, bytes(48))}"


def test_attack_30_hpke_ciphertext_replaced_by_the_manager_of_a_checkpoints_key(exchange: Exchange) -> None:
    token = exchange.token()
    other = Exchange.__new__(Exchange)
    other.__dict__.update(exchange.__dict__)
    other.claim = Claim(exchange.header)
    answers: list[bytes] = []

    def keep(request: bytes) -> bytes:
        answers.append(exchange.keeper.release(request))
        return answers[-1]

    exchange.claim.make(token, keep)
    flipped = answers[0][:-1] + bytes([answers[0][-1] ^ 1])
    own = CheckpointKey.new(exchange.claim.public.public).wrapped  # a key of his own choice
    for wrong in (flipped, own, b"", answers[0][:40]):
        with pytest.raises(AttestationError, match="another request, or was changed"):
            exchange.claim.make(token, lambda _request, wrong=wrong: wrong)
    with pytest.raises(AttestationError, match="another request, or was changed"):
        other.claim.make(token, lambda request: answers[0])  # of the same file, for another platform


def test_attack_4_guests_key_swapped_in_a_request(exchange: Exchange) -> None:
    mine = X25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(AttestationError, match="another key than the one that is used"):
        exchange.released(exchange.token(), changed(key=mine))


def test_attack_3_evidence_relayed_to_another_session_for_another_guests_key(exchange: Exchange) -> None:
    another = Exchange(exchange.lab)
    token = exchange.token(another.header)
    with pytest.raises(AttestationError, match="another checkpoint"):
        exchange.released(token)


def test_a_token_of_the_same_guest_for_another_checkpoint(exchange: Exchange) -> None:
    launched = launched_by(exchange.header)
    launched.saves += 1
    younger = exchange.key.header(os.urandom(16), launched, exchange.lab.device)
    with pytest.raises(AttestationError, match="another checkpoint"):
        exchange.released(exchange.token(), changed(header=younger.pack()))


def test_a_token_without_the_platforms_key(exchange: Exchange) -> None:
    with pytest.raises(AttestationError, match="bound to no key"):
        exchange.released(exchange.token(key=GuestKey()))


def test_attack_5_wrong_audience_at_the_keeper(exchange: Exchange) -> None:
    with pytest.raises(AttestationError, match="the token is for"):
        exchange.released(exchange.token(audience="other"))


def test_attack_8_expired_at_the_keeper(tmp_path: Path) -> None:
    exchange = Exchange(Lab(tmp_path, Clock()))  # which is in another year
    with pytest.raises(AttestationError, match=r"in the future|has expired"):
        exchange.released(exchange.token())
    exchange.lab.verifier.close()


def test_a_revoked_token(exchange: Exchange) -> None:
    token = exchange.token()
    exchange.denied.add(exchange.jti)
    with pytest.raises(AttestationError, match="revoked"):
        exchange.released(token)


def test_a_checkpoint_that_somebody_else_made(exchange: Exchange) -> None:
    """He knows the keeper's public key, and takes a good guest's claims: but no platform signed his header."""
    minted = CheckpointKey.new(exchange.keeper.public)
    header = minted.header(os.urandom(16), launched_by(exchange.header), None)
    roots = load_certificates(exchange.lab.directory / "platform" / "root.pem")
    assert is_vouched_for(exchange.header, roots)
    for forged in (header, header._replace(signature=exchange.header.signature), header._replace(signature=b"x")):
        assert not is_vouched_for(forged, roots)
    exchange.claim = Claim(header)
    claimed = launched_by(header)
    claimed.came_from(header.checkpoint_id, header.digest)
    lineage = Lineage(claimed.identity, bytes(16), claimed.saves, tuple(claimed.ancestors), vouched=False)
    with pytest.raises(AttestationError, match="contraindicated"):
        exchange.released(exchange.token(header, lineage=lineage))


def test_attack_11_verifier_exception_when_the_keeper_asks(exchange: Exchange) -> None:
    def fails() -> Any:
        raise AttestationError("the verifier cannot be asked")

    token = exchange.token()
    exchange.keeper = KeyKeeper(exchange.private, fails, AUDIENCE)
    with pytest.raises(AttestationError, match="cannot be asked"):
        exchange.released(token)


@pytest.mark.parametrize("junk", [b"", b"\x00" * 100, bytes(1 << 17), cbor.encode({"domain": "x"}), cbor.encode([1])])
def test_a_request_that_makes_no_sense(exchange: Exchange, junk: bytes) -> None:
    with pytest.raises(AttestationError):
        exchange.keeper.release(junk)


def test_every_byte_of_a_request_counts(exchange: Exchange) -> None:
    token = exchange.token()
    requests: list[bytes] = []
    exchange.claim.make(token, lambda request: requests.append(request) or exchange.keeper.release(request))  # type: ignore[func-returns-value]
    [request] = requests
    for at in range(0, len(request), 37):
        wrong = bytearray(request)
        wrong[at] ^= 0x10
        try:
            answer = exchange.keeper.release(bytes(wrong))
        except AttestationError:
            continue
        with pytest.raises(AttestationError):  # released, but for a request that the platform did not make
            exchange.claim.make(token, lambda _request, answer=answer: answer)


def test_the_settings_of_a_sealed_guest_are_affirmed() -> None:
    policy = Policy()
    for name, setting in {**default_settings(), **sealed_settings(saved=True)}.items():
        if name in (Name.DEBUG, Name.OBSERVERS, Name.CHECKPOINT, Name.CLONING):
            assert policy.verdict(name, setting.value, setting.behaviour) == "affirming"
