"""The key broker: who gets a disk's key, and every way not to get one."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from memvm.attest import cbor, cose
from memvm.attest.broker import Broker, KeptKey, broker_key, keep_key, revoke_key
from memvm.attest.broker_policy import BrokerPolicy, DiskPolicy, read_broker_policy
from memvm.attest.broker_service import BrokerService
from memvm.attest.disk_keys import SealedKey, binding, seal, unseal
from memvm.attest.evidence import GuestKey, Lineage
from memvm.attest.tokens import TokenFormat, jwk
from memvm.errors import AttestationError
from memvm.machine.launched import Ancestor
from tests.attest.samples import Clock, Lab, request_to

DISK, OTHER = "0b7d1a1e-53a1-4b9a-9d8c-2f4f3f0f6a55", "11111111-2222-4333-8444-555555555555"
VOLUME_KEY, HEADER = bytes(range(64)), bytes([7]) * 48


class Worker:
    """A guest as the broker sees it: a key pair, and what it binds together."""

    def __init__(self, lineage: Lineage | None = None) -> None:
        self.secret = X25519PrivateKey.generate()
        self.key = GuestKey("x25519", self.secret.public_key().public_bytes_raw())
        self.lineage = lineage or Lineage(os.urandom(16), os.urandom(16), 0, (), True)

    def binding(self, nonce: bytes, identity: str = "broker", disk: str = DISK, header: bytes = HEADER) -> bytes:
        return binding(identity, nonce, disk, header, self.key.public)


class Market:
    """A verifier, a broker that believes it, and what they have denied."""

    def __init__(self, lab: Lab, **disk: Any) -> None:
        self.lab = lab
        policy = BrokerPolicy(
            identity="broker",
            verifier="http://127.0.0.1:1",
            verifier_keys=(lab.directory / "state" / "verifier.pub",),
            disks={DISK: DiskPolicy(("server",), **disk), OTHER: DiskPolicy(("other",))},
        )
        self.directory = lab.directory / "broker"
        self.key = broker_key(self.directory)
        keep_key(self.directory, DISK, KeptKey(VOLUME_KEY, HEADER))
        self.policy = policy
        self.broker = Broker(policy, self.directory, self.denied, lab.clock)

    def denied(self) -> frozenset[str]:
        return self.lab.verifier.deny_list

    def revoke(self, token: str) -> None:
        """As the platform has its tokens revoked."""
        jti = jwt.decode(token, options={"verify_signature": False})["jti"]
        device = self.lab.device
        payload = cbor.encode({"domain": "memvm revocation 1", "jti": jti, "reason": "debug was switched on"})
        self.lab.verifier.revoke(cose.sign(payload, device.key, {cose.CHAIN: list(device.chain)}))

    def token(self, worker: Worker, bound: bytes, audience: str = "broker", **changes: Any) -> str:
        session = self.lab.verifier.new_session(audience, changes.pop("kind", TokenFormat.IETF))
        given = {"key": worker.key, "bound": bound, "lineage": worker.lineage} | changes
        token = self.lab.verifier.answer(session.id, self.lab.message(session, **given)).token
        return token if isinstance(token, str) else base64.b64encode(token).decode()

    def ask(self, worker: Worker) -> bytes:
        """A whole exchange: the disk's key."""
        nonce = self.broker.challenge(DISK).nonce
        answer = self.broker.answer(DISK, nonce, self.token(worker, worker.binding(nonce)))
        return unseal(answer, worker.secret, worker.binding(nonce), self.key.public_key())


@pytest.fixture
def market(lab: Lab) -> Any:
    market = Market(lab)
    yield market
    market.broker.close()


def test_a_guest_that_is_attested_gets_the_key(market: Market) -> None:
    worker = Worker()
    assert market.ask(worker) == VOLUME_KEY
    assert market.ask(worker) == VOLUME_KEY  # the same one, again
    log = [json.loads(line) for line in (market.directory / "log.jsonl").read_text().splitlines()]
    assert [entry["what"] for entry in log] == ["given", "given"]
    assert log[0]["program"] == "server"
    for path in market.directory.rglob("*"):
        if path.is_file() and path.parent.name != "keys":
            assert VOLUME_KEY.hex().encode() not in path.read_bytes()
    assert (market.directory / "keys" / f"{DISK}.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", list(TokenFormat))
def test_tokens_of_every_format_will_do(market: Market, kind: TokenFormat) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    answer = market.broker.answer(DISK, nonce, market.token(worker, worker.binding(nonce), kind=kind))
    assert unseal(answer, worker.secret, worker.binding(nonce), market.key.public_key()) == VOLUME_KEY


def refused(market: Market, reason: str, disk: str, nonce: bytes, token: str) -> None:
    with pytest.raises(AttestationError, match=reason):
        market.broker.answer(disk, nonce, token)
    last = json.loads((market.directory / "log.jsonl").read_text().splitlines()[-1])
    assert last["what"] == "refused"


def test_attack_1_nonce_replay_at_the_broker(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    token = market.token(worker, worker.binding(nonce))
    market.broker.answer(DISK, nonce, token)
    refused(market, "no such exchange", DISK, nonce, token)
    refused(market, "not of this exchange", DISK, market.broker.challenge(DISK).nonce, token)


def test_attack_2_stale_challenge_of_the_broker(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    token = market.token(worker, worker.binding(nonce))
    clock = market.lab.clock
    assert isinstance(clock, Clock)
    clock.now += market.policy.nonce_lifetime + 1
    refused(market, "exchange has expired", DISK, nonce, token)


def test_attack_3_evidence_relayed_to_another_session_of_the_broker(market: Market) -> None:
    """Of the same disk, and of another one."""
    worker, first, second = Worker(), market.broker.challenge(DISK).nonce, market.broker.challenge(DISK).nonce
    refused(market, "not of this exchange", DISK, second, market.token(worker, worker.binding(first)))
    other = market.broker.challenge(OTHER).nonce
    refused(market, "no such exchange", DISK, other, market.token(worker, worker.binding(other)))


def test_attack_4_guests_key_swapped_for_the_managers(market: Market) -> None:
    """The manager names a key of its own in the evidence of a guest that bound its own key, or the other way round."""
    worker, manager, nonce = Worker(), Worker(), market.broker.challenge(DISK).nonce
    refused(market, "not of this exchange", DISK, nonce, market.token(manager, worker.binding(nonce)))
    nonce = market.broker.challenge(DISK).nonce
    refused(market, "not of this exchange", DISK, nonce, market.token(worker, manager.binding(nonce)))


def test_attack_10_validated_key_is_not_the_used_key_of_the_broker(market: Market) -> None:
    """What was attested can open the answer, and nobody else: the manager asks with the worker's own token."""
    worker, manager, nonce = Worker(), Worker(), market.broker.challenge(DISK).nonce
    answer = market.broker.answer(DISK, nonce, market.token(worker, worker.binding(nonce)))
    with pytest.raises(AttestationError, match="cannot be decrypted"):
        unseal(answer, manager.secret, worker.binding(nonce), market.key.public_key())
    assert unseal(answer, worker.secret, worker.binding(nonce), market.key.public_key()) == VOLUME_KEY


def refuses_binding(market: Market, **changes: Any) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    bound = worker.binding(nonce, **changes)
    refused(market, "not of this exchange", DISK, nonce, market.token(worker, bound))


def test_attack_5_wrong_broker_is_bound(market: Market) -> None:
    refuses_binding(market, identity="another broker")


def test_attack_20_foreign_keyslot_added_to_the_header_that_is_bound(market: Market) -> None:
    refuses_binding(market, header=bytes(48))


def test_attack_22_disks_spliced_another_one_is_bound(market: Market) -> None:
    refuses_binding(market, disk=OTHER)


def test_attack_5_wrong_audience_at_the_broker(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    token = market.token(worker, worker.binding(nonce), audience="other")
    refused(market, "for 'other', not for 'broker'", DISK, nonce, token)


def refuses_changed(market: Market, change: Callable[[str, dict[str, Any]], str]) -> None:
    """The broker is shown what `change` makes of a good token and its claims."""
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    good = market.token(worker, worker.binding(nonce))
    claims = jwt.decode(good, options={"verify_signature": False})
    refused(market, "no token that can be believed|signature is wrong", DISK, nonce, change(good, claims))


def test_attack_6_alg_none_at_the_broker(market: Market) -> None:
    refuses_changed(market, lambda good, claims: jwt.encode(claims, None, algorithm="none"))  # type: ignore[arg-type]
    refuses_changed(market, lambda good, claims: good[:-4] + "AAAA")


def key_id_of(lab: Lab) -> str:
    return str(lab.verifier.jwks["keys"][0]["kid"])


def test_attack_6_hs256_with_the_public_key_at_the_broker(market: Market) -> None:
    public = market.lab.verifier._key.public_key().public_bytes_raw()
    for key_id in ({}, {"kid": key_id_of(market.lab)}):

        def change(good: str, claims: dict[str, Any], head: dict[str, Any] = key_id) -> str:
            return jwt.encode(claims, public, "HS256", head)

        refuses_changed(market, change)


def test_attack_7_attackers_jwk_header_at_the_broker(market: Market) -> None:
    mine = Ed25519PrivateKey.generate()
    headers = {"jwk": jwk(mine.public_key())}
    refuses_changed(market, lambda good, claims: jwt.encode(claims, mine, algorithm="EdDSA", headers=headers))
    refuses_changed(market, lambda good, claims: jwt.encode(claims, mine, "EdDSA", jwt.get_unverified_header(good)))


def test_attack_8_expired_at_the_broker(market: Market) -> None:
    worker, clock = Worker(), market.lab.clock
    assert isinstance(clock, Clock)
    nonce = os.urandom(32)
    token = market.token(worker, worker.binding(nonce))
    clock.now += market.lab.policy.token_lifetime + 60
    refused(market, "token has expired", DISK, market.broker.challenge(DISK).nonce, token)


def test_a_token_that_was_revoked(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    token = market.token(worker, worker.binding(nonce))
    market.revoke(token)
    refused(market, "has been revoked", DISK, nonce, token)


@pytest.mark.parametrize(
    ("error", "status"),
    [(AttestationError("the verifier cannot be asked"), 403), (RuntimeError("a bug"), 500)],
    ids=str,
)
def test_attack_11_verifier_exception_when_the_broker_asks(market: Market, error: Exception, status: int) -> None:
    """No key, and no second try with the same nonce."""

    def down() -> set[str]:
        raise error

    broker = Broker(market.policy, market.directory, down, market.lab.clock)
    worker, nonce = Worker(), broker.challenge(DISK).nonce
    asked = {"disk": DISK, "nonce": base64.b64encode(nonce).decode()}
    asked["token"] = market.token(worker, worker.binding(nonce))
    got, answer = request_to(BrokerService(broker), "POST", "/keys", json.dumps(asked).encode())
    assert (got, set(answer)) == (status, {"error"})
    with pytest.raises(AttestationError, match="no such exchange"):
        broker.answer(DISK, nonce, asked["token"])
    broker.close()
    assert '"given"' not in (market.directory / "log.jsonl").read_text()


def test_attack_12_program_replaced_by_another_one(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    token = market.token(worker, worker.binding(nonce), launch=bytes(48))
    refused(market, "contraindicated, which is not enough for this disk: .*no known program", DISK, nonce, token)
    lenient = DiskPolicy(("another",), ("warning", "contraindicated"))
    broker = Broker(market.policy._replace(disks={DISK: lenient}), market.directory, market.denied, market.lab.clock)
    nonce = broker.challenge(DISK).nonce
    with pytest.raises(AttestationError, match="'server', to which this disk does not belong"):
        broker.answer(DISK, nonce, market.token(worker, worker.binding(nonce)))
    broker.close()


def test_attack_26_two_clones_of_one_checkpoint_at_the_broker(lab: Lab) -> None:
    """The verifier is lenient here, so that the broker is the one who notices."""
    ancestors = (Ancestor("checkpoint", "commit", 1),)
    identity = os.urandom(16)
    first, second = (Worker(Lineage(identity, os.urandom(16), 1, ancestors, True)) for _ in range(2))
    lab.verifier.close()
    lab.policy = lab.policy._replace(fork="warning", rollback="warning")
    lab.restarted()
    for allowed in (False, True):
        market = Market(lab, allows_second_instance=allowed)
        assert market.ask(first) == VOLUME_KEY
        market.broker.close()
        again = Market(lab, allows_second_instance=allowed)  # it remembers
        if allowed:
            assert again.ask(second) == VOLUME_KEY
        else:
            with pytest.raises(AttestationError, match="the same checkpoint has the disk's key: this is a second one"):
                again.ask(second)
            assert again.ask(first) == VOLUME_KEY
        again.broker.close()


class Given(NamedTuple):
    """A worker, what it bound, and what the broker gave it."""

    worker: Worker
    bound: bytes
    answer: SealedKey

    def refused(self, market: Market, answer: SealedKey, why: str = "not from the broker", bound: bytes = b"") -> None:
        """The worker takes this for no answer."""
        with pytest.raises(AttestationError, match=why):
            unseal(answer, self.worker.secret, bound or self.bound, market.key.public_key())


@pytest.fixture
def given(market: Market) -> Given:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    bound = worker.binding(nonce)
    given = Given(worker, bound, market.broker.answer(DISK, nonce, market.token(worker, bound)))
    assert unseal(given.answer, worker.secret, bound, market.key.public_key()) == VOLUME_KEY
    return given


def test_attack_30_hpke_ciphertext_replaced_by_the_manager(market: Market, given: Given) -> None:
    """By one with a key of its own, by a part, by the one of an earlier exchange, and by the one for another disk."""
    answer, own = given.answer, seal(bytes(64), given.worker.key, given.bound, Ed25519PrivateKey.generate())
    flipped = answer.sealed[:-1] + bytes([answer.sealed[-1] ^ 1])
    for sealed in (own.sealed, flipped, answer.sealed[:-1], b""):
        given.refused(market, SealedKey(sealed, answer.signature))
    nonce = market.broker.challenge(DISK).nonce
    later = given.worker.binding(nonce)
    given.refused(market, answer, bound=later)
    given.refused(market, answer, bound=given.worker.binding(nonce, disk=OTHER))
    # Also where the broker itself signed it: it is opened for what was bound, and for nothing else.
    given.refused(market, seal(VOLUME_KEY, given.worker.key, later, market.key))
    forged = SealedKey(own.sealed, seal(bytes(64), given.worker.key, given.bound, market.key).signature)
    given.refused(market, forged)


def test_attack_31_false_broker_with_attackers_disk_and_key(market: Market, given: Given) -> None:
    """It knows everything that is bound, and has a key of its own to sign with: that is not the one of the launch."""
    attackers = seal(bytes(63) + b"m", given.worker.key, given.bound, Ed25519PrivateKey.generate())
    given.refused(market, attackers)
    given.refused(market, SealedKey(given.answer.sealed, attackers.signature))


def test_a_revoked_disk_and_a_strange_one(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    token = market.token(worker, worker.binding(nonce))
    revoke_key(market.directory, DISK)
    refused(market, "key has been revoked", DISK, nonce, token)
    with pytest.raises(AttestationError, match="has been revoked"):
        market.broker.challenge(DISK)
    assert VOLUME_KEY.hex().encode() not in b"".join(p.read_bytes() for p in market.directory.rglob("*.json"))
    for strange in ("", "../keys", "22222222-2222-4333-8444-555555555555"):
        with pytest.raises(AttestationError, match="no such disk"):
            market.broker.challenge(strange)
    for strange in ("", "../broker", DISK.upper()):
        with pytest.raises(AttestationError, match="no UUID"):
            revoke_key(market.directory, strange)


def test_a_guest_without_a_key_to_encrypt_to(market: Market) -> None:
    worker, nonce = Worker(), market.broker.challenge(DISK).nonce
    worker.key = GuestKey("ed25519", worker.key.public)
    refused(market, "has to be of X25519", DISK, nonce, market.token(worker, worker.binding(nonce)))
    worker.key, nonce = GuestKey("x25519", bytes(32)), market.broker.challenge(DISK).nonce  # a point of small order
    refused(market, "can be encrypted for", DISK, nonce, market.token(worker, worker.binding(nonce)))


def request(market: Market, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """A request to the service."""
    return request_to(BrokerService(market.broker), method, path, body)


def test_over_http(market: Market) -> None:
    worker = Worker()
    assert request(market, "GET", "/health", b"") == (200, {"status": "ready"})
    status, challenge = request(market, "POST", "/challenges", json.dumps({"disk": DISK}).encode())
    assert (status, challenge["identity"]) == (201, "broker")
    bound = worker.binding(base64.b64decode(challenge["nonce"]))
    asked = {"disk": DISK, "nonce": challenge["nonce"], "token": market.token(worker, bound)}
    status, answer = request(market, "POST", "/keys", json.dumps(asked).encode())
    assert status == 200
    given = SealedKey(base64.b64decode(answer["sealed"]), base64.b64decode(answer["signature"]))
    assert unseal(given, worker.secret, bound, market.key.public_key()) == VOLUME_KEY
    status, answer = request(market, "POST", "/keys", json.dumps(asked).encode())
    assert (status, "no such exchange" in answer["error"]) == (403, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/nothing", b"", 404),
        ("/challenges", b"", 400),
        ("/challenges", b"[" * 9000, 400),
        ("/challenges", b'{"disk": 1}', 400),
        ("/challenges", b'{"disk": "a", "disk": "b"}', 400),
        ("/challenges", b'{"disk": "a"}', 403),
        ("/keys", b'{"disk": "a", "nonce": "?", "token": ""}', 400),
        ("/keys", b'{"disk": "a", "nonce": "", "token": "\xc3\xa9."}', 403),
        ("/keys", bytes(1 << 18), 413),
    ],
)
def test_what_is_wrong_is_4xx(market: Market, path: str, body: bytes, status: int) -> None:
    got, answer = request(market, "POST", path, body)
    assert got == status
    assert answer["error"]


def test_a_policy_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    good = f"""
[broker]
identity = "lab"
verifier = "http://127.0.0.1:8080"
verifier-keys = ["v.pub"]
[disks.{DISK}]
programs = ["worker"]
second-instance = "allow"
"""
    path.write_text(good)
    policy = read_broker_policy(path)
    assert policy.disks == {DISK: DiskPolicy(("worker",), ("affirming", "warning"), True)}
    assert policy.verifier_keys == (tmp_path / "v.pub",)
    for wrong in (
        good.replace('"allow"', '"perhaps"'),
        good.replace('["v.pub"]', "[]"),
        good.replace("programs", "program"),
        good.replace(DISK, "abc"),
        good.replace("http://", ""),
        good.replace('["worker"]', '"worker"'),
        good.replace('"lab"', f'"{"x" * 200}"'),
        good + '\n[settings]\nx = "y"',
        "[broker",
        "",
    ):
        path.write_text(wrong)
        with pytest.raises(AttestationError, match="makes no sense"):
            read_broker_policy(path)
