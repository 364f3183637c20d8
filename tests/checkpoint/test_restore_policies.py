"""Real guests brought back by each policy, on both engines: they cannot tell, and reports say how it went."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import memvm
from memvm.checkpoint.chain import Chain
from memvm.checkpoint.hint_file import Hints, hint_path, read_hints, write_hints
from memvm.errors import GuestStateError, UsageError
from memvm.recording.hints import PageHint
from tests.checkpoint.lives import PATIENCE, SCALE, look, restored, running, traced_saves_held
from tests.checkpoint.test_save_restore import assert_continues, native_output
from tests.support import MemvmCli

ENGINES = ("auto", "mprotect")
POLICIES = ("demand", "sequential", "active", "recorded", "eager", "users:Neighbours")
ARGUMENTS = ("4", "0", "25", "25", "50", "all")
USERS = """
class Neighbours:
    name = "neighbours"
    def prefetch(self, facts):
        assert facts.ram_pages and facts.data_runs
        return [(page, 1) for page, access in facts.active[:100] if access in (1, 2, 3)]
    def on_fault(self, page, facts):
        return [(page, min(40, facts.ram_pages - page))]

class Quits(Neighbours):
    name = "quits"
    def prefetch(self, facts):
        raise SystemExit

class Fails(Neighbours):
    name = "fails"
    def prefetch(self, facts):
        return []
    def on_fault(self, page, facts):
        raise KeyError("lost")

class Lies(Fails):
    name = "lies"
    def on_fault(self, page, facts):
        return [(0, facts.ram_pages + 1)]
"""


class Saved(NamedTuple):
    """A checkpoint of a guest that uses all of its few pages again and again."""

    path: Path
    written: bytes
    natively: bytes


@pytest.fixture(scope="module")
def original(guests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("policies")
    with traced_saves_held(folder / "gate") as gate, running(folder / "life", guests["patterns"], *ARGUMENTS) as life:
        life.await_lines(2)
        with gate.shut_for_lines(life, 2):
            written = life.save(folder / "a.ckpt")
    return Saved(folder / "a.ckpt", written, native_output(guests["patterns"], "4", "40", *ARGUMENTS[2:]))


@pytest.fixture
def saved(original: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Saved]:
    """A copy, in the current directory; users.py is there too."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(original.path.read_bytes())
    (tmp_path / "users.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    yield original._replace(path=path)


def fresh_hints(path: Path) -> Hints:
    with Chain.open(path) as chain:
        return Hints(chain.header.checkpoint_id, chain.header.ram_size)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
def test_guest_cannot_tell(policy: str, engine: str, saved: Saved, tmp_path: Path) -> None:
    for background in (True, False):
        with restored(
            tmp_path / f"life-{background}", saved.path, policy=policy, engine=engine, background=background, score=True
        ) as life:
            life.await_lines(3)
            assert_continues(saved.written + life.output(), saved.natively)
            report = life.guest.restore_report()
            assert life.complaints() == ""
            assert report.policy == policy.rpartition(":")[2].lower()
            assert report.first_instruction_seconds is not None and report.first_output_seconds is not None
            assert report.first_instruction_seconds <= report.first_output_seconds
            assert report.used_pages
            if policy == "eager":
                assert report.demand_faults == report.waited_seconds == 0
                assert report.recall_ratio == 1.0
            if policy == "demand":
                assert report.prefetched_pages == report.prefetch_reads == 0
                # In the background all may have been loaded before the guest came to touch anything.
                assert background or (report.demand_faults > 0 and report.waited_seconds > 0)
            if policy == "active":
                assert 0 < report.prefetched_pages <= look(saved.path).ram.pages_data
                assert report.prefetch_reads > 0 and report.bytes_prefetched > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_what_one_restore_uses_the_next_brings(
    engine: str, saved: Saved, guests: dict[str, Path], tmp_path: Path
) -> None:
    with running(tmp_path / "0", guests["patterns"], *ARGUMENTS) as life:
        life.await_lines(1)
        written = life.save(saved.path, live=False)  # nothing is active: the first restore brings nothing
    how: dict[str, Any] = {"policy": "recorded", "engine": engine, "background": False, "report": True, "window": 600}
    with restored(tmp_path / "1", saved.path, **how) as life:
        life.await_lines(3)
        first = life.guest.restore_report()
        assert first.demand_faults > 0
        life.guest.kill()  # with a guest its window ends, so all that it did counts, however long that took
    found, problem = read_hints(saved.path, fresh_hints(saved.path))
    assert (problem, found.restores) == ("", 1) and found.pages
    with restored(tmp_path / "2", saved.path, **how) as life:
        life.await_lines(3)
        assert_continues(written + life.output(), saved.natively)
        second = life.guest.restore_report()
    assert second.recorded_pages is None, "it is recorded once, unless somebody wants it"
    assert second.demand_faults < first.demand_faults
    with restored(tmp_path / "3", saved.path, engine=engine, record=True, report=True, window=0.1) as life:
        life.wait_for(lambda: life.guest.restore_report().recorded_pages is not None)
        found, problem = read_hints(saved.path, fresh_hints(saved.path))
        assert (problem, found.restores) == ("", 2)
        assert len(found.pages) == life.guest.restore_report().recorded_pages


def test_a_guest_that_ends_before_the_window_is_recorded(guests: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "kv.ckpt"
    with memvm.Guest([guests["kv"]], ram="64M", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        guest.checkpoint(path)
    with restored(tmp_path / "life", path, record=True, window=60) as life:
        assert life.guest.wait(PATIENCE * SCALE).code == 0
        assert life.complaints() == ""
    assert read_hints(path, fresh_hints(path))[0].pages


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("policy", "words"),
    [("users:Fails", "policy fails failed: KeyError: 'lost'"), ("users:Lies", "policy lies named")],
)
def test_policy_that_fails_while_the_guest_runs(
    policy: str, words: str, engine: str, saved: Saved, tmp_path: Path
) -> None:
    with restored(tmp_path / "life", saved.path, policy=policy, engine=engine, background=False) as life:
        life.await_complaint(words)
        life.await_lines(3)
        assert_continues(saved.written + life.output(), saved.natively)
        assert life.complaints().count(words) == life.complaints().count("\n") == 1
        assert "pages are loaded without it from now on" in life.complaints()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("users:Quits", "policy quits failed: SystemExit"),
        ("users:Missing", "users has no Missing"),
        ("hasty", "there is no policy 'hasty'"),
    ],
)
def test_policy_that_fails_before_the_guest_runs(policy: str, words: str, saved: Saved) -> None:
    with pytest.raises(UsageError, match=words):
        memvm.restore(saved.path, policy=policy)


def test_eager_and_lazy_policies_do_not_mix(saved: Saved) -> None:
    with pytest.raises(UsageError, match="with policy 'demand' is lazy"):
        memvm.restore(saved.path, lazy=False, policy="demand")
    with memvm.restore(saved.path, lazy=False, policy="eager") as guest:
        assert guest.status().ram_deferred == 0
        with pytest.raises(GuestStateError, match="nobody noted"):
            guest.restore_report()


def test_hints_that_are_of_no_use_are_said_once_and_replaced(saved: Saved, tmp_path: Path) -> None:
    fresh = fresh_hints(saved.path)
    write_hints(saved.path, fresh._replace(checkpoint_id=bytes(16)).with_entries([PageHint(1, 1, 0)], 1))
    for number, words in enumerate(("it is of another checkpoint", "it is damaged")):
        with restored(tmp_path / str(number), saved.path, policy="recorded", window=0.1) as life:
            life.wait_for(lambda: read_hints(saved.path, fresh)[0].restores == 1)
            assert life.complaints().count(words) == life.complaints().count("\n") == 1
        data = bytearray(hint_path(saved.path).read_bytes())
        data[-1] ^= 1
        hint_path(saved.path).write_bytes(data)


def test_hints_that_cannot_be_written_are_no_failure(saved: Saved, tmp_path: Path) -> None:
    hint_path(saved.path).mkdir()
    with restored(tmp_path / "life", saved.path, record=True, window=0.05) as life:
        life.await_complaint("is not recorded for the next restore")
        life.await_lines(3)
        assert_continues(saved.written + life.output(), saved.natively)
    assert life.complaints().count("\n") == 2, "nor can they be read"


def test_report_of_the_command(saved: Saved, memvm_cli: MemvmCli) -> None:
    how = ("restore", "--time-limit", "1s", "--policy", "users:Neighbours", "--window", "100ms")
    text = memvm_cli(*how, "--score", "--responsive", "20ms:0.5", saved.path, code=124).err
    assert "neighbours" in text and "ran 50% of 20.0 ms" in text and "precision" in text
    found = json.loads(_object_in(memvm_cli(*how, "--json", saved.path, code=124).err))
    assert found["policy"] == "neighbours" and found["precision_ratio"] is None
    assert found["responsive_seconds"] >= found["first_instruction_seconds"] > 0
    assert found["prefetched_pages"] > 0


def _object_in(text: str) -> str:
    return text[text.index("{") : text.rindex("}") + 1]


def test_report_of_a_guest_that_ends_at_once(guests: dict[str, Path], tmp_path: Path, memvm_cli: MemvmCli) -> None:
    path = tmp_path / "kv.ckpt"
    with memvm.Guest([guests["kv"]], ram="64M", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:
        guest.checkpoint(path)
    result = memvm_cli("restore", "--report", path, code=0)
    assert "policy" in result.err and "active" in result.err


@pytest.mark.parametrize("text", ["50ms", "50ms:", "50ms:0", "50ms:100%", "x:50%", ":0.5"])
def test_what_is_no_responsiveness(text: str, saved: Saved, memvm_cli: MemvmCli) -> None:
    result = memvm_cli("restore", "--responsive", text, saved.path, code=64)
    assert "50ms:80%" in result.err or "duration" in result.err
