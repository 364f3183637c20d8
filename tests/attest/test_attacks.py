"""Attacks on evidence, nonces, keys, tokens, configuration and log, by who sends them to a verifier: all fail.

tests/test_list_of_attacks.py has the list of all attacks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memvm
from memvm.attest import cbor, code, cose, verifier
from memvm.attest.appraisal import Appraisal, Tier
from memvm.attest.base64url import base64url
from memvm.attest.certificates import make_certificate
from memvm.attest.evidence import GuestKey, Lineage, read_evidence
from memvm.attest.key_files import load_private, public_pem
from memvm.attest.keyset import keys_from_jwks
from memvm.attest.platform import (
    Device,
    device_key_of,
    load_certificates,
    load_device,
    make_platform,
)
from memvm.attest.references import References, read_references, sign_references
from memvm.attest.service import Service
from memvm.attest.tokens import TokenFormat, key_id, read_unverified, token_from_file, verify_token
from memvm.attest.verifier import Outcome
from memvm.errors import AttestationError
from memvm.machine import enforcing, launched, measurement
from memvm.machine import register as register_module
from memvm.machine import settings as settings_module
from memvm.machine.launched import Ancestor
from tests.attest.samples import LAUNCH, Clock, Lab, attested, logged, request_to
from tools import fuzz_attestation


def refused(lab: Lab, session_id: str, message: bytes, why: str) -> None:
    with pytest.raises(AttestationError, match=why):
        lab.verifier.answer(session_id, message)


def outcome_of(lab: Lab, **changes: Any) -> Outcome:
    session = lab.verifier.new_session("broker")
    return lab.verifier.answer(session.id, lab.message(session, **changes))


def appraised(lab: Lab, **changes: Any) -> Appraisal:
    return outcome_of(lab, **changes).appraisal


def token_of(lab: Lab) -> str:
    token = outcome_of(lab).token
    assert isinstance(token, str)
    return token


def verify(lab: Lab, token: str | bytes, **changes: Any) -> Any:
    arguments = {"audience": "broker", "now": lab.clock(), **changes}
    return verify_token(token, keys_from_jwks(lab.verifier.jwks), **arguments)


def test_good_evidence_gets_an_honest_token(lab: Lab) -> None:
    appraisal = appraised(lab)
    assert appraisal.program == "server"
    assert appraisal.status is Tier.WARNING
    honest = {name for name, tier in appraisal.vector.items() if tier is Tier.WARNING}
    assert honest == {"hardware", "runtime-opaque", "storage-opaque"}
    verified = verify(lab, token_of(lab))
    assert verified.status == "warning"


def test_attack_1_nonce_replay(lab: Lab) -> None:
    session = lab.verifier.new_session("broker")
    message = lab.message(session)
    lab.verifier.answer(session.id, message)
    refused(lab, session.id, message, "no such session")
    refused(lab, lab.verifier.new_session("broker").id, message, "another session")


def test_attack_1_nonce_replay_after_a_refusal(lab: Lab) -> None:
    session = lab.verifier.new_session("broker")
    refused(lab, session.id, b"nonsense", "COSE")
    refused(lab, session.id, lab.message(session), "no such session")


def test_attack_2_stale_challenge(lab: Lab, clock: Clock) -> None:
    session = lab.verifier.new_session("broker")
    clock.now += lab.policy.nonce_lifetime + 1
    refused(lab, session.id, lab.message(session), "expired")


def test_nonces_are_fresh(lab: Lab) -> None:
    nonces = {lab.verifier.new_session("broker").nonce for _ in range(100)}
    assert len(nonces) == 100
    assert {len(nonce) for nonce in nonces} == {32}


def test_attack_3_evidence_relayed_to_another_session(lab: Lab) -> None:
    mine, theirs = lab.verifier.new_session("broker"), lab.verifier.new_session("broker")
    refused(lab, theirs.id, lab.message(mine), "another session")


def test_attack_4_guests_key_swapped_in_evidence(lab: Lab) -> None:
    session = lab.verifier.new_session("broker")
    message = lab.message(session)
    swapped = message.replace(bytes(range(32)), bytes(range(1, 33)))
    assert swapped != message
    refused(lab, session.id, swapped, "signature")


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


def signed_anew(lab: Lab, token: str, claims: dict[str, Any] | bytes) -> str:
    """A token with other claims, as the verifier's own key would sign them."""
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = f"{token.split('.')[0]}.{base64url(body)}"
    return f"{signed}.{base64url(lab.verifier._key.sign(signed.encode()))}"


def test_attack_4_guests_key_swapped_in_a_token(lab: Lab) -> None:
    token = token_of(lab)
    head, _, signature = token.split(".")
    claims = claims_of(token)
    claims["cnf"]["jwk"]["x"] = base64url(bytes(32))
    forged = f"{head}.{base64url(json.dumps(claims).encode())}.{signature}"
    with pytest.raises(AttestationError, match="signature"):
        verify(lab, forged)


def test_attack_5_wrong_audience(lab: Lab) -> None:
    session = lab.verifier.new_session("broker")
    refused(lab, session.id, lab.message(session, audience="other"), "for 'other'")
    with pytest.raises(AttestationError, match="audience"):
        lab.verifier.new_session("stranger")
    several = signed_anew(lab, token := token_of(lab), claims_of(token) | {"aud": ["broker", "other"]})
    with pytest.raises(AttestationError, match="not for"):
        verify(lab, several)


def test_attack_5_wrong_broker_is_shown_a_token(lab: Lab) -> None:
    with pytest.raises(AttestationError, match="for 'broker', not for 'other'"):
        verify(lab, token_of(lab), audience="other")


def _reheaded(token: str, header: dict[str, Any], sign: Any = None) -> str:
    body = token.split(".")[1]
    head = base64url(json.dumps(header).encode())
    signature = sign(f"{head}.{body}".encode()) if sign else b""
    return f"{head}.{body}.{base64url(signature)}"


def refused_tokens(lab: Lab, why: str, *tokens: str | bytes) -> None:
    for token in tokens:
        with pytest.raises(AttestationError, match=why):
            verify(lab, token)


def test_attack_6_alg_none(lab: Lab) -> None:
    """Without a signature, and with one that is right: what says "none" is not even looked at."""
    token = token_of(lab)
    header, own = read_unverified(token)[0], lab.verifier._key.sign
    none = [_reheaded(token, {**header, "alg": alg}, sign) for alg in ("none", "None", "") for sign in (None, own)]
    without = _reheaded(token, {name: value for name, value in header.items() if name != "alg"}, own)
    refused_tokens(lab, "another algorithm", *none, without)
    refused_tokens(lab, "wrong|no token", token.rpartition(".")[0] + ".", token + "=", token + ".")


def test_attack_6_hs256_with_the_public_key(lab: Lab) -> None:
    token = token_of(lab)
    header = read_unverified(token)[0] | {"alg": "HS256"}
    key = lab.verifier._key
    for public in (key.public_key().public_bytes_raw(), public_pem(key.public_key())):
        forged = _reheaded(token, header, lambda data, public=public: hmac.digest(public, data, hashlib.sha256))
        refused_tokens(lab, "another algorithm", forged)
    refused_tokens(lab, "another algorithm", _reheaded(token, header, key.sign))


def test_attack_6_unknown_crit(lab: Lab) -> None:
    token = token_of(lab)
    header, own = read_unverified(token)[0], lab.verifier._key.sign
    forged = [_reheaded(token, {**header, **more}, own) for more in ({"crit": ["exp"]}, {"crit": ["x"], "x": 1})]
    refused_tokens(lab, "not believed here", *forged)


def test_attack_6_alg_none_or_another_one_in_cose(lab: Lab) -> None:
    """The same of evidence and of CWTs: algorithms are numbers there, ES256, HMAC 256/256 and none; 2 is crit."""
    session = lab.verifier.new_session("broker")
    payload = cose.read(lab.message(session)).payload
    chain = {cose.CHAIN: list(lab.device.chain)}
    cwt = lab.verifier.new_session("broker", TokenFormat.CWT)
    token = lab.verifier.answer(cwt.id, lab.message(cwt)).token
    assert isinstance(token, bytes)
    known = cose.read(token)
    for header in ({cose.ALGORITHM: -7}, {cose.ALGORITHM: 5}, {cose.ALGORITHM: 0}, {2: [cose.ALGORITHM]}, {99: 1}):
        session = lab.verifier.new_session("broker")
        refused(lab, session.id, cose.sign(payload, lab.device.key, chain | header), "another algorithm")
        forged = cose.sign(known.payload, lab.verifier._key, {cose.KEY_ID: known.header[cose.KEY_ID], **header})
        refused_tokens(lab, "another algorithm", forged)


def attackers_tokens(lab: Lab, **header: Any) -> tuple[str, str]:
    """With this in the header: signed by an attacker, and by the verifier."""
    token, attacker = token_of(lab), Ed25519PrivateKey.generate()
    for_attacker = {"x": base64url(attacker.public_key().public_bytes_raw())}
    filled = {name: value | for_attacker if name == "jwk" else value for name, value in header.items()}
    whole = read_unverified(token)[0] | filled
    return _reheaded(token, whole, attacker.sign), _reheaded(token, whole, lab.verifier._key.sign)


def test_attack_7_attackers_jwk_header(lab: Lab) -> None:
    refused_tokens(lab, "not believed here", *attackers_tokens(lab, jwk={"kty": "OKP", "crv": "Ed25519"}))
    refused_tokens(lab, "not believed here", *attackers_tokens(lab, jku="https://attacker.example"))


def test_attack_7_attackers_x5c_header(lab: Lab) -> None:
    certificate = base64.b64encode(lab.device.chain[0]).decode()
    refused_tokens(lab, "not believed here", *attackers_tokens(lab, x5c=[certificate]))
    refused_tokens(lab, "not believed here", *attackers_tokens(lab, x5u="https://attacker.example"))


def test_attack_7_attackers_key_id_header(lab: Lab) -> None:
    """The attacker's own, and the verifier's."""
    for kid in ({"kid": "mine"}, {"kid": ""}, {}):
        refused_tokens(lab, "not the verifier's|signature is wrong", attackers_tokens(lab, **kid)[0])


def changed_claims(lab: Lab, **claims: Any) -> str:
    """A token with these claims, without those that are None, as the verifier's own key would sign it."""
    token = token_of(lab)
    changed = claims_of(token) | claims
    return signed_anew(lab, token, {name: value for name, value in changed.items() if value is not None})


def test_attack_8_expired(lab: Lab) -> None:
    refused_tokens(lab, "has expired", changed_claims(lab, exp=1_799_999_000), changed_claims(lab, exp=1_800_000_000))
    with pytest.raises(AttestationError, match="has expired"):
        verify(lab, token_of(lab), now=lab.clock() + lab.policy.token_lifetime + 10)


def test_attack_8_no_exp(lab: Lab) -> None:
    refused_tokens(lab, "no exp", changed_claims(lab, exp=None))


def test_attack_8_iat_in_the_future(lab: Lab) -> None:
    refused_tokens(lab, "in the future", changed_claims(lab, iat=1_800_000_100))


def test_attack_8_iat_a_float(lab: Lab) -> None:
    refused_tokens(lab, "no iat", *(changed_claims(lab, iat=iat) for iat in (1_799_999_999.5, "1799999999", True)))
    refused_tokens(lab, "no exp", *(changed_claims(lab, exp=exp) for exp in (1_800_000_300.5, "1800000300")))


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iat": None}, "no iat"),
        ({"aud": None}, "not for"),
        ({"jti": None}, "no jti"),
        ({"eat_profile": "tag:attacker.example,2026:ear"}, "profile"),
    ],
    ids=str,
)
def test_claims_that_are_missing_or_not_known(lab: Lab, claims: dict[str, Any], why: str) -> None:
    refused_tokens(lab, why, changed_claims(lab, **claims))


def test_a_status_better_than_the_vector(lab: Lab) -> None:
    token = token_of(lab)
    claims = claims_of(token)
    claims["submods"]["guest"]["ear_status"] = "affirming"
    refused_tokens(lab, "better", signed_anew(lab, token, claims))


def test_attack_9_same_guest_id_other_device_key_of_another_root(lab: Lab, tmp_path: Path) -> None:
    """Evidence that a device signs with the chain of another one, and a device of another root."""
    make_platform(tmp_path / "foreign", "lab")
    foreign = load_device(tmp_path / "foreign")
    session = lab.verifier.new_session("broker")
    refused(lab, session.id, lab.evidence(session).sign(foreign), "chain|root")
    session = lab.verifier.new_session("broker")
    stolen = foreign._replace(chain=lab.device.chain)
    refused(lab, session.id, lab.evidence(session).sign(stolen), "signature")


def another_device(lab: Lab) -> Device:
    """Of the same root."""
    platform, key = lab.directory / "platform", Ed25519PrivateKey.generate()
    [root] = load_certificates(platform / "root.pem")
    certificate = make_certificate("other", key.public_key(), root, load_private(platform / "root.key"))
    return Device(key, (certificate.public_bytes(Encoding.DER),), 1)


def test_attack_9_same_guest_id_other_device_key_of_the_same_root(lab: Lab) -> None:
    """A device that is believed says that it has the guest which another one has: also to a verifier that restarted."""
    known, second = lab.device, another_device(lab)
    lineage = Lineage(bytes(16), b"a" * 16, 0, (), True)
    assert appraised(lab, lineage=lineage).status is Tier.WARNING
    for _ in range(2):
        lab.device = second
        appraisal = appraised(lab, lineage=lineage)
        assert appraisal.vector["instance-identity"] is Tier.CONTRAINDICATED
        assert "another device" in appraisal.reasons[0]
        lab.device = known
        assert appraised(lab, lineage=lineage).status is Tier.WARNING
        lab.verifier.close()
        lab.restarted()
    lab.device = second  # where it was brought back, it is another instance
    ancestors = (Ancestor("00" * 16, "00" * 32, 1),)
    assert appraised(lab, lineage=Lineage(bytes(16), b"b" * 16, 1, ancestors, True)).status is Tier.WARNING


def test_attack_9_same_guest_id_other_device_key_revokes_nothing(lab: Lab) -> None:
    """Only the device on which a token was issued has it denied."""
    outcome, other = outcome_of(lab), another_device(lab)
    payload = cbor.encode({"domain": "memvm revocation 1", "jti": outcome.jti, "reason": "none"})
    with pytest.raises(AttestationError, match="no token of this name was issued for this device"):
        lab.verifier.revoke(cose.sign(payload, other.key, {cose.CHAIN: list(other.chain)}))
    assert not lab.verifier.deny_list


def test_a_device_cannot_make_devices(lab: Lab, tmp_path: Path) -> None:
    make_platform(tmp_path / "foreign", "lab")
    foreign = load_device(tmp_path / "foreign")
    for chain in ((*foreign.chain, *lab.device.chain), (*lab.device.chain, *lab.device.chain), ()):
        session = lab.verifier.new_session("broker")
        refused(lab, session.id, lab.evidence(session).sign(foreign._replace(chain=chain)), "chain|issue")
    session = lab.verifier.new_session("broker")
    root = load_certificates(tmp_path / "platform" / "root.pem")[0]
    chain = (root.public_bytes(Encoding.DER),)
    refused(lab, session.id, lab.evidence(session).sign(lab.device._replace(chain=chain)), "makes certificates")


def test_attack_10_validated_key_is_not_the_used_key(lab: Lab) -> None:
    token = token_of(lab)
    verify(lab, token, guest_key=GuestKey("ed25519", bytes(range(32))))
    for other in (GuestKey("ed25519", bytes(32)), GuestKey("x25519", bytes(range(32)))):
        with pytest.raises(AttestationError, match="another key"):
            verify(lab, token, guest_key=other)
    keyless = outcome_of(lab, key=GuestKey()).token
    assert isinstance(keyless, str)
    with pytest.raises(AttestationError, match="no key"):
        verify(lab, keyless, guest_key=GuestKey("ed25519", bytes(32)))


def test_attack_10_validated_key_is_not_the_used_key_of_two_that_are_known(lab: Lab) -> None:
    """Of a verifier's keys the one that the token names, and of a chain's certificates the first."""
    token, second = token_of(lab), Ed25519PrivateKey.generate()
    header, keys = read_unverified(token)[0], keys_from_jwks(lab.verifier.jwks)
    both = {**keys, key_id(second.public_key()): second.public_key()}
    by_second = _reheaded(token, header | {"kid": key_id(second.public_key())}, second.sign)
    now = lab.clock()
    assert verify_token(by_second, both, "broker", now=now).status == "warning"
    for forged in (
        _reheaded(token, header, second.sign),
        _reheaded(token, header | {"kid": key_id(second.public_key())}, lab.verifier._key.sign),
    ):
        with pytest.raises(AttestationError, match="signature is wrong"):
            verify_token(forged, both, "broker", now=now)
    other = another_device(lab)
    for chain in ((other.chain[0],), (other.chain[0], lab.device.chain[0]), (lab.device.chain[0], other.chain[0])):
        session = lab.verifier.new_session("broker")
        refused(lab, session.id, lab.evidence(session).sign(lab.device._replace(chain=chain)), "signature|issue|chain")


@pytest.mark.parametrize("part", ["appraise", "read_evidence", "make_token"])
def test_attack_11_verifier_exception(part: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails closed: no token, not even later with the same nonce; over HTTP, nothing that looks like one."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    session, asked = lab.verifier.new_session("broker"), lab.verifier.new_session("broker")
    with monkeypatch.context() as patch:
        patch.setattr(verifier, part, broken)
        with pytest.raises(RuntimeError):
            lab.verifier.answer(session.id, lab.message(session))
        path = f"/challenge-response/v1/session/{asked.id}"
        assert request_to(Service(lab.verifier), "POST", path, lab.message(asked)) == (
            500,
            {"error": "the verifier failed; its log says how"},
        )
    for used in (session, asked):
        refused(lab, used.id, lab.message(used), "no such session")
    assert not (lab.directory / "state" / "issued.jsonl").read_bytes()


def test_attack_11_verifier_exception_while_it_writes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that could not be revoked later, or a guest that could not be told from its copy, gets no token."""

    def full(*_: object, **__: object) -> None:
        raise OSError("no space")

    for ledger in (lab.verifier._issued, lab.verifier._lineages.ledger):
        session = lab.verifier.new_session("broker")
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "note", full)
            with pytest.raises(OSError, match="no space"):
                lab.verifier.answer(session.id, lab.message(session))


def test_attack_15_setting_changed_and_changed_back_in_evidence(lab: Lab) -> None:
    register, log = logged(
        {"setting": "debug", "before": "off", "after": "on"}, {"setting": "debug", "before": "on", "after": "off"}
    )
    appraisal = appraised(lab, register=register, log=log, settings=attested(debug=("off", "off", "revoke")))
    assert appraisal.vector["configuration"] is Tier.WARNING
    assert "changed 2 times" in appraisal.settings["debug"].reason


@pytest.mark.parametrize(
    ("debug", "tier"),
    [
        (("off", "off", "refuse"), Tier.AFFIRMING),
        (("off", "off", "terminate"), Tier.AFFIRMING),
        (("off", "off", "record"), Tier.WARNING),
        (("on", "on", "refuse"), Tier.CONTRAINDICATED),
        (("off", "on", "record"), Tier.CONTRAINDICATED),
        (("on", "off", "record"), Tier.CONTRAINDICATED),
    ],
    ids=str,
)
def test_value_and_behaviour_are_both_judged(lab: Lab, debug: tuple[str, str, str], tier: Tier) -> None:
    appraisal = appraised(lab, settings=attested(debug=debug))
    assert appraisal.vector["configuration"] is tier
    assert appraisal.settings["debug"].verdict == tier.name.lower()


def test_attack_17_claimed_behaviour_is_not_the_real_one_of_unknown_code(lab: Lab) -> None:
    appraisal = appraised(lab, code=bytes(48))
    assert appraisal.vector["configuration"] is Tier.CONTRAINDICATED
    assert "nothing is known of the code" in appraisal.reasons[0]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (settings_module.Settings, "change"),
        (settings_module.Settings, "_carry_out"),
        (settings_module.Settings, "require"),
        (enforcing.Enforcement, "_revoke"),
        (enforcing.Enforcement, "_wipe"),
        (enforcing.Enforcement, "require_token"),
        (register_module.Register, "extend"),
        (register_module, "extended"),
        (launched.Launched, "digest"),
        (measurement.Measuring, "finish"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_attack_17_claimed_behaviour_is_not_the_real_one_of_replaced_code(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the running process, which goes on to say that its files are what they were."""
    assert len(code.code_digest()) == 48
    for other in (lambda *_: None, property(lambda self: b""), None):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            with pytest.raises(AttestationError, match=rf"{name} is not what is in"):
                code.code_digest()
    assert len(code.code_digest()) == 48


def refused_logs(lab: Lab, change: Callable[[tuple[str, ...]], list[tuple[str, ...]]]) -> None:
    """Evidence with a log that was changed, under the register of the whole one."""
    register, log = logged(*({"setting": "debug", "after": value} for value in ("on", "off", "on")))
    assert appraised(lab, register=register, log=log).status is Tier.WARNING
    for other in change(log):
        session = lab.verifier.new_session("broker")
        refused(lab, session.id, lab.message(session, register=register, log=other), "the log is not that")


def test_attack_18_log_truncated_in_evidence(lab: Lab) -> None:
    refused_logs(lab, lambda log: [log[:-1], log[1:], (log[0], log[2]), ()])


def test_attack_18_log_reordered_in_evidence(lab: Lab) -> None:
    refused_logs(lab, lambda log: [(log[1], log[0], log[2]), (log[0], log[2], log[1])])


def test_attack_18_log_extended_in_evidence(lab: Lab) -> None:
    refused_logs(lab, lambda log: [(*log, log[0]), (log[0], *log), (*log, *log)])


def test_an_unknown_program_or_none(lab: Lab) -> None:
    assert appraised(lab, launch=bytes(48)).vector["executables"] is Tier.CONTRAINDICATED
    assert appraised(lab, launch=b"").vector["executables"] is Tier.CONTRAINDICATED
    assert appraised(lab, version=0).status is Tier.CONTRAINDICATED


def _from(identity: bytes, instance: bytes, saves: int, checkpoint: int = 0) -> Lineage:
    ancestors = (Ancestor(f"{checkpoint:032x}", "00" * 32, checkpoint),) if checkpoint else ()
    return Lineage(identity, instance, saves, ancestors, True)


def test_attack_25_checkpoint_rolled_back(lab: Lab) -> None:
    guest = bytes(16)
    assert appraised(lab, lineage=_from(guest, b"a" * 16, 2)).status is Tier.WARNING
    for _ in range(2):  # the second try, too
        appraisal = appraised(lab, lineage=_from(guest, b"b" * 16, 1, checkpoint=1))
        assert appraisal.status is Tier.CONTRAINDICATED
        assert "rolled back" in appraisal.reasons[0]
    assert appraised(lab, lineage=_from(guest, b"c" * 16, 2, checkpoint=2)).status is Tier.WARNING


def test_attack_26_two_clones_of_one_checkpoint(lab: Lab) -> None:
    guest = bytes(16)
    assert appraised(lab, lineage=_from(guest, b"a" * 16, 1, checkpoint=1)).status is Tier.WARNING
    assert appraised(lab, lineage=_from(guest, b"a" * 16, 1, checkpoint=1)).status is Tier.WARNING
    lab.verifier.close()
    lab.restarted()
    appraisal = appraised(lab, lineage=_from(guest, b"b" * 16, 1, checkpoint=1))
    assert appraisal.status is Tier.CONTRAINDICATED
    assert "second" in appraisal.reasons[0]


def test_a_checkpoint_that_nobody_vouches_for(lab: Lab) -> None:
    lineage = _from(bytes(16), b"a" * 16, 1, checkpoint=1)._replace(vouched=False)
    assert appraised(lab, lineage=lineage).vector["executables"] is Tier.CONTRAINDICATED


def test_revoked_tokens_are_denied_by_their_name(lab: Lab, tmp_path: Path) -> None:
    outcome = outcome_of(lab)
    payload = cbor.encode({"domain": "memvm revocation 1", "jti": outcome.jti, "reason": "debug was switched on"})
    make_platform(tmp_path / "foreign", "lab")
    for device in (load_device(tmp_path / "foreign"), lab.device._replace(key=Ed25519PrivateKey.generate())):
        with pytest.raises(AttestationError):
            lab.verifier.revoke(cose.sign(payload, device.key, {cose.CHAIN: list(device.chain)}))
    assert lab.verifier.revoke(cose.sign(payload, lab.device.key, {cose.CHAIN: list(lab.device.chain)})) == outcome.jti
    lab.verifier.close()
    assert outcome.jti in lab.restarted().deny_list
    assert isinstance(outcome.token, str)
    with pytest.raises(AttestationError, match="revoked"):
        verify(lab, outcome.token, denied=lab.verifier.deny_list.__contains__)


def test_a_denied_token_is_denied_until_long_after_it_expired(lab: Lab, clock: Clock) -> None:
    outcome = outcome_of(lab)
    payload = cbor.encode({"domain": "memvm revocation 1", "jti": outcome.jti, "reason": "x"})
    lab.verifier.revoke(cose.sign(payload, lab.device.key, {cose.CHAIN: list(lab.device.chain)}))
    clock.now += lab.policy.token_lifetime + 500  # by a clock that is eight minutes late it still counts
    assert outcome.jti in lab.verifier.deny_list
    clock.now += 101
    assert not lab.verifier.deny_list


def test_evidence_as_revocation_and_the_other_way_round(lab: Lab) -> None:
    session = lab.verifier.new_session("broker")
    with pytest.raises(AttestationError, match="no revocation"):
        lab.verifier.revoke(lab.message(session))


def test_reference_values_of_a_stranger(tmp_path: Path) -> None:
    maker, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    known = References({LAUNCH: "server"}, frozenset(), 3)
    text = sign_references(known, maker)
    assert read_references(text, [maker.public_key()]) == known
    with pytest.raises(AttestationError, match="not signed"):
        read_references(text, [stranger.public_key()])
    envelope = json.loads(text)
    envelope["payload"] = base64.b64encode(base64.b64decode(envelope["payload"]).replace(b"server", b"attack")).decode()
    with pytest.raises(AttestationError, match="not signed"):
        read_references(json.dumps(envelope), [maker.public_key()])
    for text in ("{}", "[]", "", '{"payload": "!"}'):
        with pytest.raises(AttestationError):
            read_references(text, [maker.public_key()])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_evidence_is_refused(lab: Lab, data: st.DataObject) -> None:
    session = lab.verifier.new_session("broker")
    message = bytearray(lab.message(session))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    refused(lab, session.id, bytes(message), ".")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(1, 255))
def test_any_change_of_a_certificate_is_refused(lab: Lab, at: int, flip: int) -> None:
    certificate = bytearray(lab.device.chain[0])
    certificate[at % len(certificate)] ^= flip
    session = lab.verifier.new_session("broker")
    message = lab.evidence(session).sign(lab.device._replace(chain=(bytes(certificate),)))
    refused(lab, session.id, message, ".")


def test_a_certificate_has_one_form(tmp_path: Path) -> None:
    """A signature that ends with a zero bit is the same as a string of one bit less: one device, two certificates."""
    for number in range(64):  # every other signature does
        make_platform(folder := tmp_path / str(number), "lab")
        der = load_device(folder).chain[0]
        if der[-1] % 2 == 0:
            break
    roots = load_certificates(folder / "root.pem")
    device_key_of([der], roots)
    at = der.rindex(b"\x03\x41\x00") + 2
    with pytest.raises(AttestationError, match="not encoded"):
        device_key_of([der[:at] + b"\x01" + der[at + 1 :]], roots)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_evidence(data: bytes) -> None:
    for message in (data, b"\xd2" + data):
        with pytest.raises(AttestationError):
            read_evidence(message, [])


def test_messages_that_are_changed_and_signed_again() -> None:
    assert fuzz_attestation.main(["--messages", "2000", "--seed", "1"]) == 0


def test_all_formats_say_the_same(lab: Lab) -> None:
    for kind in TokenFormat:
        session = lab.verifier.new_session("broker", kind)
        outcome = lab.verifier.answer(session.id, lab.message(session))
        assert isinstance(outcome.token, bytes if kind is TokenFormat.CWT else str)
        verified = verify(lab, outcome.token, guest_key=GuestKey("ed25519", bytes(range(32))))
        assert (verified.jti, verified.status) == (outcome.jti, "warning")


def test_a_cwt_is_checked_as_a_jwt_is(lab: Lab) -> None:
    session = lab.verifier.new_session("broker", TokenFormat.CWT)
    token = lab.verifier.answer(session.id, lab.message(session)).token
    assert isinstance(token, bytes)
    assert read_unverified(token)[1]["aud"] == "broker"
    assert token_from_file(base64.b64encode(token) + b"\n") == token_from_file(token) == token
    with pytest.raises(AttestationError, match="signature"):
        verify(lab, token[:-1] + bytes([token[-1] ^ 1]))
    with pytest.raises(AttestationError, match="not for"):
        verify(lab, token, audience="other")
    with pytest.raises(AttestationError, match="expired"):
        verify(lab, token, now=lab.clock() + 1000)
    session = lab.verifier.new_session("broker")
    with pytest.raises(AttestationError, match="key"):
        verify(lab, lab.message(session))  # evidence is no token
    for raw in (b"", b"nonsense", b"\xd2\x80"):
        with pytest.raises(AttestationError):
            read_unverified(token_from_file(raw))


def test_tokens_tell_the_version_of_the_verifier(lab: Lab) -> None:
    assert read_unverified(token_of(lab))[1]["ear_verifier_id"]["build"] == f"memvm {memvm.__version__}"
