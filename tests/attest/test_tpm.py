"""Guests whose register is anchored in a TPM: one in software, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import memvm
from memvm.attest.anchoring import Anchoring
from memvm.attest.pcr import RECORD_SIZE, event_digest, replay
from memvm.attest.tpm import Tpm
from memvm.errors import AttestationError, HostError, SettingRefused
from memvm.faultpoints import FaultPoint
from tests.attest.lesson import Lesson, appraisal, guest_of, lesson_in, own_claims, reasons, started
from tests.attest.swtpm import Swtpm, software_tpm
from tests.support import MemvmCli

PCR = 15


@pytest.fixture
def swtpm(tmp_path: Path, time_scale: float) -> Iterator[Swtpm]:
    with software_tpm(tmp_path / "tpm", time_scale) as tpm:
        yield tpm


@pytest.fixture
def lesson(
    tmp_path: Path,
    guests: Mapping[str, Path],
    memvm_cli: MemvmCli,
    monkeypatch: pytest.MonkeyPatch,
    swtpm: Swtpm,
) -> Iterator[Lesson]:
    """A platform with a TPM, and a verifier that wants one."""
    monkeypatch.setenv("MEMVM_PLATFORM_DIR", str(tmp_path / "platform"))
    with lesson_in(tmp_path, guests, memvm_cli, "--tpm", swtpm.tcti, policy="require-tpm = true\n") as lesson:
        yield lesson


def value_of(tpm: Swtpm) -> bytes:
    with Tpm(tpm.tcti) as connection:
        return connection.read(PCR)


def log_of(lesson: Lesson) -> bytes:
    return (lesson.directory / "platform" / "tpm.log").read_bytes()


def test_the_register_is_in_the_pcr(lesson: Lesson, swtpm: Swtpm) -> None:
    """From the beginning, and at each change before it counts; and the token says what the TPM did."""
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        assert len(log_of(lesson)) == RECORD_SIZE
        token = guest.attest(lesson.url)
        assert appraisal(token)["ear_status"] == "warning"
        assert own_claims(token)["tpm"]["pcr"] == PCR
        assert "a TPM vouches" in reasons(token)
        guest.change_setting("debug", "on")
        assert log_of(lesson)[RECORD_SIZE + 16 :] == bytes.fromhex(guest.config().register)
        assert replay(log_of(lesson)) == value_of(swtpm) != bytes(48)
        assert "debug=on now" in reasons(guest.attest(lesson.url))


def test_guests_share_the_pcr(lesson: Lesson, swtpm: Swtpm) -> None:
    with guest_of(lesson, tpm=True) as first, guest_of(lesson, tpm=True) as second:
        started(first)
        started(second)
        for limit in ("1h", "2h", "3h"):
            for guest in (first, second):
                guest.change_setting("time-limit", limit)
                assert own_claims(guest.attest(lesson.url))["changes"] == int(limit[0])
        assert replay(log_of(lesson)) == value_of(swtpm)


def test_a_guest_without_the_tpm_is_told_apart(lesson: Lesson) -> None:
    with guest_of(lesson) as guest:
        started(guest)
        token = guest.attest(lesson.url)
        assert appraisal(token)["ear_status"] == "contraindicated"
        assert "not anchored in a TPM" in reasons(token)


def test_a_restored_guest_and_clones_are_anchored_anew(lesson: Lesson, guests: Mapping[str, Path]) -> None:
    file = lesson.directory / "guest.ckpt"
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with memvm.Guest([guests["sleeper"], "10", "0"], ram="64M", tpm=True, stdin=pipe, stdout=nowhere) as guest:
        guest.change_setting("time-limit", "1h")
        guest.checkpoint(file)
    with memvm.restore(file, tpm=True, stdin=pipe, stdout=nowhere) as again:
        assert own_claims(again.attest(lesson.url))["tpm"]["pcr"] == PCR
        assert again.config().changes == 1
    with memvm.restore_clones(file, 2, tpm=True, stdout=nowhere) as clones:
        for clone in clones:
            assert own_claims(clone.attest(lesson.url))["tpm"]["pcr"] == PCR


def test_attack_16_enforcer_killed_before_it_acts_between_log_and_pcr(
    lesson: Lesson, swtpm: Swtpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was about to do did not happen: the guest has gone, and the next one takes the record away."""
    monkeypatch.setenv("MEMVM_FAULTS", f"{FaultPoint.ANCHOR_BEFORE_EXTEND}=kill@2")
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        with pytest.raises(memvm.MemvmError):
            guest.change_setting("debug", "on")
        guest.wait(20 * lesson.cli.time_scale)
    monkeypatch.delenv("MEMVM_FAULTS")
    lesson.cli("ps", code=0)  # removes what the dead manager left
    assert len(log_of(lesson)) == 2 * RECORD_SIZE
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        assert len(log_of(lesson)) == 2 * RECORD_SIZE
        assert replay(log_of(lesson)) == value_of(swtpm)
        assert appraisal(guest.attest(lesson.url))["ear_status"] == "warning"


def test_what_the_tpm_does_not_hear_does_not_happen(lesson: Lesson, swtpm: Swtpm) -> None:
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        swtpm.stop()
        with pytest.raises(AttestationError, match="cannot be reached"):
            guest.change_setting("debug", "on")
        with pytest.raises(SettingRefused):
            guest.registers()
        assert guest.config().changes == 0
        with pytest.raises(AttestationError, match="cannot be reached"):
            guest.attest(lesson.url)
        with pytest.raises(AttestationError, match="cannot be reached"):
            guest_of(lesson, tpm=True)
        swtpm.start()
        with pytest.raises(AttestationError, match="restarted"):
            guest.change_setting("debug", "on")
        with pytest.raises(AttestationError, match="restarted"):
            guest.attest(lesson.url)
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        assert len(log_of(lesson)) == RECORD_SIZE
        assert own_claims(guest.attest(lesson.url))["tpm"]["reset_count"] == 2


def test_attack_32_platforms_counter_file_rolled_back(lesson: Lesson) -> None:
    """The log of the PCR is brought back to what it was before a change, or taken away: the TPM knows better."""
    path = lesson.directory / "platform" / "tpm.log"
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        before = log_of(lesson)
        guest.change_setting("time-limit", "1h")
        guest.attest(lesson.url)
        after = log_of(lesson)
        for contents in (before, b"", after[RECORD_SIZE:], before + bytes(RECORD_SIZE)):
            path.write_bytes(contents)
            for attempt in (lambda: guest.attest(lesson.url), lambda: guest.change_setting("time-limit", "2h")):
                with pytest.raises(AttestationError, match="something else has extended"):
                    attempt()
        path.write_bytes(after)
        assert guest.config().changes == 1
        assert own_claims(guest.attest(lesson.url))["changes"] == 1


def test_pcr_that_something_else_extends(lesson: Lesson, swtpm: Swtpm) -> None:
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        with Tpm(swtpm.tcti) as tpm:
            tpm.extend(PCR, event_digest(b"a stranger"))
        for attempt in (
            lambda: guest.change_setting("debug", "on"),
            lambda: guest.attest(lesson.url),
            lambda: guest_of(lesson, tpm=True),
        ):
            with pytest.raises(AttestationError, match="something else has extended"):
                attempt()
        refused = lesson.cli("platform", "init", "--tpm", swtpm.tcti, env={"MEMVM_PLATFORM_DIR": "/nowhere"}, code=65)
        assert "--tpm-pcr" in refused.err


def test_attack_32_platforms_counter_file_rolled_back_with_its_tpm(lesson: Lesson, swtpm: Swtpm) -> None:
    """The TPM's state, and its log, are brought back to what they were before."""
    saved = {path: path.read_bytes() for path in swtpm.state.iterdir() if path.is_file()}
    for _ in range(2):  # two boots, each with a guest
        swtpm.stop()
        swtpm.start()
        with guest_of(lesson, tpm=True) as guest:
            started(guest)
            assert appraisal(guest.attest(lesson.url))["ear_status"] == "warning"
    swtpm.stop()
    for path, contents in saved.items():
        path.write_bytes(contents)
    swtpm.start()
    with guest_of(lesson, tpm=True) as guest:
        started(guest)
        token = guest.attest(lesson.url)
        assert appraisal(token)["ear_status"] == "contraindicated"
        assert "went back" in reasons(token)


def test_power_cuts_do_not_lock_the_attestation_key(lesson: Lesson, swtpm: Swtpm) -> None:
    """They count as attempts to guess passwords, if a key was used that is guarded against that."""
    for boot in range(5):
        swtpm.boot()
        with guest_of(lesson, tpm=True) as guest:
            started(guest)
            assert own_claims(guest.attest(lesson.url))["tpm"]["reset_count"] == boot + 2


def test_a_platform_has_its_tpm(lesson: Lesson, swtpm: Swtpm) -> None:
    assert swtpm.tcti in lesson.cli("platform", "show", code=0).text
    elsewhere = {"MEMVM_PLATFORM_DIR": str(lesson.directory / "other")}
    for options, why in (
        (("--tpm", "nonsense:x"), "cannot be reached"),
        (("--tpm", "swtpm:port=1"), "cannot be reached"),
        (("--tpm", swtpm.tcti, "--tpm-pcr", "16"), "reset by anybody"),
    ):
        done = lesson.cli("platform", "init", *options, env=elsewhere)
        assert done.code in (64, 65)
        assert why in done.err
    assert not (lesson.directory / "other").exists()
    lesson.cli("platform", "init", "--tpm", swtpm.tcti, "--tpm-pcr", "14", env=elsewhere, code=0)
    verify = ("openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "tpm.pem")
    subprocess.run(verify, cwd=lesson.directory / "other", check=True, stdout=subprocess.DEVNULL)


def test_the_attestation_key_signs_nothing_that_the_tpm_has_not_made(swtpm: Swtpm) -> None:
    import tpm2_pytss

    with Tpm(swtpm.tcti) as tpm:
        handle, _ = tpm.make_attestation_key()
        esapi = tpm._esapi
        forged = b"\xffTCG\x80\x18" + bytes(100)
        with pytest.raises(tpm2_pytss.TSS2_Exception):
            _, ticket = esapi.hash(forged, tpm2_pytss.TPM2_ALG.SHA256, tpm2_pytss.ESYS_TR.OWNER)
            scheme = tpm2_pytss.TPMT_SIG_SCHEME(scheme=tpm2_pytss.TPM2_ALG.NULL)
            esapi.sign(esapi.tr_from_tpmpublic(handle), bytes(32), scheme, ticket)
        tpm.remove_key(handle)


def test_a_platform_without_a_tpm_says_so(
    tmp_path: Path, guests: Mapping[str, Path], memvm_cli: MemvmCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVM_PLATFORM_DIR", str(tmp_path / "platform"))
    memvm_cli("platform", "init", code=0)
    assert "has no TPM" in memvm_cli("run", "--ram", "64M", "--tpm", "--", guests["sleeper"], code=65).err
    for contents in ("{}", "[]", "nonsense", '{"tcti": "x", "key": 1, "pcr": 16}'):
        (tmp_path / "platform" / "tpm.json").write_text(contents)
        with pytest.raises(AttestationError, match=r"makes no sense|reset by anybody"):
            Anchoring(tmp_path / "platform", os.urandom(16))


def test_tpm2_pytss_is_only_needed_for_a_tpm(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys, memvm.attest.verifier, memvm.attest.rounds; print('tpm2_pytss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(HostError, match="tpm2-pytss"):
        Tpm("swtpm:port=1")
