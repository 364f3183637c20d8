"""The whole life of a sealed worker with an encrypted disk, and nowhere outside a byte of its keys, or of its text.

It is launched, attested, given its disk's key, saved, and restored; somebody sees all that its manager says to its
platform, and all that goes over HTTP; then everything is searched for the disk's key, the key of its checkpoints, and
what is on the disk.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from memvm.attest.checkpoint_keys import launched_by, unwrapped
from memvm.attest.key_files import load_private_to_decrypt
from memvm.checkpoint.encryption import EncryptedHeader
from memvm.cli import demo_lab
from memvm.cli.demo_lab import SEALED, DemoLab
from memvm.linux.secret_memory import Guard, SecretMemory
from tests.sealed.forwarder import Forwarder
from tests.sealed.recorded_manager import recorded_command
from tests.sealed.test_attacks_on_a_disks_key import COUNTED, TEXT, kept_by_broker, processes_of, secrets_of, started
from tests.sealed.test_attacks_on_memory import found_in, memory_of, opened_by
from tools.build_guests import missing_libraries

PIECE = 16
"""Bytes of a secret that are enough to tell it."""


def forms_of(name: str, secret: bytes) -> dict[str, bytes]:
    """A secret as it is, and as text. Of base64 there are three: what goes before it has some length."""
    forms = {name: secret, f"{name} as text": secret.hex().encode(), f"{name} as TEXT": secret.hex().upper().encode()}
    return forms | {
        f"{name} in base64, after {skipped}": base64.b64encode(secret[skipped : skipped + 12]) for skipped in range(3)
    }


class Life(NamedTuple):
    """What was left of it, and what was seen of it."""

    wanted: dict[str, bytes]
    directory: Path
    broker_file: Path
    wrapped_key: bytes
    channel: bytes
    http: dict[str, bytes]
    told: str
    """What commands said of the guest."""
    found: dict[str, set[str]]
    """In the memory of processes, at a moment; none of those that this user may not look into."""
    opened: dict[str, set[str]]


@pytest.fixture(scope="module")
def life(guests: Mapping[str, Path]) -> Iterator[Life]:
    if missing := missing_libraries("worker"):
        pytest.skip(f"the worker needs {', '.join(missing)}: apt-get install nettle-dev")
    parent = tempfile.gettempdir()
    with (
        tempfile.TemporaryDirectory(prefix="ms", dir=parent if len(parent) < 40 else "/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        directory, record = Path(folder), Path(folder) / "channel"
        (directory / "tmp").mkdir()
        patch.setenv("TMPDIR", str(directory / "tmp"))
        patch.setattr(demo_lab, "manager_command", lambda words: recorded_command(record, words))
        yield lived(DemoLab(directory, guests["worker"]), record)


def lived(lab: DemoLab, record: Path) -> Life:
    lab.set_up(TEXT)
    found: dict[str, set[str]] = {}
    opened: dict[str, set[str]] = {}
    http: dict[str, Forwarder] = {}
    with ExitStack() as running:
        running.enter_context(lab.served())
        for name in ("verifier", "broker", "keeper"):
            http[name] = running.enter_context(Forwarder(getattr(lab, name)).running())
            setattr(lab, name, http[name].url)
        worker = started(lab, running, *SEALED)
        lab.do("checkpoint", "--live", "right", "right.ckpt")
        assert worker.ask() == COUNTED
        header = EncryptedHeader.unpack((lab.directory / "right.ckpt").read_bytes())
        assert launched_by(header).disks == 1
        key = bytes(unwrapped(header, load_private_to_decrypt(lab.directory / "keeper.pem")).key.view)
        wanted = wanted_of(lab, key)
        look(found, opened, "", *processes_of(worker), wanted)
        told = "".join(lab.do(*words) for words in (("ps", "--json"), ("config", "right", "--json"), ("ps",)))
        lab.do("kill", "right")
        again = running.enter_context(lab.running("again", *lab.restoring("right.ckpt")))
        assert again.ask() == COUNTED
        look(found, opened, " after a restore", *processes_of(again), wanted)
        told += lab.do("ps", "--json")
    passed = {name: forwarder.passed for name, forwarder in http.items()}
    return Life(
        wanted,
        lab.directory,
        kept_by_broker(lab),
        header.wrapped_key,
        record.read_bytes(),
        passed,
        told,
        found,
        opened,
    )


def wanted_of(lab: DemoLab, checkpoint_key: bytes) -> dict[str, bytes]:
    of_disk = secrets_of(lab)
    secrets = {
        "the disk's key, at first": of_disk["its first half"][:PIECE],
        "the disk's key, at last": of_disk["its second half"][-PIECE:],
        "the checkpoints' key, at first": checkpoint_key[:PIECE],
        "the checkpoints' key, at last": checkpoint_key[-PIECE:],
        "the text": TEXT[:36],
    }
    return {form: bytes_ for name, secret in secrets.items() for form, bytes_ in forms_of(name, secret).items()}


def look(
    found: dict[str, set[str]],
    opened: dict[str, set[str]],
    when: str,
    manager: int,
    platform: int,
    guest: int,
    wanted: dict[str, bytes],
) -> None:
    """Into the processes that this user may look into."""
    for name, pid in (("manager", manager), ("platform", platform), ("guest", guest)):
        try:
            forms = wanted if name == "manager" else {form: of for form, of in wanted.items() if "base64" not in form}
            if name != "guest":  # whose RAM the platform has
                found[name + when] = found_in(memory_of(pid), forms)
            opened[name + when] = opened_by(pid)
        except PermissionError:  # a sealed guest's; or Yama keeps everybody out
            assert name != "manager" or os.geteuid() != 0


def searched(life: Life, *parts: bytes) -> None:
    assert parts
    assert not found_in(parts, life.wanted)


def files_of(life: Life, *endings: str) -> list[Path]:
    """All files that are left, or those with such a name, without the one in which the broker keeps the disk's key."""
    files = [path for path in life.directory.rglob("*") if path.is_file() and path != life.broker_file]
    return [path for path in files if not endings or path.name.endswith(endings)]


def test_the_search_finds_what_is_there(life: Life) -> None:
    """Where the keys are kept, and, for root, in the memory of the platform."""
    assert "the disk's key, at first as text" in found_in([life.broker_file.read_bytes()], life.wanted)
    for form, of in forms_of("x", bytes(range(16))).items():
        assert found_in([b"before" + of + b"after"], {form: of})
    secret = os.urandom(PIECE)
    for before in range(3):
        assert found_in([base64.b64encode(bytes(before) + secret + b"after")], forms_of("x", secret))
    if os.geteuid() == 0:
        for when in ("", " after a restore"):
            assert {"the disk's key, at first", "the disk's key, at last"} <= life.found[f"platform{when}"]


def test_attack_28_key_in_the_managers_memory(life: Life) -> None:
    if "manager" not in life.found:
        pytest.skip("kernel.yama.ptrace_scope keeps others of the same user out of every process here")
    assert life.found["manager"] == set()


def test_attack_28_key_in_the_managers_memory_after_a_restore(life: Life) -> None:
    """Through which the key of the checkpoint has passed, wrapped for the platform."""
    if "manager after a restore" not in life.found:
        pytest.skip("kernel.yama.ptrace_scope keeps others of the same user out of every process here")
    assert life.found["manager after a restore"] == set()


def test_attack_28_key_in_the_platforms_memory_as_text(life: Life) -> None:
    """What is there for root to see is the guest's RAM. The key of checkpoints is not, where the kernel can hide it."""
    if os.geteuid() != 0:
        pytest.skip("only root can look into a platform")
    with SecretMemory(1) as kept:
        if kept.guard is not Guard.SECRET:
            pytest.skip("this kernel has no memfd_secret")
    for when in ("", " after a restore"):
        in_memory = life.found[f"platform{when}"]
        assert not [form for form in in_memory if "checkpoints" in form]
        assert not [form for form in in_memory if "disk" in form and ("text" in form or "TEXT" in form)]


def test_attack_29_inherited_descriptor_of_the_disk(life: Life) -> None:
    """The platform has the disk's file, and the guest has not, nor anything else but what its faults go through."""
    disk = str(life.directory / "data.img")
    for who, names in life.opened.items():
        if who.startswith("platform"):
            assert disk in names
        elif who.startswith("guest"):
            assert names <= {"anon_inode:[userfaultfd]"}


def test_attack_28_key_on_a_socket_between_manager_and_platform(life: Life) -> None:
    """Both sides were heard, and that the key went by, wrapped."""
    assert life.channel.count(b"\n> mvS1") > 5
    assert life.channel.count(b"\n< mvS1") > 5
    assert life.wrapped_key.hex().encode() in life.channel
    assert b'"answer":' in life.channel
    searched(life, life.channel)


@pytest.mark.parametrize("whom", ["verifier", "broker", "keeper"])
def test_attack_28_key_on_a_socket_to_others(life: Life, whom: str) -> None:
    heard = {"verifier": b"/challenge-response/v1/newSession", "broker": b'"sealed"', "keeper": life.wrapped_key}
    assert heard[whom] in life.http[whom]
    searched(life, life.http[whom])


def test_attack_28_key_in_a_log(life: Life) -> None:
    logs = files_of(life, ".log", ".jsonl")
    assert {"right.log", "again.log", "broker.log", "keeper.log", "log.jsonl"} <= {path.name for path in logs}
    searched(life, *(path.read_bytes() for path in logs))


def test_attack_28_key_in_a_log_of_what_commands_say(life: Life) -> None:
    assert '"right"' in life.told
    assert "encrypted" in life.told
    searched(life, life.told.encode())


def test_attack_28_key_in_a_checkpoint(life: Life) -> None:
    [checkpoint] = files_of(life, ".ckpt")
    assert life.wrapped_key in checkpoint.read_bytes()
    searched(life, checkpoint.read_bytes())


def test_attack_28_key_in_a_file(life: Life) -> None:
    """Of the guest, of all others who took part, of the run-time directory, or a temporary one."""
    files = files_of(life)
    assert {"data.img", "data.img.tags", "worker", "keeper.pem"} <= {path.name for path in files}
    searched(life, *(path.read_bytes() for path in files))
