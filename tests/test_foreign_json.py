"""What others wrote has one meaning: a key that is there twice is refused by every reader of foreign JSON and CBOR."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message as Headers
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from memvm.attest import cbor, cose
from memvm.attest.asking import fetch
from memvm.attest.base64url import base64url
from memvm.attest.broker_policy import read_broker_policy
from memvm.attest.broker_service import deny_list_of
from memvm.attest.checkpoint_keys import CheckpointKey, KeyKeeper, launched_by
from memvm.attest.key_service import key_release, keys_of
from memvm.attest.keyset import keys_from_jwks
from memvm.attest.policy import read_policy
from memvm.attest.references import References, read_references, sign_references
from memvm.attest.seals import check_seal, seal, seal_path
from memvm.attest.service import Service
from memvm.attest.tokens import TokenFormat, read_unverified, verify_token
from memvm.disk.metadata_reader import read_metadata
from memvm.disk.volume import create, open_volume
from memvm.errors import CheckpointError, DiskError, MemvmError
from memvm.foreign_json import read_json
from memvm.machine.launched import Launched
from memvm.machine.register import Register
from memvm.machine.settings import locked_settings
from memvm.machine.state import GuestState
from memvm.sealed.protocol import Kind, Message
from tests.attest.samples import LAUNCH, Clock, Lab, request_to
from tests.attest.test_broker import Market, request


def doubled(text: str | bytes, name: str = "") -> bytes:
    """JSON whose first member, or the one of this name, is there again, at once behind the first."""
    raw = text.encode() if isinstance(text, str) else text
    fields = json.loads(raw)
    name = name or next(iter(fields))
    member = json.dumps({name: fields[name]})[1:-1]
    rest = json.dumps({key: value for key, value in fields.items() if key != name})[1:-1]
    return f"{{{member},{member}{',' if rest else ''}{rest}}}".encode()


def doubled_cbor(fields: Mapping[Any, Any]) -> bytes:
    """A map in deterministic CBOR, but that its first key is there again, at once behind the first."""
    items = sorted((cbor.encode(key), cbor.encode(value)) for key, value in fields.items())
    assert len(items) < 23
    return bytes([0xA0 + len(items) + 1]) + b"".join(key + value for key, value in [items[0], *items])


def test_doubling_is_what_it_says() -> None:
    assert doubled('{"a": 1, "b": 2}', "b") == b'{"b": 2,"b": 2,"a": 1}'
    assert doubled_cbor({"b": 1, "a": 2}) == b"\xa3\x61a\x02\x61a\x02\x61b\x01"
    assert cbor.encode({"b": 1, "a": 2}) == b"\xa2\x61a\x02\x61b\x01"


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '[{"b":{"a":1,"c":2,"a":3}}]', '{"":0,"":0}', '{"a":1,"\\u0061":2}'])
def test_attack_33_duplicate_keys_in_json(text: str) -> None:
    for raw in (text, text.encode()):
        with pytest.raises(ValueError, match="twice"):
            read_json(raw)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "[" * 100_000, "", "{}{}", b"\xff"])
def test_what_is_no_json_is_refused_in_words(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_json_is_read() -> None:
    assert read_json(b'{"a": [1, {"b": null}], "c": 1.5}') == {"a": [1, {"b": None}], "c": 1.5}


def signed(lab: Lab, head: bytes, body: bytes) -> str:
    """A token of these two, with the verifier's signature."""
    text = f"{base64url(head)}.{base64url(body)}"
    return f"{text}.{base64url(lab.verifier._key.sign(text.encode()))}"


@pytest.mark.parametrize("name", ["aud", "exp", "submods", "cnf", "jti"])
def test_attack_33_duplicate_keys_in_json_of_a_token(lab: Lab, name: str) -> None:
    session = lab.verifier.new_session("broker")
    token = lab.verifier.answer(session.id, lab.message(session)).token
    assert isinstance(token, str)
    head, body = (base64.urlsafe_b64decode(part + "==") for part in token.split(".")[:2])
    keys = keys_from_jwks(lab.verifier.jwks)
    assert verify_token(signed(lab, head, body), keys, "broker", now=lab.clock()).status == "warning"
    for forged in (signed(lab, head, doubled(body, name)), signed(lab, doubled(head), body)):
        with pytest.raises(MemvmError, match="twice"):
            verify_token(forged, keys, "broker", now=lab.clock())
        with pytest.raises(MemvmError, match="twice"):
            read_unverified(forged)


def test_attack_33_duplicate_keys_in_json_of_requests(lab: Lab) -> None:
    """To the verifier, and to the broker."""
    path, body = "/challenge-response/v1/newSession", b'{"audience":"broker"}'
    assert request_to(Service(lab.verifier), "POST", path, body)[0] == 201
    status, answer = request_to(Service(lab.verifier), "POST", path, doubled(body))
    assert (status, "twice" in answer["error"]) == (400, True)
    market = Market(lab)
    try:
        [disk, _] = market.policy.disks
        for path, fields in (("/challenges", {"disk": disk}), ("/keys", {"disk": disk, "nonce": "AAAA", "token": "x"})):
            body = json.dumps(fields).encode()
            assert request(market, "POST", path, body)[0] in (201, 403)
            status, answer = request(market, "POST", path, doubled(body))
            assert (status, "twice" in answer["error"]) == (400, True)
    finally:
        market.broker.close()


def answering(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Whoever is asked over HTTP answers with this."""

    class Answer(io.BytesIO):
        headers = Headers()

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", lambda *_, **__: Answer(body))


def test_attack_33_duplicate_keys_in_json_of_answers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a verifier, its keys, its deny list, and a key keeper."""
    url, market = "http://127.0.0.1:1", Market(lab)
    market.broker.close()
    asked: list[tuple[dict[str, Any], Callable[[], object]]] = [
        ({"nonce": "AAAA", "audience": "x"}, lambda: fetch(url, "")),
        (lab.verifier.jwks, keys_of(url)),
        ({"denied": []}, deny_list_of(market.policy)),
        ({"answer": "00"}, lambda: key_release(url)(b"request")),
    ]
    for fields, ask in asked:
        good = json.dumps(fields).encode()
        answering(monkeypatch, good)
        ask()
        answering(monkeypatch, doubled(good))
        with pytest.raises(MemvmError, match="makes no sense"):
            ask()


def test_attack_33_duplicate_keys_in_json_of_reference_values() -> None:
    """In the envelope, and in what is signed."""
    key = Ed25519PrivateKey.generate()
    good = sign_references(References({LAUNCH: "server"}, frozenset(), 1), key)
    envelope = json.loads(good)
    payload = doubled(base64.b64decode(envelope["payload"]))
    kind = envelope["payloadType"].encode()
    to_sign = b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload))
    inner = {"sig": base64.b64encode(key.sign(to_sign)).decode()}
    inside = envelope | {"payload": base64.b64encode(payload).decode(), "signatures": [inner]}
    read_references(good, [key.public_key()])
    for forged in (doubled(good), json.dumps(inside)):
        with pytest.raises(MemvmError, match="twice"):
            read_references(forged, [key.public_key()])


def test_attack_33_duplicate_keys_in_json_of_a_disks_metadata(tmp_path: Path) -> None:
    create(path := tmp_path / "disk.img", 1 << 18, b"x", kind="pbkdf2", iterations=1000)
    with open_volume(path) as volume:
        good, size = volume.header.json, volume.header.size
    read_metadata(good, size, "here")
    forged = good.replace(b'"sector_size":', b'"sector_size":512,"sector_size":')
    assert forged != good
    for wrong in (doubled(good, "segments"), forged):
        with pytest.raises(DiskError, match="twice"):
            read_metadata(wrong, size, "here")


@pytest.mark.parametrize("kind", list(Kind))
def test_attack_33_duplicate_keys_in_json_between_manager_and_platform(kind: Kind) -> None:
    with pytest.raises(MemvmError, match="twice"):
        Message.unpack(struct.pack("<4sBBHI", b"mvS1", kind, 0, 0, 1) + b'{"name":"x","name":"x"}', 0)


def test_attack_33_duplicate_keys_in_json_of_a_checkpoint() -> None:
    """In the claims of an encrypted one, in a state, and in an entry of the register's log."""
    key = CheckpointKey.new(X25519PrivateKey.generate().public_key().public_bytes_raw())
    launched = Launched(locked_settings())
    launched.measure = lambda: LAUNCH
    header = key.header(os.urandom(16), launched, None)
    assert launched_by(header).to_fields() == launched.to_fields()
    with pytest.raises(MemvmError, match="twice"):
        launched_by(header._replace(claims=doubled(header.claims, "saves")))
    with pytest.raises(CheckpointError, match="twice"):
        GuestState.from_json(b'{"threads":[],"threads":[]}', 0, 0, "here")
    Register(['{"event":"x"}'])
    with pytest.raises(ValueError, match="not canonical"):
        Register(['{"event":"x","event":"x"}'])


def test_attack_33_duplicate_keys_in_a_policy(tmp_path: Path) -> None:
    """They are TOML, in which that is an error by itself."""
    path = tmp_path / "policy.toml"
    for text, read in (('[policy]\nid = "x"\n', read_policy), ('[broker]\nidentity = "x"\n', read_broker_policy)):
        path.write_text(text + text.splitlines()[1] + "\n")
        with pytest.raises(MemvmError, match="overwrite"):
            read(path)


def test_attack_33_duplicate_keys_in_cbor_of_evidence(lab: Lab) -> None:
    """In the payload, in its settings, and in the header of the message."""
    session = lab.verifier.new_session("broker")
    good = cose.read(lab.message(session))
    fields = cbor.decode(good.payload)
    settings = cbor.encode(fields["settings"])
    inside = good.payload.replace(settings, doubled_cbor(fields["settings"]))
    assert inside != good.payload

    def refused(message: bytes) -> None:
        session = lab.verifier.new_session("broker")
        with pytest.raises(MemvmError, match="keys twice"):
            lab.verifier.answer(session.id, message)

    for payload in (doubled_cbor(fields), inside):
        refused(cose.sign(payload, lab.device.key, {cose.CHAIN: list(lab.device.chain)}))
    protected = doubled_cbor(cbor.decode(good.protected))
    signature = lab.device.key.sign(cbor.encode(["Signature1", protected, b"", good.payload]))
    refused(b"\xd2" + cbor.encode([protected, {}, good.payload, signature]))


def test_attack_33_duplicate_keys_in_cbor_of_a_token(lab: Lab) -> None:
    session = lab.verifier.new_session("broker", TokenFormat.CWT)
    token = lab.verifier.answer(session.id, lab.message(session)).token
    assert isinstance(token, bytes)
    read = cose.read(token)
    forged = cose.sign(doubled_cbor(cbor.decode(read.payload)), lab.verifier._key, {cose.KEY_ID: read.header[4]})
    with pytest.raises(MemvmError, match="keys twice"):
        verify_token(forged, keys_from_jwks(lab.verifier.jwks), "broker", now=lab.clock())


def test_attack_33_duplicate_keys_in_cbor_of_requests_and_seals(tmp_path: Path) -> None:
    """Of a revocation, of a request to a key keeper, and of a checkpoint's seal."""
    lab = Lab(tmp_path, Clock())
    chain = {cose.CHAIN: list(lab.device.chain)}
    revocation = doubled_cbor({"domain": "memvm revocation 1", "jti": "x", "reason": "x"})
    with pytest.raises(MemvmError, match="keys twice"):
        lab.verifier.revoke(cose.sign(revocation, lab.device.key, chain))
    keeper = KeyKeeper(X25519PrivateKey.generate(), dict, "keeper")
    with pytest.raises(MemvmError, match="keys twice"):
        keeper.release(doubled_cbor({"domain": "memvm key release 1", "header": b"", "key": bytes(32), "token": ""}))
    checkpoint = tmp_path / "x.ckpt"
    seal(checkpoint, b"id", b"commit", lab.device)
    check_seal(checkpoint, b"id", b"commit", lab.verifier._roots)
    payload = doubled_cbor(cbor.decode(cose.read(seal_path(checkpoint).read_bytes()).payload))
    seal_path(checkpoint).write_bytes(cose.sign(payload, lab.device.key, chain))
    with pytest.raises(MemvmError, match="keys twice"):
        check_seal(checkpoint, b"id", b"commit", lab.verifier._roots)
    lab.verifier.close()


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    lab = Lab(tmp_path, Clock())
    yield lab
    lab.verifier.close()
