"""Sealed guests whose register is anchored in a TPM, one in software: their lives, and attacks on what the TPM says."""

from __future__ import annotations

import json
import os
import select
import shutil
import threading
import tty
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from memvm.attest.anchor import Anchor, qualifying
from memvm.attest.anchoring import Anchoring
from memvm.attest.checkpoint_keys import launched_by
from memvm.attest.evidence import Evidence, GuestKey, describe, read_evidence
from memvm.attest.pcr import INSTANCE_SIZE, records, replay
from memvm.attest.platform import load_certificates, load_device
from memvm.attest.tpm import Tpm, open_device
from memvm.checkpoint.encryption import EncryptedHeader
from memvm.errors import AttestationError
from memvm.faultpoints import FaultPoint
from memvm.machine.launched import Launched
from memvm.sealed.making import _Claimed
from tests.attest.lesson import appraisal, own_claims, reasons
from tests.attest.swtpm import Swtpm, software_tpm
from tests.sealed.conftest import SEED
from tests.sealed.forwarder import Forwarder
from tests.sealed.lab import SealedLab, ask, ready
from tests.support import CliResult, MemvmCli, descriptors_of, serving

PCR = 15
KEY = GuestKey("x25519", bytes(range(32)))


class TpmLab(NamedTuple):
    """A lab whose platform has a TPM, and whose verifier demands one."""

    lab: SealedLab
    tpm: Swtpm

    @property
    def platform(self) -> Path:
        return self.lab.directory / "platform"

    @property
    def log(self) -> bytes:
        """What the PCR was extended with in this boot of the TPM, once a guest has begun in it."""
        log = (self.platform / "tpm.log").read_bytes()
        with Tpm(self.tpm.tcti) as connection:
            assert replay(log) == connection.read(PCR)
        return log

    @property
    def registers(self) -> list[bytes]:
        return [record[INSTANCE_SIZE:] for record in records(self.log)]

    def saved(self, folder: Path) -> Path:
        """A checkpoint of a guest that has answered once."""
        file = folder / "guest.ckpt"
        with self.lab.launched("--tpm") as guest:
            ask(ready(guest))
            guest.suspend(file)
        return file

    def restore(self, file: Path, *options: str) -> CliResult:
        """A restore, to the end of the guest's input."""
        words = self.lab.restoring(file, *options)
        return self.lab.cli("restore", *words, env=self.lab.environment, stdin=b"\n")

    @contextmanager
    def tcti(self, tcti: str) -> Iterator[None]:
        """While it is entered, the platform looks for its TPM there."""
        place = self.platform / "tpm.json"
        usual = place.read_text()
        place.write_text(json.dumps({**json.loads(usual), "tcti": tcti}))
        try:
            yield
        finally:
            place.write_text(usual)


@contextmanager
def tpm_lab(folder: Path, cli: MemvmCli, program: Path, time_scale: float) -> Iterator[TpmLab]:
    with software_tpm(folder / "tpm", time_scale) as tpm:
        lab = SealedLab(
            folder,
            cli,
            program,
            [str(SEED)],
            policy="require-tpm = true\n",
            platform=("--tpm", tpm.tcti),
            settings=("time-limit=none:revoke",),
        )
        with lab.served():
            yield TpmLab(lab, tpm)


@pytest.fixture(scope="module")
def anchored(
    tmp_path_factory: pytest.TempPathFactory, memvm_cli: MemvmCli, secret_program: Path, time_scale: float
) -> Iterator[TpmLab]:
    with tpm_lab(tmp_path_factory.mktemp("anchored"), memvm_cli, secret_program, time_scale) as made:
        yield made


def test_the_life_of_a_sealed_guest_with_a_tpm(anchored: TpmLab, tmp_path: Path) -> None:
    """Each step by the command line; what the TPM has of it is right after each."""
    lab, cli, environment = anchored.lab, anchored.lab.cli, anchored.lab.environment
    first, second, token = tmp_path / "first.ckpt", tmp_path / "second.ckpt", tmp_path / "guest.jwt"

    def attest(name: str) -> str:
        asked = ("attest", name, "--verifier", lab.verifier, "--audience", "lab", "--out", token)
        cli(*asked, env=environment, code=0)
        text = token.read_text().strip()
        assert appraisal(text)["ear_status"] == "warning"
        assert own_claims(text)["tpm"]["pcr"] == PCR
        return text

    def verified() -> CliResult:
        return cli("token", "verify", token, "--audience", "lab", "--verifier", lab.verifier, env=environment)

    with lab.launched("--tpm", "--name=anchored") as guest:
        answered = ask(ready(guest))
        before = len(anchored.registers) - 1
        attest("anchored")
        assert verified().code == 0
        cli("config", "anchored", "set", "time-limit=1h", env=environment, code=0)
        assert "has been revoked" in verified().err
        changed = bytes.fromhex(guest.config().register)
        assert anchored.registers[before:] == [bytes(48), changed]
        assert own_claims(attest("anchored"))["changes"] == 1
        cli("checkpoint", "anchored", first, env=environment, code=0)
    with lab.restored(first, "--tpm", "--name=again", "--time-limit=2h") as guest:
        assert int(ask(guest).split()[0]) == int(answered.split()[0]) + 1
        # In the round that brought the key it was what the file claims, and then it was given another limit.
        assert anchored.registers[before + 2 :] == [changed, bytes.fromhex(guest.config().register)]
        assert own_claims(attest("again"))["changes"] == 2
        cli("suspend", "again", second, env=environment, code=0)
    with lab.restored(second, "--tpm", "--name=third") as guest:
        assert len(anchored.registers) == before + 5
        assert own_claims(attest("third"))["changes"] == 2
        assert anchored.registers[-1] == bytes.fromhex(guest.config().register)


def test_a_policy_that_demands_a_tpm_and_a_restore_without(anchored: TpmLab, tmp_path: Path) -> None:
    file = anchored.saved(tmp_path)
    before = anchored.log
    refused = anchored.restore(file)
    assert refused.code == 65
    assert refused.out == b""
    assert "contraindicated: hardware: the guest is not anchored in a TPM" in refused.err
    assert anchored.log == before
    assert anchored.restore(file, "--tpm").code == 0  # what was refused does not count


def test_a_sealed_guest_that_was_launched_without_the_tpm(anchored: TpmLab) -> None:
    with anchored.lab.launched() as guest:
        token = ready(guest).attest(anchored.lab.verifier, audience="lab")
        assert appraisal(token)["ear_status"] == "contraindicated"
        assert "not anchored in a TPM" in reasons(token)


def test_a_restart_between_save_and_restore(anchored: TpmLab, tmp_path: Path) -> None:
    """No guest outlives a boot of the TPM, but a checkpoint does: what it claims is anchored in the next one."""
    file = tmp_path / "guest.ckpt"
    with anchored.lab.launched("--tpm") as guest:
        ready(guest)
        guest.change_setting("time-limit", "1h")
        register = bytes.fromhex(guest.config().register)
        guest.suspend(file)
    anchored.tpm.boot()
    with anchored.lab.restored(file, "--tpm") as guest:
        assert anchored.registers == [register]
        assert own_claims(guest.attest(anchored.lab.verifier, audience="lab"))["changes"] == 1
        anchored.tpm.boot()
        with pytest.raises(AttestationError, match="restarted since the guest began"):
            guest.attest(anchored.lab.verifier, audience="lab")
        with pytest.raises(AttestationError, match="restarted since the guest began"):
            guest.change_setting("time-limit", "2h")


@contextmanager
def keeper_behind(url: str, first: Callable[[], None]) -> Iterator[str]:
    """A key keeper before whose release of a key something happens; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(urllib.request.Request(url + self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            first()
            headers = {"Content-Type": self.headers["Content-Type"]}
            self.forward(urllib.request.Request(url + self.path, body, headers))

        def forward(self, request: urllib.request.Request) -> None:
            with urllib.request.urlopen(request) as answer:
                self.send_response(answer.status)
                self.end_headers()
                self.wfile.write(answer.read())

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as served:
        yield served


def test_a_restart_between_the_quote_and_the_guest(anchored: TpmLab, tmp_path: Path) -> None:
    file = anchored.saved(tmp_path)
    with keeper_behind(anchored.lab.keeper, anchored.tpm.boot) as keeper:
        refused = anchored.restore(file, "--tpm", f"--key-keeper={keeper}")
    assert refused.code == 65
    assert refused.out == b""
    assert "restarted since the guest began" in refused.err
    # The verifier has given a token for a guest from this checkpoint, and for no second one.
    assert "this is a second one" in anchored.restore(file, "--tpm").err


def test_a_restore_that_comes_to_nothing_leaves_the_tpm_to_others(anchored: TpmLab, tmp_path: Path) -> None:
    file = anchored.saved(tmp_path)
    useless = Forwarder(anchored.lab.keeper, lambda answer: answer.replace(b'"answer"', b'"nothin"'))
    with anchored.lab.launched("--tpm") as other, useless.running():
        ready(other)
        before = anchored.registers
        assert "the answer has no answer" in anchored.restore(file, "--tpm", f"--key-keeper={useless.url}").err
        assert anchored.registers == [*before, bytes(48)]
        other.change_setting("time-limit", "1h")
        assert own_claims(other.attest(anchored.lab.verifier, audience="lab"))["changes"] == 1


def test_a_platform_that_dies_between_log_and_pcr(anchored: TpmLab, tmp_path: Path) -> None:
    """Nobody was given a token, so the checkpoint is as good as before; and the record is taken away."""
    file = anchored.saved(tmp_path)
    before, lab = anchored.registers, anchored.lab
    environment = {**lab.environment, "MEMVM_FAULTS": f"{FaultPoint.ANCHOR_BEFORE_EXTEND}=kill"}
    died = lab.cli("restore", *lab.restoring(file, "--tpm"), env=environment)
    assert "the sealed guest was lost: its platform ended by signal 9" in died.err
    with lab.restored(file, "--tpm") as guest:
        ask(guest)
        assert anchored.registers == [*before, bytes(48)]


def test_a_tpm_that_cannot_be_reached(anchored: TpmLab, tmp_path: Path) -> None:
    file = anchored.saved(tmp_path)
    with anchored.tcti("swtpm:port=1"):
        refused = anchored.restore(file, "--tpm")
    assert refused.code == 65
    assert "cannot be reached" in refused.err
    assert anchored.restore(file, "--tpm").code == 0


def test_a_platform_without_a_tpm(lab: SealedLab, tmp_path: Path) -> None:
    file = tmp_path / "guest.ckpt"
    with lab.launched() as guest:
        ready(guest)
        guest.suspend(file)
    words = lab.restoring(file, "--tpm")
    assert "has no TPM" in lab.cli("restore", *words, env=lab.environment, code=65).err
    assert lab.cli("restore", *lab.restoring(file), env=lab.environment).code == 0


def test_a_quote_of_another_tpm(anchored: TpmLab, tmp_path: Path, time_scale: float) -> None:
    """Somebody has the platform's files, and a TPM of his own; the root vouches for the other one's key."""
    file = anchored.saved(tmp_path)
    stolen = tmp_path / "platform"
    shutil.copytree(anchored.platform, stolen)
    (stolen / "tpm.log").unlink()
    with software_tpm(tmp_path / "tpm", time_scale) as own:
        with Tpm(own.tcti) as connection:
            key, _ = connection.make_attestation_key()
        (stolen / "tpm.json").write_text(json.dumps({"tcti": own.tcti, "key": key, "pcr": PCR}))
        words = anchored.lab.restoring(file, "--tpm")
        refused = anchored.lab.cli("restore", *words, env={"MEMVM_PLATFORM_DIR": str(stolen)})
    assert refused.code == 65
    assert "the quote's signature is wrong" in refused.err


class Claims:
    """What a platform says of the guests that it is about to restore, and what it has the TPM say."""

    def __init__(self, anchored: TpmLab) -> None:
        self.platform = anchored.platform
        self.device = load_device(self.platform)

    def evidence(self, instance: bytes, nonce: bytes, saves: int = 0) -> Evidence:
        launched = Launched()
        launched.measure = lambda: bytes(48)
        launched.identity, launched.saves = bytes(16), saves
        described = describe(
            _Claimed(launched, instance), KEY, nonce, "keeper", code=bytes(48), version=1, vouched=True
        )
        assert described.register == bytes(48)
        return described

    def quoted(self, evidence: Evidence, begin: bool = True) -> Anchor:
        anchoring = Anchoring(self.platform, evidence.lineage.instance)
        if begin:
            anchoring.begin(evidence.register)
        anchor = anchoring.quote(evidence.register, qualifying(evidence.to_payload()))
        assert anchor is not None
        return anchor

    def read(self, evidence: Evidence, anchor: Anchor) -> Evidence:
        """As a verifier does."""
        return read_evidence(evidence.sign(self.device, anchor), load_certificates(self.platform / "root.pem"))


def test_what_the_tpm_said_of_something_else(anchored: TpmLab) -> None:
    claims, instance = Claims(anchored), os.urandom(16)
    evidence = claims.evidence(instance, b"n" * 32)
    anchor = claims.quoted(evidence)
    assert claims.read(evidence, anchor).anchored is not None
    # An old quote for a new nonce; one for another checkpoint of the guest; one for another restore of it.
    for other in (
        claims.evidence(instance, b"m" * 32),
        claims.evidence(instance, b"n" * 32, saves=1),
        claims.evidence(os.urandom(16), b"n" * 32),
    ):
        with pytest.raises(AttestationError, match="of other evidence, or of another exchange"):
            claims.read(other, anchor)


def test_what_restoring_changes_is_told_before_the_guest_runs(anchored: TpmLab) -> None:
    anchoring = Anchoring(anchored.platform, os.urandom(16))
    anchoring.begin(bytes(48))
    before = anchored.registers
    anchoring.follow(bytes(48))
    assert anchored.registers == before
    anchoring.follow(b"r" * 48)
    assert anchored.registers == [*before, b"r" * 48]
    with pytest.raises(AttestationError, match="restarted since the guest began"):
        Anchoring(anchored.platform, os.urandom(16)).follow(bytes(48))  # one that has never begun


@contextmanager
def device_for(tpm: Swtpm) -> Iterator[str]:
    """A TPM as a device file, which only who made it may open: a terminal, behind which its bytes are carried."""
    inside, outside = os.openpty()
    stopping, stop = os.pipe()
    tty.setraw(outside)  # kept open: a terminal that nobody has open hangs up

    def carry() -> None:
        """A command at a time, on a connection of its own, since the TPM serves one."""
        while inside in select.select([inside, stopping], [], [])[0]:
            command = os.read(inside, 4096)
            while len(command) < 10 or len(command) < int.from_bytes(command[2:6], "big"):
                command += os.read(inside, 4096)
            answer = tpm.answer(command)
            while answer:
                answer = answer[os.write(inside, answer) :]

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        path = os.ttyname(outside)
        os.chmod(path, 0o600)  # noqa: PTH101
        yield f"device:{path}"
    finally:
        os.close(stop)
        thread.join()
        for fd in (inside, outside, stopping):
            os.close(fd)


def test_commands_over_an_open_device(anchored: TpmLab) -> None:
    with device_for(anchored.tpm) as tcti:
        device = open_device(tcti)
        try:
            for _ in range(2):  # the device stays open from one use to the next
                with Tpm(tcti, device) as over, Tpm(anchored.tpm.tcti) as directly:
                    assert over.read(0) == directly.read(0)
        finally:
            os.close(device)
    with pytest.raises(AttestationError, match="cannot be opened: No such file"):
        open_device("device:/nonexistent")
    assert open_device("swtpm:port=1") == -1


def test_started_by_root_the_platform_keeps_its_tpm_open(anchored: TpmLab, tmp_path: Path) -> None:
    """It becomes a user who may open neither the device nor the log, and the guest has neither."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    file = tmp_path / "guest.ckpt"
    with device_for(anchored.tpm) as tcti, anchored.tcti(tcti):
        with anchored.lab.launched("--tpm") as guest:
            ready(guest)
            [platform] = psutil.Process(guest.pid).children()
            assert platform.uids().real != 0
            guest.change_setting("time-limit", "1h")
            assert own_claims(guest.attest(anchored.lab.verifier, audience="lab"))["changes"] == 1
            guest.suspend(file)
        with anchored.lab.restored(file, "--tpm") as guest:
            ask(guest)
            guest.change_setting("time-limit", "2h")
            assert own_claims(guest.attest(anchored.lab.verifier, audience="lab"))["changes"] == 2
            assert anchored.registers[-1] == bytes.fromhex(guest.config().register)
            [platform] = psutil.Process(guest.pid).children()
            assert opened_by(platform.pid) >= {tcti.partition(":")[2]}
            for inside in platform.children(recursive=True):
                assert not {name for name in opened_by(inside.pid) if "pts" in name or "tpm" in name}


def opened_by(process: int) -> set[str]:
    return {name for _, name in descriptors_of(process)}


def test_a_header_claims_what_the_tpm_is_told(anchored: TpmLab, tmp_path: Path) -> None:
    """The register in the TPM is that of the state in the file, which only the key lets anybody read."""
    file = tmp_path / "guest.ckpt"
    with anchored.lab.launched("--tpm") as guest:
        ready(guest)
        guest.change_setting("time-limit", "1h")
        register = guest.config().register
        guest.suspend(file)
    header = EncryptedHeader.unpack(file.read_bytes())
    assert launched_by(header).settings.register.value.hex() == register
    claims = json.loads(header.claims)
    claims["log"], claims["values"]["time-limit"] = [], "none"
    changed = json.dumps(claims, sort_keys=True, separators=(",", ":")).encode()
    data = file.read_bytes()
    file.write_bytes(header._replace(claims=changed).pack() + data[header.size :])
    refused = anchored.restore(file, "--tpm")
    assert refused.code == 65
    assert "no platform vouches for" in refused.err
