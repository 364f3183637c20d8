"""A worker, its encrypted disk, a verifier and a key broker, each a process of its own: how the worker gets its key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from memvm.disk.volume import DATA_OFFSET
from tests.sealed.forwarder import Forwarder
from tests.support import CliResult, MemvmCli
from tools.build_guests import missing_libraries

TEXT = b"what nobody but the worker may read\n" * 3000
COUNTED = f"{7 * 3000} words in {len(TEXT)} bytes"
LAUNCH = ("--ram", "64M", "--clear-env", "--locked", "--setting", "checkpoint=free:refuse")
QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-iterations", "1000")


class Lab(NamedTuple):
    """Everything that takes part."""

    cli: MemvmCli
    directory: Path
    worker: Path
    broker_key: str
    verifier: str
    broker: str

    @property
    def disk(self) -> Path:
        return self.directory / "data.img"

    @property
    def given(self) -> tuple[str | Path, ...]:
        """What is not part of a launch."""
        return ("--disk", self.disk, "--verifier", self.verifier, "--audience", "broker", "--broker", self.broker)

    def run(self, *more: str | Path, program: Path | None = None, code: int | None = None) -> CliResult:
        command = ("--", program or self.worker, self.broker_key)
        return self.cli("run", *LAUNCH, *self.given, *more, *command, code=code)

    def log(self) -> str:
        return self.cli("broker", "log", "--state", self.directory / "broker", code=0).text


@pytest.fixture
def lab(
    tmp_path: Path, guests: Mapping[str, Path], memvm_cli: MemvmCli, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    if missing := missing_libraries("worker"):
        pytest.skip(f"the worker needs {', '.join(missing)}: apt-get install nettle-dev")
    monkeypatch.setenv("MEMVM_PLATFORM_DIR", str(tmp_path / "platform"))
    cli, key, state = memvm_cli, tmp_path / "secret.key", tmp_path / "broker"
    worker = tmp_path / "worker"
    worker.write_bytes(guests["worker"].read_bytes())
    worker.chmod(0o755)
    key.write_bytes(b"secret")
    cli("platform", "init", code=0)
    disk = tmp_path / "data.img"
    cli("disk", "create", "--integrity", "--size", "256K", "--key-file", key, *QUICK, disk, code=0)
    cli("disk", "import", "--key-file", key, disk, "-", stdin=TEXT, code=0)
    broker_key = cli("broker", "key", "--state", state, code=0).text.strip()
    uuid = cli("broker", "add", "--state", state, "--key-file", key, "--disk", disk, code=0).text.strip()
    cli("reference", "key", tmp_path / "maker.key", code=0)
    digest = cli("measure", *LAUNCH, "--", worker, broker_key, code=0).text.strip()
    signed = cli("reference", "sign", "--key", tmp_path / "maker.key", f"worker={digest}", code=0).text
    (tmp_path / "references.json").write_text(signed)
    (tmp_path / "verifier.toml").write_text(
        '[verifier]\naudiences = ["broker"]\nroots = ["platform/root.pem"]\n'
        'references = ["references.json"]\nreference-keys = ["maker.key.pub"]\n'
    )
    serve = ("verifier", "serve", "--json", "--policy", tmp_path / "verifier.toml", "--state", tmp_path / "verifier")
    with cli.start(*serve, "--port", "0") as verifier:
        assert verifier.stdout is not None
        verifier_url = json.loads(verifier.stdout.readline())["url"]
        (tmp_path / "broker.toml").write_text(
            f'[broker]\nidentity = "broker"\nverifier = "{verifier_url}"\n'
            f'verifier-keys = ["verifier/verifier.pub"]\n[disks.{uuid}]\nprograms = ["worker"]\n'
        )
        policy = tmp_path / "broker.toml"
        with cli.start("broker", "serve", "--json", "--policy", policy, "--state", state, "--port", "0") as broker:
            assert broker.stdout is not None
            url = json.loads(broker.stdout.readline())["url"]
            yield Lab(cli, tmp_path, worker, broker_key, verifier_url, url)


def test_the_right_worker_reads_its_disk_and_goes_on_after_a_restore(lab: Lab) -> None:
    assert lab.run(code=0).text.splitlines() == [COUNTED]
    saved = lab.directory / "worker.ckpt"
    command = ("run", "--name", "worker", *LAUNCH, *lab.given, "--", lab.worker, lab.broker_key)
    with lab.cli.start(*command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().decode().strip() == COUNTED
        lab.cli("checkpoint", "worker", saved, code=0)
        lab.cli("kill", "worker", code=0)
        process.wait(60 * lab.cli.time_scale)
    assert lab.cli("restore", *lab.given, saved, stdin=b"\n", code=0).text.splitlines() == [COUNTED]
    assert lab.log().count("given") == 3
    second = lab.cli("restore", *lab.given, saved, stdin=b"\n", code=1)  # from the same checkpoint
    assert "no key from the broker: Permission denied" in second.text
    assert "contraindicated" in lab.log()


def test_attack_12_program_replaced_by_a_changed_image(lab: Lab) -> None:
    contents = bytearray(lab.worker.read_bytes())
    contents[contents.index(b" words in ")] ^= 1
    lab.worker.write_bytes(contents)
    result = lab.run(code=1)
    assert "no key from the broker: Permission denied" in result.text
    assert "no known program" in result.err


def test_debug_on_at_launch_gets_no_key(lab: Lab) -> None:
    result = lab.run("--setting", "debug=on:refuse", code=1)
    assert "no key from the broker: Permission denied" in result.text
    assert "not enough for this disk" in result.err


def test_attack_20_foreign_keyslot_added_to_a_workers_disk(lab: Lab) -> None:
    key, new = lab.directory / "secret.key", lab.directory / "new.key"
    new.write_bytes(b"new")
    lab.cli("disk", "rekey", *QUICK, "--key-file", key, "--new-key-file", new, lab.disk, code=0)
    result = lab.run(code=1)
    assert "no key from the broker: Permission denied" in result.text
    assert "another nonce, broker, disk, header" in result.err
    lab.cli("broker", "add", "--state", lab.directory / "broker", "--key-file", new, "--disk", lab.disk, code=0)
    assert lab.run(code=0).text.splitlines() == [COUNTED]


def test_attack_22_sectors_spliced_on_a_workers_disk(lab: Lab) -> None:
    old = lab.disk.read_bytes()
    with lab.disk.open("r+b") as file:
        file.seek(DATA_OFFSET)
        file.write(old[DATA_OFFSET + 4096 : DATA_OFFSET + 2 * 4096])
    result = lab.run(code=1)
    assert "sectors from 0 on: Input/output error" in result.text
    assert "sector 0 is not what was last written there" in result.err


def test_attack_21_disk_rolled_back_under_a_worker(lab: Lab) -> None:
    tags = lab.directory / "data.img.tags"
    old, before = lab.disk.read_bytes(), tags.read_bytes()
    key = lab.directory / "secret.key"
    lab.cli("disk", "import", "--key-file", key, lab.disk, "-", stdin=b"something newer", code=0)
    assert lab.run(code=0).text.splitlines() == ["2 words in 15 bytes"]
    lab.disk.write_bytes(old)
    tags.write_bytes(before)
    assert "not the one that the platform saw last" in lab.run(code=65).err


def test_attack_30_hpke_ciphertext_replaced_by_the_manager_of_a_worker(lab: Lab) -> None:
    """On its way from the broker to the guest: one digit of it, and nothing of it."""

    def changing(sealed: Callable[[str], str]) -> Callable[[bytes], bytes]:
        def change(answer: bytes) -> bytes:
            head, _, body = answer.partition(b"\r\n\r\n")
            fields = json.loads(body)
            if "sealed" in fields:
                fields["sealed"] = sealed(fields["sealed"])
            text = json.dumps(fields).encode()
            return re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>%d" % len(text), head) + b"\r\n\r\n" + text

        return change

    def flip(text: str) -> str:
        return ("B" if text[0] == "A" else "A") + text[1:]

    for change, why in ((changing(flip), "Bad message"), (changing(lambda text: ""), "Permission denied")):
        with Forwarder(lab.broker, change).running() as false:
            assert f"no key from the broker: {why}" in lab.run("--broker", false.url, code=1).text
    with Forwarder(lab.broker, changing(lambda text: text)).running() as honest:
        assert lab.run("--broker", honest.url, code=0).text.splitlines() == [COUNTED]


def test_attack_31_false_broker_with_attackers_disk_and_key_for_a_worker(lab: Lab) -> None:
    """The manager has a disk and a broker of its own, which gives keys to anybody; and it gives the right disk's, too.

    The worker knows whom it was made for.
    """
    false, key, disk = lab.directory / "false", lab.directory / "attackers.key", lab.directory / "attackers.img"
    key.write_bytes(b"attackers")
    lab.cli("disk", "create", "--integrity", "--size", "256K", "--key-file", key, *QUICK, disk, code=0)
    lab.cli("disk", "import", "--key-file", key, disk, "-", stdin=b"what the attacker wants to be counted", code=0)
    lab.cli("broker", "key", "--state", false, code=0)
    uuid = lab.cli("broker", "add", "--state", false, "--key-file", key, "--disk", disk, code=0).text.strip()
    of_right = ("--key-file", lab.directory / "secret.key", "--disk", lab.disk)
    lab.cli("broker", "add", "--state", false, *of_right, code=0)
    policy = lab.directory / "false.toml"
    policy.write_text((lab.directory / "broker.toml").read_text() + f'[disks.{uuid}]\nprograms = ["worker"]\n')
    serve = ("broker", "serve", "--json", "--policy", policy, "--state", false, "--port", "0")
    with lab.cli.start(*serve) as broker:
        assert broker.stdout is not None
        url = json.loads(broker.stdout.readline())["url"]
        words = ("run", *LAUNCH, "--disk", disk, *lab.given[2:], "--broker", url, "--", lab.worker, lab.broker_key)
        assert "no key from the broker: Bad message" in lab.cli(*words, code=1).text
        assert "no key from the broker: Bad message" in lab.run("--broker", url, code=1).text
    log = lab.cli("broker", "log", "--state", false, code=0).text
    assert log.count("given") == 2  # the false one did give them


def test_revoked_disk_and_nobody_to_ask(lab: Lab) -> None:
    assert "Permission denied" in lab.run("--broker", "http://127.0.0.1:1", code=1).text
    uuid = json.loads(lab.cli("disk", "info", "--json", lab.disk, code=0).text)["uuid"]
    lab.cli("broker", "revoke", "--state", lab.directory / "broker", "--disk", uuid, code=0)
    result = lab.run(code=1)
    assert "Permission denied" in result.text
    assert "has been revoked" in result.err
    without = ("run", *LAUNCH, "--disk", lab.disk, "--", lab.worker, lab.broker_key)
    assert "Transport endpoint is not connected" in lab.cli(*without, code=1).text
