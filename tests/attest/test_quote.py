"""What a TPM says of a guest, and every way in which it can be wrong: all are refused, or told in the token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvm.attest.anchor import Anchor
from memvm.attest.appraisal import Appraisal, Tier
from memvm.attest.evidence import Evidence, Lineage
from memvm.attest.pcr import RECORD_SIZE, last_register, record_of
from memvm.attest.platform import make_platform
from memvm.attest.quote import read_quote, verify_quote
from memvm.attest.tokens import read_unverified
from memvm.attest.verifier import Outcome
from memvm.errors import AttestationError
from tests.attest.samples import Clock, FakeTpm, Lab, logged

INSTANCE = bytes(range(16))
OTHER = bytes(range(16, 32))
REGISTER, LOG = logged({"setting": "observers", "before": "on", "after": "off"})
LINEAGE = Lineage(bytes(16), INSTANCE, 0, (), True)

# Of a TPM in software (swtpm 0.7.1): its key, and a quote of PCR 15 after a boot, with its signature.
POINT = bytes.fromhex(
    "0408eb9c9293b94cfb3f1113797a6ec9323b02d2b6b7374464c5d638f68a7a249e"
    "b6b42ee7d12e13a53f7aec1f8e2d533a6b9d8eaadea8f40ac0901d0e29ec7c04"
)
ATTESTED = bytes.fromhex(
    "ff54434780180022000bb040edf355a9d403a5e293374d3fdb77ca553b90a77341ea36d9f458dc2bf62b00206e6e6e6e6e6e6e6e6e6e6e6e6e"
    "6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e6e000000000000000d000000020000000000201910230016363600000001000c03008000002017"
    "b0761f87b081d5cf10757ccc89f12be355c70e2e29df288b65b30710dcbcd1"
)
SIGNATURE = bytes.fromhex(
    "0018000b0020dea5a7106aa74c17781fe1d5b7a4376ddc8762fc69c3f90a752a7cfce80285d90020"
    "d2afb5708e79df6e9a49f22cc35d0e263e2a3b738a23a48ba30dbda0a4f86cfe"
)


@pytest.fixture
def tpm(lab: Lab) -> FakeTpm:
    """Another guest and ours began; then a setting of ours was changed."""
    tpm = lab.tpm()
    for instance, register in ((OTHER, bytes(48)), (INSTANCE, bytes(48)), (INSTANCE, REGISTER)):
        tpm.extend(instance, register)
    return tpm


def send(lab: Lab, tpm: FakeTpm | None, anchor: Anchor | None = None, lineage: Lineage = LINEAGE) -> Outcome:
    """A round of the guest; `anchor` in place of what the TPM says."""
    session = lab.verifier.new_session("broker")
    evidence = lab.evidence(session, register=REGISTER, log=LOG, lineage=lineage)
    said = anchor if tpm is None or anchor is not None else tpm.anchor(evidence)
    return lab.verifier.answer(session.id, evidence.sign(lab.device, said))


def refused(lab: Lab, tpm: FakeTpm, why: str, **changes: bytes) -> None:
    """A round whose quote has these changes, signed by the TPM."""
    session = lab.verifier.new_session("broker")
    evidence = lab.evidence(session, register=REGISTER, log=LOG, lineage=LINEAGE)
    message = evidence.sign(lab.device, tpm.anchor(evidence, **changes))
    with pytest.raises(AttestationError, match=why):
        lab.verifier.answer(session.id, message)


def hardware(appraisal: Appraisal) -> tuple[Tier, str]:
    """The claim, and the first reason for it."""
    return appraisal.vector["hardware"], next(each for each in appraisal.reasons if each.startswith("hardware"))


def test_a_real_quote_is_understood() -> None:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), POINT)
    verify_quote(ATTESTED, SIGNATURE, key)
    quote = read_quote(ATTESTED)
    assert (quote.extra_data, quote.pcr) == (b"n" * 32, 15)
    assert (quote.clock, quote.reset_count, quote.restart_count, quote.safe) == (13, 2, 0, False)


def test_an_anchored_guest_gets_a_token_that_says_so(lab: Lab, tpm: FakeTpm) -> None:
    outcome = send(lab, tpm)
    assert outcome.appraisal.status is Tier.WARNING
    assert "a TPM vouches" in hardware(outcome.appraisal)[1]
    assert isinstance(outcome.token, str)
    own = read_unverified(outcome.token)[1]["submods"]["guest"]["ear_verifier_claims"]["memvm"]
    assert (own["tpm"]["pcr"], own["tpm"]["reset_count"]) == (15, 1)


def test_attack_3_evidence_relayed_to_another_session_with_its_quote(lab: Lab, tpm: FakeTpm) -> None:
    session = lab.verifier.new_session("broker")
    old = tpm.anchor(lab.evidence(session, register=REGISTER, log=LOG, lineage=LINEAGE))
    with pytest.raises(AttestationError, match="another exchange"):
        send(lab, None, old)


def test_quote_of_a_key_that_nobody_registered(lab: Lab, tpm: FakeTpm) -> None:
    tpm.key = ec.generate_private_key(ec.SECP256R1())
    refused(lab, tpm, "quote's signature")


def test_attack_9_same_guest_id_other_device_key_in_a_tpm(lab: Lab, tmp_path: Path) -> None:
    """Of another root's, and of the same root's: then what tells is the device's name in the certificate."""
    make_platform(tmp_path / "foreign", "lab")
    foreign = FakeTpm(tmp_path / "foreign", 15)
    foreign.extend(INSTANCE, REGISTER)
    refused(lab, foreign, "chain")
    for name in ("root.key", "root.pem"):
        (tmp_path / "foreign" / name).write_bytes((tmp_path / "platform" / name).read_bytes())
    foreign = FakeTpm(tmp_path / "foreign", 15)
    foreign.extend(INSTANCE, REGISTER)
    refused(lab, foreign, "another device")


def test_the_devices_own_key_is_no_tpm(lab: Lab, tpm: FakeTpm) -> None:
    tpm.certificate = lab.device.chain[0]
    refused(lab, tpm, "P-256")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"magic": b"\xffTCH"}, "no TPM"),
        ({"type": b"\x80\x17"}, "something else"),
        ({"extra": b"\x00\x00"}, "other evidence"),
        ({"safe": b"\x02"}, "safe"),
        ({"selections": bytes(4)}, "other PCRs"),
        ({"selections": b"\x00\x00\x00\x02"}, "other PCRs"),
        ({"bank": b"\x00\x0b"}, "other PCRs"),
        ({"pcrs": b"\x03\x00\x00\x00"}, "several PCRs"),
        ({"pcrs": b"\x03\x00\xc0\x00"}, "several PCRs"),
        ({"digest": b"\x00\x20" + bytes(32)}, "not that of the quoted PCR"),
        ({"digest": b"\x00\x00"}, "not that of the quoted PCR"),
        ({"signer": b"\xff\xff"}, "too early"),
        ({"firmware": bytes(9)}, r"."),
        ({"digest": b"\x00\x20" + bytes(33)}, "behind it"),
    ],
    ids=str,
)
def test_a_quote_of_something_else(lab: Lab, tpm: FakeTpm, changes: dict[str, bytes], why: str) -> None:
    """As the TPM's own key would sign it."""
    refused(lab, tpm, why, **changes)


def test_another_pcr_with_a_clean_log(lab: Lab) -> None:
    """One that anybody may reset, or that nobody has used since boot."""
    for number in (14, 16, 23):
        tpm = lab.tpm(number)
        tpm.extend(INSTANCE, REGISTER)
        tier, reason = hardware(send(lab, tpm).appraisal)
        assert tier is Tier.CONTRAINDICATED
        assert f"PCR {number} is quoted" in reason


def refused_logs(lab: Lab, tpm: FakeTpm, *logs: bytes) -> None:
    """Good evidence, and a good quote, with another log of the PCR."""
    for other in logs:
        session = lab.verifier.new_session("broker")
        evidence = lab.evidence(session, register=REGISTER, log=LOG, lineage=LINEAGE)
        message = evidence.sign(lab.device, tpm.anchor(evidence)._replace(log=other))
        with pytest.raises(AttestationError, match="not that of the quoted PCR"):
            lab.verifier.answer(session.id, message)


def records_of(tpm: FakeTpm) -> list[bytes]:
    return [tpm.log[at : at + RECORD_SIZE] for at in range(0, len(tpm.log), RECORD_SIZE)]


def test_attack_18_log_truncated_of_a_pcr(lab: Lab, tpm: FakeTpm) -> None:
    refused_logs(lab, tpm, tpm.log[:-RECORD_SIZE], tpm.log[RECORD_SIZE:], b"")


def test_attack_18_log_reordered_of_a_pcr(lab: Lab, tpm: FakeTpm) -> None:
    first, second, third = records_of(tpm)
    refused_logs(lab, tpm, third + second + first, second + first + third)


def test_attack_18_log_extended_of_a_pcr(lab: Lab, tpm: FakeTpm) -> None:
    refused_logs(lab, tpm, tpm.log + records_of(tpm)[-1], tpm.log * 2)


@pytest.mark.parametrize("after", [(INSTANCE, bytes(48)), (INSTANCE, bytes(range(48)))])
def test_a_change_that_is_in_the_tpm_and_not_in_the_register(
    lab: Lab, tpm: FakeTpm, after: tuple[bytes, bytes]
) -> None:
    tpm.extend(*after)
    refused(lab, tpm, "not the one that is anchored")


def test_a_guest_that_is_not_in_the_log(lab: Lab) -> None:
    tpm = lab.tpm()
    tpm.extend(OTHER, REGISTER)
    refused(lab, tpm, "not the one that is anchored")


def test_attack_32_platforms_counter_file_rolled_back_for_a_verifier(lab: Lab, tpm: FakeTpm) -> None:
    """The platform has gone back to an old state of its TPM, in a boot that is over, or by hours within one."""
    tpm.resets, tpm.clock = 7, 9_000_000
    assert hardware(send(lab, tpm).appraisal)[0] is Tier.WARNING
    lab.verifier.close()
    lab.restarted()
    for resets, at in ((6, 10_000_000), (7, 1000)):
        tpm.resets, tpm.clock = resets, at
        other = LINEAGE._replace(identity=os.urandom(16), instance=OTHER)
        tpm.extend(OTHER, REGISTER)
        tier, reason = hardware(send(lab, tpm, lineage=other).appraisal)
        assert tier is Tier.CONTRAINDICATED
        assert "went back" in reason
    tpm.resets, tpm.clock = 7, 9_000_000 - 30_000  # a round that took longer than another one
    assert hardware(send(lab, tpm).appraisal)[0] is Tier.WARNING


def test_the_tpm_is_restarted_beneath_a_guest(lab: Lab, tpm: FakeTpm) -> None:
    """And the guest anchored anew, as if nothing had been before."""
    assert hardware(send(lab, tpm).appraisal)[0] is Tier.WARNING
    tpm.resets, tpm.log = 2, b""
    tpm.extend(INSTANCE, REGISTER)
    tier, reason = hardware(send(lab, tpm).appraisal)
    assert tier is Tier.CONTRAINDICATED
    assert "restarted" in reason


def test_an_anchored_guest_comes_without_its_tpm(lab: Lab, tpm: FakeTpm) -> None:
    assert hardware(send(lab, tpm).appraisal)[0] is Tier.WARNING
    tier, reason = hardware(send(lab, None).appraisal)
    assert tier is Tier.CONTRAINDICATED
    assert "not any more" in reason


def test_a_policy_that_requires_a_tpm(tmp_path: Path, clock: Clock) -> None:
    (folder := tmp_path / "strict").mkdir()
    lab = Lab(folder, clock, require_tpm=True)
    try:
        assert hardware(send(lab, None).appraisal) == (
            Tier.CONTRAINDICATED,
            "hardware: the guest is not anchored in a TPM",
        )
        tpm = lab.tpm()
        tpm.extend(INSTANCE, REGISTER)
        other = LINEAGE._replace(identity=bytes(range(16)))
        assert hardware(send(lab, tpm, lineage=other).appraisal)[0] is Tier.WARNING
    finally:
        lab.verifier.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.data())
def test_any_change_of_what_the_tpm_said_is_refused(lab: Lab, tpm: FakeTpm, data: st.DataObject) -> None:
    """By whoever has the device's key, and not the TPM."""
    session = lab.verifier.new_session("broker")
    evidence = lab.evidence(session, register=REGISTER, log=LOG, lineage=LINEAGE)
    anchor = tpm.anchor(evidence)
    name = data.draw(st.sampled_from(Anchor._fields))
    changed = bytearray(getattr(anchor, name))
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AttestationError):
        lab.verifier.answer(session.id, evidence.sign(lab.device, anchor._replace(**{name: bytes(changed)})))


@given(st.binary(max_size=200), st.integers(0, len(ATTESTED)), st.booleans())
def test_any_bytes_are_a_quote_or_refused(data: bytes, begin: int, is_long: bool) -> None:
    """Also those that begin as a real quote does, and signatures."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), POINT)
    attested = ATTESTED[:begin] + data + ATTESTED[begin:] * is_long
    try:
        quote = read_quote(attested)
    except AttestationError:
        pass
    else:
        assert quote.pcr >= 0
    if attested != ATTESTED:
        with pytest.raises(AttestationError):
            verify_quote(attested, SIGNATURE, key)
    for signature in (data, SIGNATURE[: begin % len(SIGNATURE)] + data + b"\0"):
        with pytest.raises(AttestationError):
            verify_quote(ATTESTED, signature, key)


@pytest.mark.parametrize(
    "fields",
    [None, b"", [], {}, {"quote": b""}, dict.fromkeys(Anchor._fields, "text"), "log", "one more"],
    ids=str,
)
def test_what_is_no_anchor(lab: Lab, tpm: FakeTpm, fields: object) -> None:
    session = lab.verifier.new_session("broker")
    evidence: Evidence = lab.evidence(session, register=REGISTER, log=LOG, lineage=LINEAGE)
    good = tpm.anchor(evidence).to_fields()
    if fields == "log":
        fields = {**good, "log": good["log"][:-1]}
    elif fields == "one more":
        fields = {**good, "more": b""}
    anchor = type("Odd", (), {"to_fields": lambda self: fields})()
    with pytest.raises(AttestationError):
        lab.verifier.answer(session.id, evidence.sign(lab.device, anchor))


def test_the_last_record_of_a_guest_counts() -> None:
    log = record_of(INSTANCE, bytes(48)) + record_of(OTHER, REGISTER) + record_of(INSTANCE, REGISTER)
    assert last_register(log, INSTANCE) == REGISTER
    assert last_register(log[:RECORD_SIZE], INSTANCE) == bytes(48)
    assert last_register(log, bytes(16)) is None
