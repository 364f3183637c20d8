"""The life of a sealed guest: it runs like any other, is saved encrypted, and comes back by an attestation."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

import memvm
from memvm.attest.tokens import read_unverified, status_of
from memvm.errors import CheckpointError
from tests.sealed.forwarder import Forwarder
from tests.sealed.lab import ENVIRONMENT, SealedLab, ask, ready, url_of


@pytest.fixture(scope="module")
def answers(lab: SealedLab) -> list[str]:
    """What the program says if nothing happens to it."""
    with lab.launched() as guest:
        ready(guest)
        return [ask(guest) for _ in range(4)]


@pytest.mark.parametrize(
    ("how", "restoring"), [("live", "--lazy"), ("stopped", "--eager"), ("suspend", "--policy=demand")]
)
def test_a_sealed_guest_is_saved_and_goes_on(
    lab: SealedLab, answers: list[str], tmp_path: Path, how: str, restoring: str
) -> None:
    file = tmp_path / "guest.ckpt"
    with lab.launched() as guest:
        assert ask(ready(guest)) == answers[0]
        if how == "suspend":
            guest.suspend(file)
        else:
            guest.checkpoint(file, live=how == "live")
            assert ask(guest) == answers[1]
    with lab.restored(file, restoring) as again:
        assert [ask(again), ask(again)] == answers[1:3]


def test_the_mprotect_engine_serves_sealed_guests(lab: SealedLab, answers: list[str], tmp_path: Path) -> None:
    file = tmp_path / "guest.ckpt"
    with lab.launched("--engine=mprotect") as guest:
        ask(ready(guest))
        guest.checkpoint(file)
        assert ask(guest) == answers[1]
    with lab.restored(file, "--engine=mprotect") as guest:
        assert guest.status().engine == "mprotect"
        assert ask(guest) == answers[1]


def test_from_python(lab: SealedLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    pipe = subprocess.PIPE
    keeper = lab.directory / "keeper.pem.pub"
    file = tmp_path / "guest.ckpt"
    with memvm.Guest(
        lab.command, ram="64M", env=ENVIRONMENT, sealed=True, key_keeper=keeper, stdin=pipe, stdout=pipe
    ) as guest:
        first = ask(ready(guest))
        guest.suspend(file)
    with memvm.restore(
        file, verifier=lab.verifier, audience="keeper", key_keeper=lab.keeper, time_limit=600.0, stdin=pipe, stdout=pipe
    ) as guest:
        assert ask(guest).startswith("2 ")
        assert first.startswith("1 ")
        assert guest.config().settings[0].value == "off"


def test_a_time_limit_and_a_signal_reach_a_sealed_guest(lab: SealedLab) -> None:
    with lab.launched("--time-limit=300ms") as guest:
        assert guest.wait(60 * lab.cli.time_scale).code == 124
    with lab.launched() as guest:
        psutil.Process(ready(guest).pid).terminate()
        assert guest.wait(60 * lab.cli.time_scale).code == 143


def test_a_restored_sealed_guest_is_saved_and_restored_again(
    lab: SealedLab, answers: list[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    with lab.launched() as guest:
        ask(ready(guest))
        guest.suspend(first)
    with lab.restored(first) as guest:
        ask(guest)
        guest.checkpoint(second)
    with lab.restored(second) as guest:
        assert ask(guest) == answers[2]
        # It gets a token with which disks' keys are given, as it did after its launch.
        token = guest.attest(lab.verifier, audience="lab")
        assert status_of(read_unverified(token)[1]) == "warning"


def test_a_sealed_guest_is_saved_on_top_of_its_checkpoints_as_a_user_does_it(
    lab: SealedLab, answers: list[str], tmp_path: Path
) -> None:
    monday, tuesday, wednesday = (tmp_path / f"{day}.ckpt" for day in ("monday", "tuesday", "wednesday"))
    with lab.launched("--name", "week") as guest:
        said = [ask(ready(guest))]
        lab.run("checkpoint", "week", monday)
        said.append(ask(guest))
        shown = json.loads(lab.run("checkpoint", "--json", "--live", "--parent", monday, "week", tuesday))
        assert shown["parent"] == str(monday)
        assert 0 < shown["pages_data"] < shown["pages_inherited"]
        said.append(ask(guest))
        shown = lab.run("checkpoint", "--parent", tuesday, "week", wednesday)
        assert f"on top of {tuesday}" in shown
        assert said == answers[:3]
    assert wednesday.stat().st_size < monday.stat().st_size
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    kept = monday.rename(elsewhere / "kept.ckpt")
    result = lab.cli("restore", *lab.restoring(wednesday), env=lab.environment)
    assert result.code == 65
    assert "tuesday.ckpt: its parent monday.ckpt is missing" in result.err
    assert "--parent FILE" in result.err
    with pytest.raises(CheckpointError, match=r"its parent monday\.ckpt is missing"), lab.restored(wednesday):
        pass
    # Nobody was asked for the key yet, which is given once for a checkpoint. Now he is asked once, for all files.
    with Forwarder(lab.keeper).running() as keeper:
        words = lab.restoring(wednesday, f"--parent={kept}", f"--key-keeper={keeper.url}")
        assert lab.cli("restore", *words, env=lab.environment, stdin=b"\n").text == answers[3]
    assert keeper.passed.count(b"POST ") == 1


@pytest.mark.parametrize("restoring", ["--eager", "--policy=sequential", "--lazy"])
def test_a_chain_is_restored_by_policy(lab: SealedLab, answers: list[str], tmp_path: Path, restoring: str) -> None:
    with lab.launched() as guest:
        ask(ready(guest))
        guest.checkpoint(tmp_path / "first.ckpt", live=True)
        ask(guest)
        guest.checkpoint(tmp_path / "second.ckpt", live=True, parent=tmp_path / "first.ckpt")
    with lab.restored(tmp_path / "second.ckpt", restoring) as guest:
        assert ask(guest) == answers[2]
        report = guest.checkpoint(tmp_path / "third.ckpt", live=True, parent=tmp_path / "second.ckpt")
        assert report.changes_known == "compared"  # what it writes, the kernel tells nobody
        assert ask(guest) == answers[3]
    with lab.restored(tmp_path / "third.ckpt", "--eager") as guest:
        assert ask(guest) == answers[3]


@pytest.mark.parametrize("live", [True, False], ids=["live", "stopped"])
def test_a_guest_is_saved_on_top_of_what_it_is_still_being_restored_from(
    lab: SealedLab, answers: list[str], tmp_path: Path, live: bool
) -> None:
    first, second, third = (tmp_path / f"{name}.ckpt" for name in ("first", "second", "third"))
    with lab.launched() as guest:
        ask(ready(guest))
        guest.suspend(first)
    with lab.restored(first, "--policy=demand", "--no-background") as guest:
        report = guest.checkpoint(second, live=live, parent=first)
        assert report.pages_inherited > 256  # of which most are not loaded: its secret is 1 MiB
        assert ask(guest) == answers[1]
        guest.checkpoint(third, live=live, parent=second)
        assert ask(guest) == answers[2]
    with lab.restored(third, "--policy=demand", "--no-background") as guest:
        assert ask(guest) == answers[2]
        token = guest.attest(lab.verifier, audience="lab")
        assert status_of(read_unverified(token)[1]) == "warning"


def test_a_keeper_who_could_not_help_uses_no_checkpoint_up(lab: SealedLab, answers: list[str], tmp_path: Path) -> None:
    """A token is counted when it is issued: so nobody asks for one before it is known what for."""
    file, stranger = tmp_path / "guest.ckpt", tmp_path / "stranger.pem"
    with lab.launched() as guest:
        ask(ready(guest))
        guest.suspend(file)
    verifier = f"--verifier={lab.verifier}"

    def refused(*options: str) -> str:
        return lab.cli("restore", verifier, *options, file, env=lab.environment, code=65).err

    lab.run("keeper", "key", stranger)
    serve = ("keeper", "serve", "--json", "--port", "0")
    with (
        lab.cli.start(*serve, "--key", stranger, "--verifier", lab.verifier) as other,
        lab.cli.start(*serve, "--key", lab.directory / "keeper.pem", "--verifier", "http://127.0.0.1:1") as alone,
    ):
        assert "nobody was named who keeps the key" in refused()
        assert "cannot be asked: Connection refused" in refused("--key-keeper=http://127.0.0.1:1")
        assert "not the one who keeps the key" in refused(f"--key-keeper={url_of(other)}")
        assert "the verifier at 127.0.0.1:1 cannot be asked" in refused(f"--key-keeper={url_of(alone)}")
    wrong = refused(f"--key-keeper={lab.keeper}", "--audience=lab")
    assert "takes tokens that are for 'keeper', and not for 'lab'" in wrong
    assert "--keeper-audience keeper" in wrong
    with lab.restored(file) as again:
        assert ask(again) == answers[1]


def test_a_keeper_who_fails_when_the_verifier_has_counted(lab: SealedLab, answers: list[str], tmp_path: Path) -> None:
    """He is asked again, by the same platform; another restore would be of a second guest, which the policy forbids."""
    file, dropped = tmp_path / "guest.ckpt", list[bytes]()

    def drop_the_first(answer: bytes) -> bytes:
        if b'"answer"' not in answer or dropped:
            return answer
        dropped.append(answer)
        return b""

    with lab.launched() as guest:
        ask(ready(guest))
        guest.suspend(file)
    with Forwarder(lab.keeper, drop_the_first).running() as keeper:
        words = lab.restoring(file, f"--key-keeper={keeper.url}")
        result = lab.cli("restore", *words, env=lab.environment, stdin=b"\n", code=0)
    assert len(dropped) == 1
    assert result.text == answers[1]
    assert "asked again for" in result.err


def test_only_sealed_on_sealed_and_plain_on_plain(lab: SealedLab, guests: Mapping[str, Path], tmp_path: Path) -> None:
    sealed, plain = tmp_path / "sealed.ckpt", tmp_path / "plain.ckpt"
    with memvm.Guest([guests["counter"], "100000"], stdout=subprocess.DEVNULL) as open_guest, lab.launched() as guest:
        guest.checkpoint(sealed)
        open_guest.checkpoint(plain)
        with pytest.raises(CheckpointError, match=r"plain\.ckpt: not an encrypted memvm checkpoint"):
            guest.checkpoint(tmp_path / "next.ckpt", parent=plain)
        with pytest.raises(CheckpointError, match=r"sealed\.ckpt: it is encrypted"):
            open_guest.checkpoint(tmp_path / "next.ckpt", parent=sealed)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["plain.ckpt", "sealed.ckpt"]
