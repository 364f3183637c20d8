"""Running guests and a verifier that is a process of its own, over HTTP: the lesson of the README, and more."""

from __future__ import annotations

import base64
import errno
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import memvm
from memvm.attest import rounds
from memvm.attest.asking import fetch
from memvm.attest.evidence import GuestKey, describe, read_evidence
from memvm.attest.tokens import read_unverified
from memvm.errors import AttestationError, SettingRefused, UsageError
from memvm.machine.config import GuestConfig, RunOptions, RunState
from memvm.machine.hypercalls.attestation import wipe_with_tokens
from memvm.machine.hypercalls.table import OWN_CALLS, Call
from memvm.machine.layout import RAM_BASE
from memvm.machine.machine import Machine
from memvm.machine.settings import Behaviour, Name, Setting
from memvm.memory import ram
from memvm.units import MIB, PAGE_SIZE
from tests.attest.lesson import GOOD, Lesson, appraisal, guest_of, lesson_in, own_token, reasons, started
from tests.attest.samples import Lab
from tests.support import MemvmCli, dumps_no_core


@pytest.fixture
def lesson(
    tmp_path: Path, guests: Mapping[str, Path], memvm_cli: MemvmCli, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lesson]:
    monkeypatch.setenv("MEMVM_PLATFORM_DIR", str(tmp_path / "platform"))
    with lesson_in(tmp_path, guests, memvm_cli) as lesson:
        yield lesson


def test_a_good_guest_gets_a_token(lesson: Lesson) -> None:
    with guest_of(lesson) as guest:
        started(guest)
        assert own_token(guest) == "no token"
        token = guest.attest(lesson.url)
        assert own_token(guest) == token
        claims = read_unverified(token)[1]
        assert claims["cnf"]["jwk"]["crv"] == "X25519"
        assert appraisal(token)["ear_status"] == "warning"
        assert "executables" not in reasons(token)
        file = lesson.directory / "guest.jwt"
        shown = lesson.cli("attest", guest.name, "--verifier", lesson.url, "--out", file, code=0).text
        assert shown.startswith("warning: token")
        assert "attested" in lesson.cli("token", "show", file, code=0).text
        check = ("token", "verify", file, "--audience", "lab")
        assert "status" in lesson.cli(*check, "--verifier", lesson.url, code=0).text
        lesson.cli(*check, "--key", lesson.directory / "state" / "verifier.pub", code=0)
        lesson.cli("token", "verify", file, "--audience", "other", "--verifier", lesson.url, code=65)


def test_a_guest_asks_for_its_token_itself(lesson: Lesson) -> None:
    arguments = ("run", *GOOD, "--clear-env", "--verifier", lesson.url, "--", lesson.program)
    first, token = lesson.cli(*arguments, stdin=b"\n", code=0).text.splitlines()
    assert first == "a guest"
    assert read_unverified(token)[1]["cnf"]["jwk"]["crv"] == "X25519"
    nobody = ("run", *GOOD, "--verifier", "http://127.0.0.1:1", "--", lesson.program)
    result = lesson.cli(*nobody, stdin=b"\n", code=0)
    assert result.text.splitlines()[1] == "no token"
    assert "cannot be asked" in result.err


def test_attack_12_program_replaced_by_one_with_a_flipped_byte(lesson: Lesson) -> None:
    contents = bytearray(lesson.program.read_bytes())
    contents[contents.index(b"no token")] ^= 1
    lesson.program.write_bytes(contents)
    with guest_of(lesson) as guest:
        started(guest)
        token = guest.attest(lesson.url)
        assert appraisal(token)["ear_status"] == "contraindicated"
        assert "no known program" in reasons(token)


def test_debug_on_at_launch_and_debug_that_is_only_recorded(lesson: Lesson) -> None:
    for debug, status in (("on:refuse", "contraindicated"), ("off:record", "contraindicated")):
        with guest_of(lesson, debug=debug) as guest:
            started(guest)
            token = guest.attest(lesson.url)
            assert appraisal(token)["ear_status"] == status  # its digest, too, is another one
            assert f"debug={debug.partition(':')[0]} at launch" in reasons(token)


def test_attack_14_debug_switched_on_after_launch_revokes_the_token(lesson: Lesson) -> None:
    with guest_of(lesson) as guest:
        started(guest)
        token = guest.attest(lesson.url)
        file = lesson.directory / "guest.jwt"
        file.write_text(token)
        check = ("token", "verify", file, "--audience", "lab", "--verifier", lesson.url)
        lesson.cli(*check, code=0)
        guest.change_setting("debug", "on")
        assert "revoked" in lesson.cli(*check, code=65).err
        assert own_token(guest) == "no token"
        again = guest.attest(lesson.url)
        assert appraisal(again)["ear_status"] == "contraindicated"
        assert "debug=on now" in reasons(again)
        assert "cnf" not in read_unverified(again)[1]  # its key was forgotten, too


def image_of(guest: memvm.Guest) -> bytes:
    """The memory where its program and its variables are."""
    pages = []
    for address in range(RAM_BASE, RAM_BASE + 3 * MIB, PAGE_SIZE):
        try:
            pages.append(guest.read_memory(address, PAGE_SIZE))
        except UsageError:  # nothing is allocated there
            continue
    return b"".join(pages)


def test_attack_34_key_not_wiped_after_revocation(lesson: Lesson) -> None:
    """The guest's own private key, too: nothing of it is left in guest RAM, whether there was a token or not."""
    private = bytes((number * number + 77) % 256 for number in range(32))
    for attested in (True, False):
        with guest_of(lesson) as guest:
            started(guest)
            if attested:
                guest.attest(lesson.url)
            file = lesson.directory / f"{attested}.ckpt"
            guest.checkpoint(file)
            guest.change_setting("debug", "on")
            assert private not in image_of(guest)
            assert own_token(guest) == "no token"
            assert "cnf" not in read_unverified(guest.attest(lesson.url))[1]
        with memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as before:
            before.change_setting("debug", "on")  # it has not named its secrets again: they are there
            assert private in image_of(before)


def test_attack_34_key_not_wiped_after_revocation_by_ending_the_guest(guests: Mapping[str, Path]) -> None:
    debug = {Name.DEBUG: Setting("off", Behaviour.TERMINATE)}
    machine = Machine.launch(GuestConfig(str(guests["counter"]), ("x",), {}, 64 * MIB, settings=debug), RunOptions("x"))
    image, seen = machine.regions()[0][0], list[bytes]()
    secrets = [(image + PAGE_SIZE - 16, 32), (image + 64, 8)]
    try:
        for address, size in secrets:
            machine.ram.write(address, b"x" * size)
        machine.guest.secrets.extend(secrets)
        kill = machine.kill

        def look_and_kill(reason: str = "") -> None:
            seen.extend(bytes(machine.ram.read(address, size)) for address, size in secrets)
            kill(reason)

        machine.kill = look_and_kill  # type: ignore[method-assign]
        with pytest.raises(SettingRefused, match="ended then"):
            machine.settings.change(Name.DEBUG, "on")
        assert seen == [bytes(32), bytes(8)]
    finally:
        machine.close()


def test_attack_28_key_in_swap_of_what_a_guest_names(
    guests: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or whoever runs it is told, once, that it cannot be."""
    debug = {Name.DEBUG: Setting("off", Behaviour.TERMINATE)}
    machine = Machine.launch(GuestConfig(str(guests["counter"]), ("x",), {}, 64 * MIB, settings=debug), RunOptions("x"))
    gc.collect()  # earlier tests' keys in locked memory go now, and not while pages are counted
    told, before = list[str](), locked_pages()
    guest, call = machine.guest, Call(OWN_CALLS + 5, ())
    monkeypatch.setattr(guest, "tell", told.append)
    stack = max(end for _, end, kind in machine.regions() if kind == "stack") - 8 * PAGE_SIZE
    try:
        assert wipe_with_tokens(guest, call, stack + PAGE_SIZE - 16, 32) == 0
        assert wipe_with_tokens(guest, call, stack + 64, 8) == 0
        if not told:  # this user may lock something
            assert locked_pages() == before + 2
        told.clear()
        guest.knows_of_swap = False
        monkeypatch.setattr(ram, "lock_pages", lock_nothing)
        for address in (stack + 3 * PAGE_SIZE, stack + 4 * PAGE_SIZE):
            assert wipe_with_tokens(guest, call, address, 8) == 0
        assert told == ["its secrets may be written to swap: Cannot allocate memory (ulimit -l)"]
        with pytest.raises(SettingRefused, match="ended then"):
            machine.settings.change(Name.DEBUG, "on")
        assert locked_pages() == before
    finally:
        machine.close()


def locked_pages() -> int:
    """Of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck:")]
    return (int(line.split()[1]) << 10) // PAGE_SIZE


def lock_nothing(*_range: object) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def launched_with(guests: Mapping[str, Path], behaviour: Behaviour) -> Machine:
    """A guest with debug off, in this process, which does not run yet."""
    debug = {Name.DEBUG: Setting("off", behaviour)}
    program = str(guests["sleeper"])
    return Machine.launch(GuestConfig(program, (program, "10", "0"), {}, 64 * MIB, settings=debug), RunOptions("x"))


def posting(
    lab: Lab, outcomes: list[str], meanwhile: Callable[[], None]
) -> Callable[[str, str, bytes, str], tuple[dict[str, object], str]]:
    """A verifier in this process; `meanwhile` is what happens between its appraisal and its answer."""

    def post(url: str, path: str, body: bytes, authority: str) -> tuple[dict[str, object], str]:
        if path.endswith("newSession"):
            session = lab.verifier.new_session("broker")
            return {"nonce": base64.b64encode(session.nonce).decode(), "audience": "broker"}, session.id
        if path == "/revocations":
            return {"revoked": lab.verifier.revoke(body)}, ""
        outcome = lab.verifier.answer(path, body)
        outcomes.append(outcome.jti)
        meanwhile()
        return {"result": "token", "jti": outcome.jti, "tier": "warning", "lifetime": outcome.lifetime}, ""

    return post


def test_a_change_in_the_midst_of_a_round(
    lab: Lab, guests: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, time_scale: float
) -> None:
    """The token that comes of it is of values that do not count any more: it is denied, and nobody gets it."""
    monkeypatch.setenv("MEMVM_PLATFORM_DIR", str(lab.directory / "platform"))
    machine = launched_with(guests, Behaviour.REVOKE)
    settings, outcomes = machine.settings, list[str]()
    changing = threading.Thread(target=settings.change, args=(Name.DEBUG, "on"))

    def change() -> None:
        if not changing.is_alive():
            changing.start()
            deadline = time.monotonic() + 20 * time_scale
            while not settings.epoch % 2:
                assert time.monotonic() < deadline

    monkeypatch.setattr(rounds, "_post", posting(lab, outcomes, change))
    try:
        with pytest.raises(AttestationError, match="was changed while"):
            rounds.rounds_of(machine).attest("http://127.0.0.1:1", "broker", "", "")
        changing.join()
        assert settings.value(Name.DEBUG) == "on"
        assert machine.guest.token == b""
        assert lab.verifier.deny_list == set(outcomes)
    finally:
        machine.close()


def test_attack_15_setting_changed_and_changed_back_in_the_midst_of_a_round(
    lab: Lab, guests: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the evidence was signed, and before there is a token: all values are as they were, and it is denied."""
    monkeypatch.setenv("MEMVM_PLATFORM_DIR", str(lab.directory / "platform"))
    machine = launched_with(guests, Behaviour.RECORD)
    outcomes = list[str]()

    def change() -> None:
        before = machine.settings.now()
        machine.settings.change(Name.DEBUG, "on")
        machine.settings.change(Name.DEBUG, "off")
        assert machine.settings.now() == before

    monkeypatch.setattr(rounds, "_post", posting(lab, outcomes, change))
    try:
        with pytest.raises(AttestationError, match="was changed while"):
            rounds.rounds_of(machine).attest("http://127.0.0.1:1", "broker", "", "")
        assert machine.guest.token == b""
        assert lab.verifier.deny_list == set(outcomes)
        monkeypatch.setattr(rounds, "_post", posting(lab, outcomes, lambda: None))
        rounds.rounds_of(machine).attest("http://127.0.0.1:1", "broker", "", "")
        assert machine.guest.token == b"token"
    finally:
        machine.close()


@pytest.mark.parametrize("behaviour", Behaviour)
def test_attack_17_claimed_behaviour_is_not_the_real_one(
    behaviour: Behaviour, lab: Lab, guests: Mapping[str, Path], time_scale: float
) -> None:
    """What evidence says that a change does is what it does."""
    machine, denied = launched_with(guests, behaviour), list[str]()
    settings, guest = machine.settings, machine.guest
    machine.enforcement.deny = denied.append
    secret = machine.regions()[0][0]
    try:
        machine.start()
        machine.pause()
        machine.ram.write(secret, b"secret")
        guest.secrets.append((secret, 6))
        guest.token, guest.public_key = b"token", ("x25519", bytes(32))
        given = describe(guest, GuestKey(), bytes(32), "lab", code=bytes(48), version=1, vouched=True)
        claimed = read_evidence(given.sign(lab.device), lab.verifier._roots).settings[Name.DEBUG]
        assert (claimed.at_launch, claimed.behaviour) == ("off", behaviour)
        if behaviour in (Behaviour.REFUSE, Behaviour.TERMINATE):
            with pytest.raises(SettingRefused, match="refused" if behaviour is Behaviour.REFUSE else "ended then"):
                settings.change(Name.DEBUG, "on")
        else:
            settings.change(Name.DEBUG, "on")
        is_changed = behaviour not in (Behaviour.REFUSE, Behaviour.TERMINATE)
        assert settings.value(Name.DEBUG) == ("on" if is_changed else "off")
        assert len(settings.register.entries) == is_changed
        assert bool(denied) == (guest.token == b"") == (behaviour is Behaviour.REVOKE)
        has_ended = machine.wait(20 * time_scale if behaviour is Behaviour.TERMINATE else 0)
        assert (has_ended is not None) == (behaviour is Behaviour.TERMINATE)
        if has_ended is None:
            is_wiped = bytes(machine.ram.read(secret, 6)) == bytes(6)
            assert is_wiped == (behaviour is Behaviour.REVOKE)
        if behaviour is Behaviour.REATTEST:
            with pytest.raises(SettingRefused, match="token"):
                machine.resume()
        elif has_ended is None:
            machine.resume()
    finally:
        machine.close()


def test_attack_32_platforms_counter_file_rolled_back_as_a_seal(lesson: Lesson) -> None:
    """A checkpoint and its seal, each of them with the other one of an older save: nobody vouches for that."""
    file = lesson.directory / "guest.ckpt"
    seal = file.with_name("guest.ckpt.seal")
    with guest_of(lesson) as guest:
        started(guest)
        guest.checkpoint(file)
        old = file.read_bytes(), seal.read_bytes()
        guest.checkpoint(file)
    new = file.read_bytes(), seal.read_bytes()
    assert old[1] != new[1]
    for contents, sealed in ((new[0], old[1]), (old[0], new[1])):
        file.write_bytes(contents)
        seal.write_bytes(sealed)
        with memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mixed:
            assert "no platform vouches for" in reasons(mixed.attest(lesson.url))
    file.write_bytes(new[0])
    seal.write_bytes(new[1])
    with memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as newest:
        assert appraisal(newest.attest(lesson.url))["ear_status"] == "warning"
    file.write_bytes(old[0])
    seal.write_bytes(old[1])
    with memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rolled_back:
        assert "rolled back" in reasons(rolled_back.attest(lesson.url))


def test_a_revocation_that_nobody_hears_changes_nothing(lesson: Lesson) -> None:
    with guest_of(lesson) as guest:
        started(guest)
        guest.attest(lesson.url)
        (lesson.directory / "platform" / "device.key").rename(lesson.directory / "device.key")
        with pytest.raises(AttestationError):
            guest.change_setting("debug", "on")
        with pytest.raises(SettingRefused):
            guest.registers()
        assert guest.config().changes == 0


def test_reattest_lets_the_guest_go_on(lesson: Lesson) -> None:
    """With a token that is no worse than a warning, of the verifier that it was launched with."""
    with guest_of(lesson, verifier=lesson.url) as guest:
        started(guest)
        guest.change_setting("time-limit", "1h")
        assert guest.status().state is RunState.PAUSED
        guest.attest(lesson.url.replace("127.0.0.1", "localhost"))
        assert guest.status().state is RunState.PAUSED
        token = guest.attest(lesson.url)
        assert "time-limit was changed 1 times" in reasons(token)
        assert guest.status().state is RunState.RUNNING
    with guest_of(lesson, debug="on:refuse") as guest:
        started(guest)
        guest.change_setting("time-limit", "1h")
        guest.attest(lesson.url)
        assert guest.status().state is RunState.PAUSED


def test_a_restored_guest_is_attested_anew(lesson: Lesson) -> None:
    file = lesson.directory / "guest.ckpt"
    with guest_of(lesson) as guest:
        started(guest)
        guest.attest(lesson.url)
        guest.checkpoint(file)
    assert file.with_name("guest.ckpt.seal").exists()

    def restored() -> memvm.Guest:
        return memvm.restore(file, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with restored() as first, restored() as second:
        assert own_token(first) == "no token"  # key and token are in no checkpoint
        token = first.attest(lesson.url)
        assert appraisal(token)["ear_status"] == "warning"
        fork = second.attest(lesson.url)
        assert appraisal(fork)["ear_status"] == "contraindicated"
        assert "second" in reasons(fork)
    file.with_name("guest.ckpt.seal").unlink()
    with restored() as unsealed:
        assert "vouches" in reasons(unsealed.attest(lesson.url))


def test_attack_28_key_in_a_checkpoint_of_the_device_and_the_token(lesson: Lesson) -> None:
    """Neither the device's key, nor the token is in the file, and the processes with keys write no core."""
    file = lesson.directory / "guest.ckpt"
    with guest_of(lesson) as guest:
        started(guest)
        token = guest.attest(lesson.url)
        guest.checkpoint(file)
        failed = lesson.cli("-v", "attest", guest.name, "--verifier", "http://127.0.0.1:1", code=65).err
        for process in (guest.pid, lesson.verifier):
            assert dumps_no_core(process)
    state = lesson.cli("inspect", "--json", file, code=0).text.encode() + file.read_bytes() + failed.encode()
    assert token.encode() not in state
    key = (lesson.directory / "platform" / "device.key").read_bytes().splitlines()[1]
    assert key not in state
    assert (lesson.directory / "platform" / "device.key").stat().st_mode & 0o077 == 0


def test_a_cwt_on_the_command_line(lesson: Lesson) -> None:
    with guest_of(lesson) as guest:
        started(guest)
        file = lesson.directory / "guest.cwt"
        lesson.cli("attest", guest.name, "--verifier", lesson.url, "--format", "cwt", "--out", file, code=0)
        lesson.cli("token", "verify", file, "--audience", "lab", "--verifier", lesson.url, code=0)
        assert "attested" in lesson.cli("token", "show", file, code=0).text


def test_tls(lesson: Lesson) -> None:
    """Only with a certificate that the guest's side was told to believe."""
    certificate, key = lesson.directory / "tls.pem", lesson.directory / "tls.key"
    make = ("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=verifier")
    made = subprocess.run(
        [*make, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl here that makes certificates: apt-get install openssl")
    serve = ("verifier", "serve", "--json", "--policy", lesson.directory / "policy.toml", "--port", "0")
    tls = ("--state", lesson.directory / "tls-state", "--tls-certificate", certificate, "--tls-key", key)
    with lesson.cli.start(*serve, *tls) as verifier, guest_of(lesson) as guest:
        assert verifier.stdout is not None
        url = json.loads(verifier.stdout.readline())["url"]
        started(guest)
        with pytest.raises(AttestationError, match="certificate") as refused:
            guest.attest(url)
        assert "the certificates to believe" in refused.value.hint
        assert appraisal(guest.attest(url, authority=certificate))["ear_status"] == "warning"


def test_what_goes_wrong_is_said(lesson: Lesson) -> None:
    with guest_of(lesson) as guest:
        started(guest)
        for url, why in (
            ("http://127.0.0.1:1", r"127.0.0.1:1 cannot be asked: Connection refused$"),
            (lesson.url.replace("http:", "https:"), "cannot be asked: .*wrong version number"),
            ("", "https"),
            ("localhost", "https"),
            ("http://[::1", "https"),
            ("http://127.0.0.1:port", "https"),
            ("http://192.0.2.1:80", "https"),
            ("file:///etc/passwd", "https"),
            (lesson.url + "/nowhere", "nothing here"),
        ):
            with pytest.raises(memvm.MemvmError, match=why):
                guest.attest(url)
        with pytest.raises(AttestationError, match="audience"):
            guest.attest(lesson.url, audience="stranger")
        assert own_token(guest) == "no token"


def test_platform_and_references_on_the_command_line(lesson: Lesson) -> None:
    assert "code digest" in lesson.cli("platform", "show", code=0).text
    assert "there is a platform already" in lesson.cli("platform", "init", code=64).err
    shown = lesson.cli(
        "reference", "verify", "--key", lesson.directory / "maker.key.pub", lesson.directory / "references.json", code=0
    )
    assert "attested" in shown.text
    lesson.cli("reference", "sign", "--key", lesson.directory / "maker.key", "attested", code=64)
    lesson.cli("reference", "key", lesson.directory / "maker.key", code=64)
    refused = lesson.cli(
        *("verifier", "serve", "--policy", lesson.directory / "policy.toml", "--host", "0.0.0.0"),
        *("--state", lesson.directory / "other"),
        code=64,
    )
    assert "TLS" in refused.err


@pytest.mark.parametrize("url", ["foo", "http://127.0.0.1:port", "http://127.0.0.1:99999", "http://[::1", ""])
def test_what_is_no_url_is_a_mistake(url: str) -> None:
    with pytest.raises(UsageError, match="a verifier is asked over https, or on loopback over http"):
        fetch(url, "/deny-list")


def test_a_service_that_cannot_listen_says_why(lesson: Lesson) -> None:
    def served(*options: str | Path, code: int) -> str:
        serve = ("verifier", "serve", "--policy", lesson.directory / "policy.toml")
        return lesson.cli(*serve, "--state", lesson.directory / "other", *options, code=code).err

    taken = lesson.url.rpartition(":")[2]
    assert f"cannot listen at 127.0.0.1, port {taken}: Address already in use" in served("--port", taken, code=69)
    assert "not a port: '99999'" in served("--port", "99999", code=64)
    assert "no certificate with its key" in served("--tls-certificate", lesson.directory / "policy.toml", code=65)
    assert "a key without a certificate" in served("--tls-key", lesson.directory / "maker.key", code=64)


def test_an_address_of_ipv6_is_served_and_asked(lesson: Lesson) -> None:
    with socket.socket(socket.AF_INET6) as trial:
        try:
            trial.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here: sysctl net.ipv6.conf.lo.disable_ipv6")
    serve = ("verifier", "serve", "--json", "--policy", lesson.directory / "policy.toml", "--host", "::1")
    with lesson.cli.start(*serve, "--port", "0", "--state", lesson.directory / "six") as verifier:
        assert verifier.stdout is not None
        url = json.loads(verifier.stdout.readline())["url"]
        assert url.startswith("http://[::1]:")
        assert fetch(url, "/deny-list")[0] == {"denied": []}


def test_attestation_imports_nothing_at_a_start() -> None:
    program = "import sys, memvm.cli.run, memvm.manager.process; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
